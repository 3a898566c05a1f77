"""What a sweep file may search: ranges that fit their fields and say why, and starting points inside."""

from __future__ import annotations

from typing import Any

import pytest
from small_sweep import WHY, conditional, problems, spec_of

from tuning.config import Dimension
from tuning.space import bind, corner_proposals, describe, searchable_fields

# Ranges and starting points


@pytest.mark.parametrize(
    ("name", "dimension", "expected"),
    [
        pytest.param(
            "optimizer.learning_rat",
            {"float": {"low": 0.1, "high": 0.2}},
            "space.optimizer.learning_rat: is no searchable field of a trial; "
            "did you mean 'optimizer.learning_rate'?",
            id="misspelt-field",
        ),
        pytest.param(
            "learning_rate",
            {"float": {"low": 0.1, "high": 0.2}},
            "is no searchable field of a trial; here it is optimizer.learning_rate",
            id="section-left-out",
        ),
        pytest.param(
            "data.probe_rows",
            {"int": {"low": 4, "high": 8}},
            "space.data.probe_rows: is no searchable field of a trial",
            id="what-is-measured-is-not-searched",
        ),
        pytest.param(
            "adapter.rank",
            {"int": {"low": 0, "high": 8}},
            "space.adapter.rank: must be >= 1, got 0",
            id="below-the-field",
        ),
        pytest.param(
            "adapter.rank",
            {"int": {"low": 8, "high": 2000}},
            "space.adapter.rank: must be <= 1024, got 2000",
            id="above-the-field",
        ),
        pytest.param(
            "optimizer.learning_rate",
            {"float": {"low": 0.0, "high": 0.1}},
            "space.optimizer.learning_rate: must be > 0.0, got 0.0",
            id="on-an-excluded-end",
        ),
        pytest.param(
            "optimizer.beta1",
            {"float": {"low": 0.5, "high": 1.0}},
            "space.optimizer.beta1: must be < 1.0, got 1.0",
            id="on-the-other-excluded-end",
        ),
        pytest.param(
            "fisher.exponent",
            {"categorical": [0.5, 9.0]},
            "space.fisher.exponent: must be <= 4.0, got 9.0",
            id="choice-outside-the-field",
        ),
        pytest.param(
            "adapter.rank",
            {"float": {"low": 2.0, "high": 8.0}},
            "space.adapter.rank: is a whole number; use int or categorical, got float",
            id="float-range-of-a-whole-number",
        ),
        pytest.param(
            "method.retain_loss",
            {"categorical": ["nll", "kll"]},
            "space.method.retain_loss: unknown choice 'kll'; did you mean 'kl'?",
            id="unknown-choice",
        ),
        pytest.param(
            "method.retain_loss",
            {"categorical": ["nll", 5]},
            "space.method.retain_loss: unknown choice 5; known: none, nll, kl",
            id="choice-like-nothing",
        ),
        pytest.param(
            "method.retain_loss",
            {"int": {"low": 1, "high": 2}},
            "space.method.retain_loss: takes one of none, nll, kl, activation, residual; use categorical",
            id="range-of-names",
        ),
        pytest.param(
            "optimizer.weight_decay",
            {"categorical": [0.0, "small"]},
            "space.optimizer.weight_decay: must be a number, got the string 'small'",
            id="a-word",
        ),
        pytest.param(
            "fisher.exponent",
            {"float": {"low": 1.0, "high": 0.5}},
            "low must not exceed high, got low=1.0 high=0.5",
            id="low-above-high",
        ),
        pytest.param(
            "fisher.exponent",
            {"float": {"low": 0.0, "high": 0.5, "log": True}},
            "a log scale needs low > 0, got low=0.0",
            id="log-of-zero",
        ),
        pytest.param(
            "fisher.exponent",
            {"float": {"low": 0.5, "high": 1.0, "log": True, "step": 0.1}},
            "a log scale takes no step, got step=0.1",
            id="log-with-step",
        ),
        pytest.param(
            "fisher.exponent",
            {},
            "give exactly one of float, int, categorical, got none",
            id="none",
        ),
        pytest.param(
            "fisher.exponent",
            {"float": {"low": 0.5, "high": 1.0}, "categorical": [0.5]},
            "give exactly one of float, int, categorical, got float, categorical",
            id="two-kinds",
        ),
        pytest.param("fisher.exponent", {"categorical": []}, "categorical: ", id="no-choices"),
    ],
)
def test_a_range_must_fit_its_field(name: str, dimension: dict[str, Any], expected: str) -> None:
    assert expected in "\n".join(problems(space={name: dimension | WHY}))


def test_a_range_must_say_why() -> None:
    absent = problems(space={"fisher.exponent": {"categorical": [0.5]}})
    assert absent == ("space.fisher.exponent.why: required, but absent; add it.",)
    blank = problems(space={"fisher.exponent": {"categorical": [0.5], "why": ""}})
    assert "space.fisher.exponent.why: " in blank[0]


