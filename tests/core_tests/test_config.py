"""A trial's configuration names every mistake at once, and derives what it leaves out."""

import json
import pickle
from collections.abc import Mapping
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from core.config import (
    BatchConfig,
    BatchPlan,
    DataConfig,
    ModelConfig,
    RetainGuardConfig,
    SelectionConfig,
    TrialConfig,
    parse_trial,
)
from core.config.method import ForgetLossId, RetainLossId
from core.errors import ConfigError, UserError
from core.losses import FORGET_LOSSES, RETAIN_LOSSES

VALUES: Mapping[str, Any] = {
    "model": {"source": "folder"},
    "data": {
        role: {"source": f"{role}.jsonl"} for role in ("forget", "retain", "approximate", "general")
    },
    "method": {"forget_loss": "ihl"},
    "optimizer": {"learning_rate": 1.0e-4},
    "selection": {"max_steps": 10},
}


def changed(changes: Mapping[str, Any]) -> dict[str, Any]:
    """``VALUES`` with dotted paths replaced."""
    values: dict[str, Any] = json.loads(json.dumps(VALUES))
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return values


def parse(changes: Mapping[str, Any]) -> TrialConfig:
    return parse_trial(changed(changes), where="sweep.yaml")


def problems(changes: Mapping[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigError, match=r"^sweep\.yaml: \d+ problem") as caught:
        parse(changes)
    return caught.value.problems


def test_every_problem_is_named_at_once_with_field_and_value() -> None:
    values = changed(
        {"optimizer.learning_rate": -1.0, "adapter.rank": 0, "method.forget_loss": "gaa"}
    )
    del values["selection"]["max_steps"]
    values["data"]["retain"]["colour"] = "red"
    with pytest.raises(ConfigError, match=r"^sweep\.yaml: 5 problems\n") as caught:
        parse_trial(values, where="sweep.yaml")
    text = str(caught.value)
    assert "optimizer.learning_rate: Input should be greater than 0, got -1.0." in text
    assert "adapter.rank: Input should be greater than or equal to 1, got 0." in text
    assert "method.forget_loss: unknown choice, got 'gaa'; did you mean 'ga'?" in text
    assert "selection.max_steps: required, but absent; add it." in text
    assert "data.retain.colour: unknown key" in text


def test_one_problem_is_counted_in_the_singular() -> None:
    with pytest.raises(ConfigError, match=r"^sweep\.yaml: 1 problem\n  - adapter\.rank: "):
        parse({"adapter.rank": "many"})


def test_the_error_survives_the_way_between_processes() -> None:
    error = ConfigError("sweep.yaml", ["a: b", "c: d"])
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, ConfigError)
    assert issubclass(ConfigError, UserError)
    assert (str(copy), copy.where, copy.problems) == (str(error), error.where, error.problems)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "field", ["optimizer.learning_rate", "method.retain_weight", "selection.retain_guard.limit"]
)
def test_a_number_that_is_not_finite_is_refused(field: str, value: float) -> None:
    values = changed({})
    *parents, last = field.split(".")
    place = values
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    with pytest.raises(ConfigError, match=rf"{field}: Input should be .*, got {value}"):
        parse_trial(values, where="sweep.yaml")


