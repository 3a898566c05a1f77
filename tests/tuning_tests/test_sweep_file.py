"""A sweep file is refused with every problem at once, by place, rule and value; a valid one binds to trials."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from core.config import TrialConfig
from core.errors import ConfigError
from tuning.config import (
    MAX_FILE_BYTES,
    Dimension,
    SweepSpec,
    load_sweep,
    parse_sweep,
    read_yaml,
    specification_changes,
)
from tuning.space import (
    bind,
    corner_proposals,
    describe,
    is_active,
    ordered_dimensions,
    searchable_fields,
)

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "search_spaces").rglob("*.yaml"))

BASE: Mapping[str, Any] = {
    "schema": 1,
    "name": "small",
    "model": {"source": "package:smollm2"},
    "data": {
        role: {"source": f"embedded:{role}"}
        for role in ("forget", "retain", "approximate", "general")
    },
    "method": {"forget_loss": "ihl"},
    "space": {
        "optimizer.learning_rate": {
            "float": {"low": 1e-5, "high": 1e-2, "log": True},
            "why": "Two decades around the published one.",
        },
        "adapter.rank": {"categorical": [4, 8, 16], "why": "The paper's ranks."},
    },
    "budget": {"trials": 4, "max_steps": 6},
}
WHY = {"why": "it matters"}
ABSENT = object()


def values(changes: Mapping[str, Any] | None = None, *, space: Any = None) -> dict[str, Any]:
    """The base file with dotted keys replaced, and ``space`` entries added."""
    result: dict[str, Any] = copy.deepcopy(dict(BASE))
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is ABSENT:
            place.pop(last)
        else:
            place[last] = value
    result["space"] |= space or {}
    return result


def spec_of(changes: Mapping[str, Any] | None = None, *, space: Any = None) -> SweepSpec:
    return parse_sweep(values(changes, space=space), where="test")


def problems(changes: Mapping[str, Any] | None = None, *, space: Any = None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        spec_of(changes, space=space)
    return caught.value.problems


def write(folder: Path, content: Mapping[str, Any] | str) -> Path:
    path = folder / "sweep.yaml"
    text = content if isinstance(content, str) else yaml.safe_dump(dict(content))
    path.write_text(text, encoding="utf-8")
    return path


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
            "did you mean 'optimizer.learning_rate'?",
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
            {"categorical": [0.0, "1e-4"]},
            "space.optimizer.weight_decay: must be a number, got the string '1e-4' "
            "(in YAML, write 1.0e-4: 1e-4 without a point is a string)",
            id="yaml-1e-4-is-a-string",
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
            {"optimizer.learning_rate": "1e-3"},
            "optimizer.learning_rate = '1e-3' lies outside the space",
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


# Conditions


def conditional(when: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "method.adapter_init": {"categorical": ["lora", "fila"]} | WHY,
        "fisher.exponent": {"float": {"low": 0.0, "high": 1.0}, "when": dict(when)} | WHY,
    }


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        pytest.param(
            {"method.adapter_initt": "fila"},
            "space.fisher.exponent.when: 'method.adapter_initt' is not searched here; "
            "did you mean 'method.adapter_init'?",
            id="unknown-parent",
        ),
        pytest.param(
            {"method.adapter_init": "svd"},
            "space.fisher.exponent.when: method.adapter_init never is 'svd'; "
            "its choices are 'lora', 'fila'",
            id="value-that-is-never-taken",
        ),
        pytest.param(
            {"method.adapter_init": ["fila", "svd"]},
            "method.adapter_init never is 'svd'",
            id="one-of-several-is-never-taken",
        ),
        pytest.param(
            {"optimizer.learning_rate": 0.001},
            "space.fisher.exponent.when: 'optimizer.learning_rate' is not categorical",
            id="condition-on-a-range",
        ),
    ],
)
def test_a_condition_names_a_choice_of_a_searched_field(
    when: Mapping[str, Any], expected: str
) -> None:
    assert expected in "\n".join(problems(space=conditional(when)))


def test_conditions_do_not_form_a_circle() -> None:
    space = {
        "method.adapter_init": {"categorical": ["lora", "fila"], "when": {"adapter.rank": 4}} | WHY,
        "adapter.rank": {"categorical": [4, 8], "when": {"method.adapter_init": "lora"}} | WHY,
    }
    found = problems(space=space)
    assert len(found) == 1
    assert "conditions in `when` form a circle" in found[0]
    assert "adapter.rank" in found[0] and "method.adapter_init" in found[0]


def test_a_parent_comes_before_its_child_wherever_it_stands() -> None:
    space = {
        "fisher.exponent": {"categorical": [0.5, 1.0], "when": {"method.adapter_init": "fila"}}
        | WHY,
        "method.adapter_init": {"categorical": ["lora", "fila"]} | WHY,
    }
    order = list(ordered_dimensions(spec_of(space=space)))
    assert order.index("method.adapter_init") < order.index("fisher.exponent")


def test_corners_take_a_conditional_field_only_under_its_condition() -> None:
    spec = spec_of(space=conditional({"method.adapter_init": "fila"}))
    corners = list(corner_proposals(spec))
    assert {c["method.adapter_init"] for c in corners} == {"lora", "fila"}
    for corner in corners:
        assert ("fisher.exponent" in corner) == (corner["method.adapter_init"] == "fila")


def test_a_condition_may_list_several_values() -> None:
    dimension = Dimension.model_validate(
        {"categorical": [1], "why": "x", "when": {"a": ["p", "q"], "b": True}}
    )
    assert is_active(dimension, {"a": "q", "b": True})
    assert not is_active(dimension, {"a": "r", "b": True})
    assert not is_active(dimension, {"a": "p"})


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


def test_the_message_counts_and_lists_the_problems() -> None:
    with pytest.raises(ConfigError, match=re.escape("sweep.yaml: 2 problems\n  - budget.trials")):
        parse_sweep(values({"budget.trials": 0, "budget.max_steps": 0}), where="sweep.yaml")


# The file itself


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("name: a\nname: b\n", "key 'name' is given twice", id="duplicate-key"),
        pytest.param(
            "space:\n  a: {why: x}\n  a: {why: y}\n",
            "key 'a' is given twice",
            id="nested-duplicate",
        ),
        pytest.param("- a\n- b\n", "a mapping is expected, got list", id="a-list"),
        pytest.param("just words\n", "a mapping is expected, got str", id="a-string"),
        pytest.param("", "a mapping is expected, got NoneType", id="empty"),
        pytest.param("a: [1, 2\n", "not YAML: ", id="broken"),
        pytest.param("a: !!python/object/apply:os.system [ls]\n", "not YAML: ", id="python-tag"),
        pytest.param(
            "# " + "x" * MAX_FILE_BYTES, f"exceeds {MAX_FILE_BYTES} bytes", id="too-large"
        ),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    assert expected in caught.value.problems[0]
    assert str(caught.value).startswith(f"{path}: 1 problem\n")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ConfigError, match="not YAML: "):
        load_sweep(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: 1 problem\n.*does not exist"):
        load_sweep(tmp_path / "nowhere.yaml")


def test_relative_paths_are_relative_to_the_sweep_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "sweeps", tmp_path / "elsewhere"
    (folder / "model").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "forget.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    path = write(folder, values({"model.source": "model", "data.forget.source": "forget.jsonl"}))
    monkeypatch.chdir(elsewhere)
    spec = load_sweep(Path("..") / "sweeps" / path.name)
    assert spec.model["source"] == str(folder / "model")
    assert spec.data["forget"]["source"] == str(folder / "forget.jsonl")
    assert spec.data["retain"]["source"] == "embedded:retain"


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        pytest.param("budget.trials", 9, ("budget", "trials"), id="section"),
        pytest.param("adapter.scaling", 4.0, ("adapter", "scaling"), id="new-section"),
        pytest.param("name", "other", ("name",), id="top"),
    ],
)
def test_an_override_replaces_a_value(
    tmp_path: Path, key: str, value: Any, place: tuple[str, ...]
) -> None:
    plain: Any = load_sweep(write(tmp_path, values()), overrides={key: value}).plain()
    for part in place:
        plain = plain[part]
    assert plain == value


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        pytest.param("budjet.trials", "budjet: unknown key; did you mean 'budget'?", id="unknown"),
        pytest.param(
            "name.x", "--set name.x: 'name' holds a value, not a section", id="no-section"
        ),
        pytest.param(
            "space.adapter.rank",
            "--set space.adapter.rank: change the search space in the file",
            id="the-space-stays-in-the-file",
        ),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, key: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(tmp_path, values()), overrides={key: 1})
    assert expected in "\n".join(caught.value.problems)


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "9" * 64])
def test_a_run_name_is_a_plain_file_name(name: str) -> None:
    assert spec_of({"name": name}).name == name


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", ".hidden", "-flag", "a b", "a\n", "é", "x" * 65]
)
def test_any_other_run_name_is_refused(name: str) -> None:
    assert problems({"name": name})[0].startswith("name: ")


# Round trips and comparisons


RICH = {
    "start_from": [{"source": "a paper", "values": {"adapter.rank": 8}}],
    "sampler": {"name": "tpe", "seed": 7, "n_startup_trials": 3},
    "pruning": {"retain": None, "ranking": "median"},
    "stop": {"past_target": None},
    "constraints": [],
    "resources": {"max_concurrent": 2, "cpus_per_rank": 2},
    "adapter": {"scaling": 1.0},
}


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(spec_of(), id="defaults"),
        pytest.param(spec_of(RICH, space=conditional({"method.adapter_init": "fila"})), id="rich"),
    ],
)
def test_plain_values_make_the_same_sweep(spec: SweepSpec) -> None:
    plain = spec.plain()
    assert parse_sweep(plain, where="test") == spec
    assert parse_sweep(yaml.safe_load(yaml.safe_dump(plain)), where="test") == spec
    assert parse_sweep(json.loads(json.dumps(plain)), where="test") == spec


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"name": "other"}, id="name"),
        pytest.param({"budget.trials": 40}, id="trials"),
        pytest.param({"resources": {"max_concurrent": 3}}, id="resources"),
        pytest.param({"budget.max_attempts": 9}, id="attempts"),
    ],
)
def test_what_does_not_change_results_does_not_bind(changes: Mapping[str, Any]) -> None:
    assert specification_changes(spec_of().binding(), spec_of(changes).binding()) == []


@pytest.mark.parametrize(
    ("changes", "before", "now"),
    [
        pytest.param({"budget.max_steps": 7}, '"max_steps": 6', '"max_steps": 7', id="steps"),
        pytest.param({"sampler": {"seed": 5}}, '"seed": 0', '"seed": 5', id="seed"),
        pytest.param({"method.forget_loss": "ga"}, '"ihl"', '"ga"', id="method"),
        pytest.param(
            {"pruning": {"retain": {"limit": 0.2}}}, '"limit": 0.1', '"limit": 0.2', id="guard"
        ),
    ],
)
def test_a_change_that_binds_is_shown_as_a_difference(
    changes: Mapping[str, Any], before: str, now: str
) -> None:
    lines = specification_changes(spec_of().binding(), spec_of(changes).binding())
    assert lines[:2] == ["--- when the run began", "+++ now"]
    assert any(line.startswith("-") and before in line for line in lines[2:])
    assert any(line.startswith("+") and now in line for line in lines[2:])


# Binding


def test_a_trial_holds_fixed_and_proposed_values() -> None:
    spec = spec_of(
        {
            "seed": 11,
            "adapter": {"scaling": 1.5},
            "resources": {"ranks_per_trial": 2, "cpus_per_rank": 3},
            "objective": {"metric": "accuracy_closure"},
            "budget": {"trials": 1, "max_steps": 6, "probe_every": 2},
        }
    )
    trial = bind(spec, {"optimizer.learning_rate": 3e-4, "adapter.rank": 16}, where="test")
    assert isinstance(trial, TrialConfig)
    assert (trial.optimizer.learning_rate, trial.adapter.rank) == (3e-4, 16)
    assert (trial.adapter.scaling, trial.seed, trial.method.forget_loss) == (1.5, 11, "ihl")
    assert (trial.engine.ranks, trial.engine.threads) == (2, 3)
    assert (trial.selection.max_steps, trial.selection.probe_every) == (6, 2)
    assert trial.selection.metric == "accuracy_closure"
    assert trial.selection.constraints == spec.constraints
    assert trial.selection.retain_guard == spec.pruning.retain


def test_rules_that_are_switched_off_are_off_in_the_trial() -> None:
    spec = spec_of({"pruning": {"retain": None}, "stop": {"past_target": None}})
    selection = bind(spec, next(corner_proposals(spec)), where="test").selection
    assert selection.retain_guard is None and selection.past_target is None


def test_binding_leaves_the_sweep_as_it_was() -> None:
    spec = spec_of()
    before = spec.plain()
    bind(spec, {"optimizer.learning_rate": 3e-4, "adapter.rank": 16, "seed": 4}, where="test")
    assert spec.plain() == before


def test_a_proposal_that_is_no_trial_is_refused() -> None:
    proposal = {"optimizer.learning_rate": 2.0, "adapter.rank": 4}
    with pytest.raises(ConfigError, match=r"trial 3: .*\n.*optimizer\.learning_rate: .*got 2\.0"):
        bind(spec_of(), proposal, where="trial 3")


@given(
    st.lists(st.sampled_from([4, 8, 16, 32]), min_size=1, max_size=4, unique=True),
    st.floats(1e-6, 1e-3),
    st.floats(1.0, 100.0),
)
def test_corners_hold_every_choice_and_both_ends(
    ranks: list[int], low: float, factor: float
) -> None:
    spec = spec_of(
        space={
            "adapter.rank": {"categorical": ranks} | WHY,
            "optimizer.learning_rate": {"float": {"low": low, "high": low * factor}} | WHY,
        }
    )
    corners = list(corner_proposals(spec))
    assert {c["adapter.rank"] for c in corners} == set(ranks)
    assert {c["optimizer.learning_rate"] for c in corners} == {low, low * factor}


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


# What we ship


def test_search_spaces_are_shipped() -> None:
    assert any(path.name == "demo.yaml" for path in SHIPPED)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT / "search_spaces")))
def test_a_shipped_file_binds_at_every_corner_and_gives_its_reasons(path: Path) -> None:
    assert {"schema", "space"} <= set(read_yaml(path))
    spec = load_sweep(path)
    assert all(
        d.why.strip() and (d.source is None or d.source.strip()) for d in spec.space.values()
    )
    assert all(start.source.strip() for start in spec.start_from)
    for corner in corner_proposals(spec):
        bind(spec, corner, where=str(path))
    for start in spec.start_from:
        assert set(start.values) <= set(spec.space)


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