def test_a_starting_point_must_name_its_source() -> None:
    start = {"values": {"adapter.rank": 8}}
    assert problems({"start_from": [start]}) == (
        "start_from.0.source: required, but absent; add it.",
    )


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        pytest.param(
            {"adapter.rank": 9}, "adapter.rank = 9 lies outside the space (4, 8, 16)", id="choice"
        ),
        pytest.param(
            {"optimizer.learning_rate": 0.5},
            "optimizer.learning_rate = 0.5 lies outside the space (1e-05 to 0.01, log)",
            id="range",
        ),
        pytest.param(
            {"optimizer.learning_rate": "small"},
            "optimizer.learning_rate = 'small' lies outside the space",
            id="string",
        ),
        pytest.param(
            {"adapter.rnk": 8},
            "'adapter.rnk' is not searched here; did you mean 'adapter.rank'?",
            id="unknown-name",
        ),
        pytest.param({"seed": 2.5}, "seed = 2.5 lies outside the space (1 to 9)", id="no-integer"),
        pytest.param(
            {"fisher.exponent": 0.3},
            "fisher.exponent = 0.3 lies outside the space (0 to 1, step 0.25)",
            id="between-steps",
        ),
    ],
)
def test_a_starting_point_lies_in_the_space(start: dict[str, Any], expected: str) -> None:
    space = {
        "seed": {"int": {"low": 1, "high": 9}} | WHY,
        "fisher.exponent": {"float": {"low": 0.0, "high": 1.0, "step": 0.25}} | WHY,
    }
    good = {"source": "good", "values": {"seed": 9, "fisher.exponent": 0.75, "adapter.rank": 16}}
    changes = {
        "method.adapter_init": "fila",
        "start_from": [good, {"source": "bad", "values": start}],
    }
    found = problems(changes, space=space)
    assert found == (f"start_from.1.values: {expected}",) or expected in found[0]
    assert found[0].startswith("start_from.1.values: ")


def test_what_is_searched_cannot_also_be_fixed() -> None:
    found = problems({"adapter": {"rank": 8}})
    assert found == ("space.adapter.rank: is also fixed by adapter.rank; remove one of the two",)


@pytest.mark.parametrize("field", ["global_batch_size", "micro_batch_size"])
def test_a_batch_size_can_be_searched_without_naming_the_section(field: str) -> None:
    spec = spec_of(space={f"batch.{field}": {"categorical": [4, 8]} | WHY})
    sizes = {
        bind(spec, p, where="test").batch_plan().global_batch_size for p in corner_proposals(spec)
    }
    assert sizes == {4, 8}


def test_the_global_batch_size_is_8_unless_told_otherwise() -> None:
    spec = spec_of({"resources": {"ranks_per_trial": 2}})
    trial = bind(spec, next(corner_proposals(spec)), where="test")
    assert (trial.batch_plan().global_batch_size, trial.batch_plan().micro_batch_size) == (8, 4)


# Samplers with rules of their own


def test_a_grid_needs_steps_no_conditions_and_whole_starting_points() -> None:
    text = "\n".join(
        problems(
            {
                "sampler": {"name": "grid"},
                "start_from": [{"source": "x", "values": {"adapter.rank": 4}}],
            },
            space=conditional({"method.adapter_init": "fila"}),
        )
    )
    assert "space.optimizer.learning_rate: the grid sampler needs a step for a float range" in text
    assert "space.fisher.exponent: the grid sampler takes no conditional parameter" in text
    assert "start_from.0.values: the grid sampler needs every searched field, " in text


# Fields and ranges in words


def test_searchable_fields_do_not_change_what_is_measured() -> None:
    fields = searchable_fields()
    assert {"optimizer.learning_rate", "adapter.rank", "method.forget_loss", "seed"} <= set(fields)
    sections = {name.partition(".")[0] for name in fields}
    assert not sections & {"model", "data", "selection", "engine"}


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [
        pytest.param({"float": {"low": 1e-5, "high": 0.01, "log": True}}, "1e-05 to 0.01, log"),
        pytest.param({"int": {"low": 1, "high": 9, "step": 2}}, "1 to 9, step 2"),
        pytest.param({"int": {"low": 1, "high": 9}}, "1 to 9"),
        pytest.param({"categorical": [4, "a", True]}, "4, a, True"),
    ],
)
def test_a_range_in_words(dimension: dict[str, Any], expected: str) -> None:
    assert describe(Dimension.model_validate(dimension | WHY)) == expected


# Fields that have an effect


@pytest.mark.parametrize(
    ("changes", "name", "expected"),
    [
        pytest.param(
            {"adapter.kind": "full"},
            "adapter.scaling",
            "space.adapter.scaling: has no effect here: adapter.kind never is 'lora'; remove it",
            id="full-has-no-scaling",
        ),
        pytest.param(
            {"method.retain_loss": "none"},
            "method.retain_weight",
            "space.method.retain_weight: has no effect here: method.retain_loss never is other than 'none'",
            id="no-retain-loss",
        ),
        pytest.param(
            {"method.adapter_init": "svd"},
            "fisher.exponent",
            "space.fisher.exponent: has no effect here: method.adapter_init never is 'fila' or 'vila'",
            id="no-fisher",
        ),
    ],
)
def test_a_field_that_no_trial_looks_at_is_not_searched(
    changes: dict[str, Any], name: str, expected: str
) -> None:
    found = problems(changes, space={name: {"categorical": [0.5, 1.0]} | WHY})
    assert any(expected in line for line in found)


def test_a_field_that_some_trial_looks_at_is_searched() -> None:
    kinds = {"method.adapter_init": {"categorical": ["lora", "vila"]} | WHY}
    fisher = {"fisher.exponent": {"categorical": [0.5, 1.0]} | WHY}
    assert spec_of(space=kinds | fisher)