@pytest.mark.parametrize(
    ("given_numbers", "ranks", "expected"),
    [
        pytest.param({"global_batch_size": 8}, 1, (8, 8, 1), id="one-pass"),
        pytest.param({"global_batch_size": 8}, 4, (8, 2, 1), id="ranks-share"),
        pytest.param(
            {"global_batch_size": 8, "micro_batch_size": 2}, 1, (8, 2, 4), id="steps-derived"
        ),
        pytest.param(
            {"global_batch_size": 8, "micro_batch_size": 2}, 2, (8, 2, 2), id="steps-derived-ranks"
        ),
        pytest.param(
            {"global_batch_size": 8, "gradient_accumulation_steps": 4},
            2,
            (8, 1, 4),
            id="micro-derived",
        ),
        pytest.param(
            {"micro_batch_size": 3, "gradient_accumulation_steps": 2},
            2,
            (12, 3, 2),
            id="global-derived",
        ),
        pytest.param({"micro_batch_size": 3}, 2, (6, 3, 1), id="only-micro"),
        pytest.param({"gradient_accumulation_steps": 2}, 1, (16, 8, 2), id="only-steps"),
        pytest.param({}, 1, (8, 8, 1), id="nothing"),
    ],
)
def test_the_missing_batch_numbers_are_derived(
    given_numbers: dict[str, int], ranks: int, expected: tuple[int, int, int]
) -> None:
    plan = BatchPlan.derive(BatchConfig(**given_numbers), ranks=ranks)
    assert expected == (
        plan.global_batch_size,
        plan.micro_batch_size,
        plan.gradient_accumulation_steps,
    )


@given(
    micro=st.integers(1, 16),
    steps=st.integers(1, 16),
    ranks=st.integers(1, 8),
    left_out=st.integers(0, 2),
)
@settings(deadline=None)
def test_any_two_batch_numbers_give_the_third(
    micro: int, steps: int, ranks: int, left_out: int
) -> None:
    numbers = {
        "global_batch_size": micro * steps * ranks,
        "micro_batch_size": micro,
        "gradient_accumulation_steps": steps,
    }
    kept = {k: v for i, (k, v) in enumerate(numbers.items()) if i != left_out}
    plan = BatchPlan.derive(BatchConfig(**kept), ranks=ranks)
    assert plan.model_dump() == numbers | {"ranks": ranks}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"batch.global_batch_size": 8, "batch.micro_batch_size": 3}, id="micro"),
        pytest.param({"batch.global_batch_size": 8, "engine.ranks": 3}, id="ranks"),
        pytest.param({"batch.global_batch_size": 2, "engine.ranks": 4}, id="fewer-rows-than-ranks"),
        pytest.param(
            {"batch.global_batch_size": 9, "batch.gradient_accumulation_steps": 2}, id="steps"
        ),
    ],
)
def test_batch_numbers_that_do_not_divide_are_refused(changes: dict[str, int]) -> None:
    (line,) = problems(changes)
    assert "batch.global_batch_size: must equal micro_batch_size x" in line
    assert f"got {changes['batch.global_batch_size']} with" in line


def test_three_batch_numbers_are_one_too_many() -> None:
    (line,) = problems(
        {
            "batch.global_batch_size": 8,
            "batch.micro_batch_size": 2,
            "batch.gradient_accumulation_steps": 4,
        }
    )
    assert line.startswith("batch: give two of global_batch_size, micro_batch_size")


def test_the_hard_limit_must_exceed_the_limit() -> None:
    (line,) = problems({"selection.retain_guard": {"limit": 0.5, "hard_limit": 0.5}})
    assert (
        "selection.retain_guard: hard_limit must exceed limit, got hard_limit=0.5 limit=0.5" in line
    )
    assert RetainGuardConfig(limit=0.5, hard_limit=0.51).hard_limit == 0.51


