"""A sweep file is refused with every problem at once, by place, rule and value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from small_sweep import ABSENT, WHY, problems, spec_of, values

from core.errors import ConfigError
from tuning.files import parse_sweep


def test_the_base_file_of_these_tests_is_valid() -> None:
    assert spec_of().budget.trials == 4


# Refusals, one by one


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            {"budget": ABSENT, "budjet": {"trials": 1}},
            ["budget: required, but absent", "budjet: unknown key; did you mean 'budget'?"],
            id="misspelt-section",
        ),
        pytest.param(
            {"budget.trails": 3},
            ["budget.trails: unknown key; did you mean 'trials'?"],
            id="misspelt-key-in-a-section",
        ),
        pytest.param(
            {"adapter": {"rnk": 4}},
            ["adapter.rnk: unknown key; did you mean 'rank'?"],
            id="misspelt-fixed-field",
        ),
        pytest.param(
            {"pruning": {"retain": {"limitt": 0.1}}},
            ["pruning.retain.limitt: unknown key; did you mean 'limit'?"],
            id="misspelt-key-two-levels-down",
        ),
        pytest.param(
            {"data.forgett": {"source": "x"}},
            ["data.forgett: unknown key; did you mean 'forget'?"],
            id="misspelt-role",
        ),
        pytest.param(
            {"method.forget_loss": "ihll"},
            ["method.forget_loss: unknown choice, got 'ihll'; did you mean 'ihl'?"],
            id="unknown-fixed-loss",
        ),
        pytest.param(
            {"optimizer": {"weight_decay": -1.0}},
            ["optimizer.weight_decay: Input should be greater than or equal to 0, got -1.0"],
            id="fixed-value-outside-its-limits",
        ),
        pytest.param({"model": {}}, ["model.source: required, but absent"], id="no-model"),
        pytest.param(
            {"data.retain": ABSENT}, ["data.retain: required, but absent"], id="a-role-is-absent"
        ),
        pytest.param({"schema": 2}, ["schema: Input should be 1, got 2"], id="another-schema"),
        pytest.param({"space": {}}, ["space: "], id="nothing-is-searched"),
        pytest.param({"budget.trials": 0}, ["budget.trials: ", "got 0"], id="no-trials"),
        pytest.param(
            {"engine": {"ranks": 2}},
            ["engine: ranks is set by resources.ranks_per_trial"],
            id="ranks-belong-to-resources",
        ),
        pytest.param(
            {"sampler": {"name": "tpee"}}, ["sampler.name: ", "'tpe'", "got 'tpee'"], id="sampler"
        ),
        pytest.param(
            {"constraints": [{"metric": "retain_dorp", "at_most": 0.1}]},
            ["constraints.0.metric: ", "'retain_drop'", "got 'retain_dorp'"],
            id="unknown-metric",
        ),
        pytest.param(
            {"pruning": {"retain": {"limit": 0.5, "hard_limit": 0.4}}},
            ["hard_limit must exceed limit, got hard_limit=0.4 limit=0.5"],
            id="hard-limit-below-limit",
        ),
        pytest.param(
            {"budget": {"trials": 1, "max_steps": 2, "probe_every": 3}},
            ["probe_every must not exceed max_steps, got probe_every=3 max_steps=2"],
            id="never-probed",
        ),
        pytest.param(
            {
                "budget": {
                    "trials": 1,
                    "max_steps": 2,
                    "rows_per_probe": "adaptive",
                    "skip_probes": True,
                },
                "pruning": {"ranking": "median"},
            },
            [
                "budget.rows_per_probe: pruning.ranking: median compares trials at every probe",
                "take all or auto, got adaptive",
                "budget.skip_probes: pruning.ranking: median",
                "take false or auto, got true",
            ],
            id="compared-on-a-part-of-the-rows",
        ),
        pytest.param(
            {"optimizer": {"schedule": "linear"}},
            ["optimizer.schedule: ", "selection.select: last, got select=best_feasible_probe"],
            id="schedule-that-depends-on-the-horizon",
        ),
        pytest.param(
            {"sampler": {"name": "nsga2", "n_startup_trials": 1}},
            ["sampler.n_startup_trials: ", ">= 2, got 1"],
            id="population-of-one",
        ),
    ],
)
def test_a_wrong_file_is_refused(changes: Mapping[str, Any], expected: list[str]) -> None:
    text = "\n".join(problems(changes))
    for part in expected:
        assert part in text


# Every problem at once


def test_problems_of_all_kinds_are_named_together() -> None:
    found = problems(
        {
            "budjet": {},
            "name": "../x",
            "method.forget_loss": "ihll",
            "adapter": {"scalin": 1.0},
            "resources": {"gpus_per_rank": 3},
            "sampler": {"name": "tpee"},
        },
        space={
            "optimizer.learning_rat": {"float": {"low": 0.1, "high": 0.2}} | WHY,
            "fisher.exponent": {"float": {"low": 0.0, "high": 9.0}} | WHY,
        },
    )
    places = [p.partition(": ")[0] for p in found]
    assert sorted(places) == [
        "adapter.scalin",
        "budjet",
        "method.forget_loss",
        "name",
        "resources.gpus_per_rank",
        "sampler.name",
        "space.fisher.exponent",
        "space.optimizer.learning_rat",
    ]


def test_problems_of_the_space_are_named_together() -> None:
    found = problems(
        {
            "method.forget_loss": "ihll",
            "method.adapter_init": "fila",
            "start_from": [{"source": "x", "values": {"adapter.rank": 5}}],
        },
        space={
            "optimizer.learning_rat": {"float": {"low": 0.1, "high": 0.2}} | WHY,
            "fisher.exponent": {"categorical": [9.0], "when": {"adapter.rnk": 4}} | WHY,
        },
    )
    places = [p.partition(": ")[0] for p in found]
    assert sorted(places) == [
        "method.forget_loss",
        "space.fisher.exponent",
        "space.fisher.exponent.when",
        "space.optimizer.learning_rat",
        "start_from.0.values",
    ]


@pytest.mark.parametrize(
    "wrong", [{"method.forget_los": "npo"}, {"budjet": {}}], ids=["of-a-trial", "of-the-sweep"]
)
def test_an_unknown_key_hides_no_absent_one(wrong: Mapping[str, Any]) -> None:
    """Nor does it matter that what is absent might have been searched, or that its whole section is."""
    changes = {"method": {}, "space": {"adapter.rank": {"categorical": [4, 8]} | WHY}}
    text = "\n".join(problems(changes | dict(wrong)))
    for part in (
        f"{next(iter(wrong))}: unknown key",
        "method.forget_loss: required, but absent",
        "optimizer.learning_rate: required, but absent",
    ):
        assert part in text


def test_what_is_searched_is_not_absent() -> None:
    """The base file searches the learning rate; the section ``optimizer`` does not stand in it."""
    assert [p.partition(": ")[0] for p in problems({"adapter": {"rnk": 4}})] == ["adapter.rnk"]


def test_the_message_counts_and_lists_the_problems() -> None:
    with pytest.raises(ConfigError, match=re.escape("sweep.yaml: 2 problems\n  - budget.trials")):
        parse_sweep(values({"budget.trials": 0, "budget.max_steps": 0}), where="sweep.yaml")