def test_a_schedule_with_a_horizon_needs_the_last_probe() -> None:
    (line,) = problems({"optimizer.schedule": "linear"})
    assert "needs selection.select: last, got select=best_feasible_probe" in line
    assert parse({"optimizer.schedule": "linear", "selection.select": "last"})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        pytest.param(
            {"adapter.kind": "full", "method.adapter_init": "fila"},
            "method.adapter_init: adapter.kind: full has no adapter to initialise",
            id="full-has-no-factors",
        ),
        pytest.param(
            {"adapter.kind": "full", "method.forget_loss": "residual"},
            "method.forget_loss: residual aligns the adapter's output and needs adapter.kind: lora",
            id="full-has-no-residual",
        ),
        pytest.param(
            {"method.forget_loss": "residual", "engine.zero_stage": 3},
            "engine.zero_stage: residual alignment needs whole weights on each rank",
            id="residual-under-zero-3",
        ),
        pytest.param(
            {
                "adapter.kind": "full",
                "engine.zero_stage": 3,
                "selection.metric": "forget_closure_at_utility",
            },
            "engine.zero_stage: forget_closure_at_utility of adapter.kind: full needs whole weights",
            id="full-calibration-under-zero-3",
        ),
        pytest.param(
            {
                "engine.zero_stage": 3,
                "selection.stop_when": [{"metric": "el_10", "at_most": 0.1}],
            },
            "engine.zero_stage: the stop rule el_N needs whole weights",
            id="el-under-zero-3",
        ),
        pytest.param(
            {"method.forget_loss": "pdu", "method.retain_loss": "kl"},
            "method.retain_loss: pdu limits the retain cross-entropy and needs nll, got kl",
            id="dual-without-nll",
        ),
        pytest.param(
            {"batch": {"whole_forget_set": True, "global_batch_size": 8}},
            "whole_forget_set takes the place of global_batch_size",
            id="two-batch-sizes",
        ),
        pytest.param(
            {"selection.stop_when": [{"metric": "el_0", "at_most": 0.1}]},
            "selection.stop_when.0.metric",
            id="el-of-nothing",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes: Mapping[str, Any], problem: str) -> None:
    assert any(problem in line for line in problems(changes))


def test_cross_field_problems_are_named_on_a_line_each() -> None:
    schedule, batch = problems(
        {"optimizer.schedule": "linear", "batch.micro_batch_size": 3, "batch.global_batch_size": 8}
    )
    assert schedule.startswith("optimizer.schedule: ")
    assert batch.startswith("batch.global_batch_size: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"selection.probe_every": 11},
            "probe_every must not exceed max_steps, got probe_every=11 max_steps=10",
        ),
        (
            {
                "selection.constraints": [
                    {"metric": "retain_drop", "at_most": x} for x in (0.1, 0.2)
                ]
            },
            "each metric may have one limit, got two for retain_drop",
        ),
        (
            {"engine.zero_stage": 0, "engine.offload": "optimizer"},
            "offload=optimizer needs zero_stage >= 1, got zero_stage=0",
        ),
        (
            {"engine.zero_stage": 2, "engine.offload": "parameters"},
            "offload=parameters needs zero_stage >= 3, got zero_stage=2",
        ),
        (
            {"data.forget.fields": {"text": "a", "messages": "b"}},
            "give either text, or both prompt and answer",
        ),
        ({"data.forget.fields": {"prompt": "q"}}, "give either text, or both prompt and answer"),
        (
            {"data.forget.fields": {"text": "t", "prompt": "q", "answer": "a"}},
            "give either text, or both prompt and answer",
        ),
        (
            {"data.forget.fields": {"text": "t", "answer": "a"}},
            "give either text, or both prompt and answer",
        ),
    ],
)
def test_a_rule_across_fields_is_stated_with_its_values(
    changes: dict[str, Any], message: str
) -> None:
    (line,) = problems(changes)
    assert message in line


def test_a_config_is_frozen() -> None:
    config = parse({})
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]


def test_a_config_travels_between_processes_and_serves_as_a_key() -> None:
    config = parse({"selection.constraints": [{"metric": "retain_drop", "at_most": 0.1}]})
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert {config: 1, config.model: 2, config.data: 3}[copy] == 1
    assert {config.model: 2}[copy.model] == 2
    assert {config.data: 3}[copy.data] == 3
    assert hash(ModelConfig(source="a")) != hash(ModelConfig(source="b"))
    assert parse({"data.split_seed": 1}).data != config.data
    assert isinstance(copy.data, DataConfig)


@given(
    learning_rate=st.floats(1e-12, 1.0),
    exponent=st.floats(0.0, 4.0),
    limit=st.floats(0.0, 0.49),
    seed=st.integers(0, 2**31 - 1),
)
@settings(deadline=None, max_examples=30)
def test_what_is_dumped_as_yaml_reads_back_equal(
    learning_rate: float, exponent: float, limit: float, seed: int
) -> None:
    config = parse(
        {
            "optimizer.learning_rate": learning_rate,
            "fisher.exponent": exponent,
            "selection.retain_guard.limit": limit,
            "selection.constraints": [{"metric": "general_drop", "at_most": limit}],
            "data.forget.fields": {"prompt": "q", "answer": "a"},
            "seed": seed,
        }
    )
    text = yaml.safe_dump(config.model_dump(mode="json"))
    assert parse_trial(yaml.safe_load(text), where="dump") == config
    assert TrialConfig.model_validate_json(config.model_dump_json()) == config


def test_the_literals_are_the_keys_of_the_loss_mappings() -> None:
    assert get_args(ForgetLossId) == tuple(FORGET_LOSSES)
    assert get_args(RetainLossId) == tuple(RETAIN_LOSSES)


def test_a_study_s_own_fields_have_no_default() -> None:
    assert TrialConfig.model_fields["optimizer"].is_required()
    assert SelectionConfig.model_fields["max_steps"].is_required()


def test_every_field_is_described() -> None:
    def undescribed(model: Any) -> list[str]:
        return [f"{model.__name__}.{n}" for n, f in model.model_fields.items() if not f.description]

    sections = [
        f.annotation
        for f in TrialConfig.model_fields.values()
        if hasattr(f.annotation, "model_fields")
    ]
    assert len(sections) == 9
    assert [name for section in sections for name in undescribed(section)] == []


# Limits


@pytest.mark.parametrize(
    ("constraint", "rule"),
    [
        pytest.param(
            {"metric": "retain_drop", "at_least": 0.1},
            "retain_drop needs at_most alone, got at_least=0.1",
            id="damage-from-below",
        ),
        pytest.param(
            {"metric": "retain_utility", "at_most": 0.9},
            "retain_utility needs at_least alone, got at_most=0.9",
            id="utility-from-above",
        ),
        pytest.param(
            {"metric": "retain_forgetting"},
            "retain_forgetting needs at_most alone, got neither",
            id="no-limit",
        ),
        pytest.param(
            {"metric": "retain_utility", "at_least": 0.9, "at_most": 1.0},
            "retain_utility needs at_least alone, got at_most=1.0 at_least=0.9",
            id="both",
        ),
    ],
)
def test_a_limit_lies_in_the_direction_of_its_metric(constraint: dict[str, Any], rule: str) -> None:
    (line,) = problems({"selection.constraints": [constraint]})
    assert line == f"selection.constraints.0: {rule}."


def test_a_constraint_is_written_with_its_own_limit_only() -> None:
    found = parse(
        {
            "selection.constraints": [
                {"metric": "general_drop", "at_most": 0.1},
                {"metric": "retain_utility", "at_least": 0.95},
            ]
        }
    )
    plain = found.model_dump(mode="json")["selection"]["constraints"]
    assert plain == [
        {"metric": "general_drop", "at_most": 0.1},
        {"metric": "retain_utility", "at_least": 0.95},
    ]
    assert [c.words for c in found.selection.constraints] == ["at most 0.1", "at least 0.95"]


@pytest.mark.parametrize(
    "changes",
    [
        {"selection.constraints": [{"metric": "auto", "at_most": 0.1}]},
        {"selection.retain_guard.metrics": ["auto", "general_drop"]},
    ],
)
def test_a_trial_names_its_metrics_since_only_a_sweep_can_choose(changes: dict[str, Any]) -> None:
    (line,) = problems(changes)
    assert "auto is resolved when a sweep begins, by its baseline; name a metric" in line


def test_the_last_probe_cannot_count_while_overshoot_may_end_the_trial_before_it() -> None:
    both = parse({"selection.select": "last"}).selection
    assert both.horizon_problem is not None
    assert "with select: last set past_target: null" in both.horizon_problem
    assert (
        parse({"selection.select": "last", "selection.past_target": None}).selection.horizon_problem
        is None
    )
    assert parse({}).selection.horizon_problem is None
