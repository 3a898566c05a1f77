"""Stop rules of a sweep file reach its trials, and wrong ones are refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from command_line import ROOT, Command, WriteSpec, ends_refused
from small_sweep import fixed_rate_values

from core.config import NoEffectConfig, StopRule, parse_trial
from core.errors import ConfigError
from tuning.files import load_sweep
from tuning.run import Run, load_run
from tuning.space import bind, corner_proposals
from tuning.validate import validate_file

pytestmark = pytest.mark.usefixtures("own_cache")


def test_stop_rules_of_a_file_reach_the_trial(write_spec: WriteSpec) -> None:
    rules = {"el_10": 0.0499, "memorization_accuracy": 0.2994}
    spec = load_sweep(write_spec(fixed_rate_values({"stop": {"when": rules}})))
    for proposal in corner_proposals(spec):
        selection = bind(spec, proposal, where="test").selection
        assert selection.stop_when == tuple(
            StopRule(metric=name, at_most=value) for name, value in rules.items()
        )
        assert selection.past_target is not None  # the other rule stays


def test_without_stop_rules_a_trial_has_none(write_spec: WriteSpec) -> None:
    spec = load_sweep(write_spec(fixed_rate_values({})))
    assert bind(spec, next(iter(corner_proposals(spec))), where="test").selection.stop_when == ()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        pytest.param("el_0", 0.1, ["stop.when.el_0", "got 'el_0'"], id="el-of-nothing"),
        pytest.param("rouge", 0.1, ["stop.when.rouge", "memorization_accuracy|", "got 'rouge'"], id="unknown"),
        pytest.param("retain_drop", 0.1, ["stop.when.retain_drop", "got 'retain_drop'"], id="not-of-forgetting"),
        pytest.param("el_10", 1.5, ["stop.when.el_10: ", "less than or equal to 1, got 1.5"], id="above-one"),
        pytest.param("el_10", "low", ["stop.when.el_10: ", "got 'low'"], id="no-number"),
    ],
)  # fmt: skip
def test_a_wrong_stop_rule_is_refused(
    tune: Command, write_spec: WriteSpec, name: str, value: Any, expected: list[str]
) -> None:
    file = write_spec(fixed_rate_values({"stop": {"when": {name: value}}}))
    ends_refused(tune("validate", file), "file.yaml: 1 problem", *expected)
    with pytest.raises(ConfigError, match=r"file\.yaml: 1 problem"):
        load_sweep(file)


def test_the_shipped_file_of_tdec_stops_at_the_papers_levels() -> None:
    stop = yaml.safe_load((ROOT / "search_spaces" / "tdec.yaml").read_text("utf-8"))["stop"]["when"]
    assert validate_file(ROOT / "search_spaces" / "tdec.yaml")
    assert stop == {"el_10": 0.0499, "memorization_accuracy": 0.2994}


# Landing, and no effect


@pytest.mark.parametrize(
    ("changes", "lands"),
    [
        pytest.param({}, True, id="by default"),
        pytest.param({"stop": {"landing": False}}, False, id="switched off"),
        pytest.param({"stop": {"past_target": None}}, False, id="nothing stops overshoot"),
        pytest.param({"stop": {"past_target": None, "landing": True}}, True, id="asked for"),
        pytest.param({"objective": {"metric": "drop_at_target"}}, True, id="drop at target"),
        pytest.param({"objective": {"metric": "accuracy_closure"}}, False, id="another target"),
        pytest.param(
            {"objective": {"metric": "forget_closure_at_utility"}}, False, id="scaled already"
        ),
    ],
)
def test_a_trial_lands_where_its_objective_asks_for_it(
    write_spec: WriteSpec, changes: dict[str, Any], lands: bool
) -> None:
    spec = load_sweep(write_spec(fixed_rate_values(changes)))
    trial = bind(spec, next(iter(corner_proposals(spec))), where="test")
    assert trial.lands is lands
    again = parse_trial(trial.model_dump(mode="json"), where="trial.yaml")
    assert again.lands is lands


def test_a_trial_file_that_does_not_say_so_does_not_land(write_spec: WriteSpec) -> None:
    """It is of a version that did not: it gives what it gave."""
    spec = load_sweep(write_spec(fixed_rate_values({})))
    values = bind(spec, next(iter(corner_proposals(spec))), where="test").model_dump(mode="json")
    del values["selection"]["landing"]
    assert not parse_trial(values, where="trial.yaml").lands


def test_a_run_that_does_not_say_so_did_not_land_and_goes_on_so(sample_run: Run) -> None:
    file = sample_run.path / "spec.yaml"
    values = yaml.safe_load(file.read_text("utf-8"))
    assert load_run(sample_run.path).spec.stop.landing == "auto"
    del values["sweep"]["stop"]["landing"]
    file.write_text(yaml.safe_dump(values), "utf-8")
    assert load_run(sample_run.path).spec.stop.landing is False


def test_weights_that_lie_apart_are_not_scaled(write_spec: WriteSpec) -> None:
    apart = {
        "adapter": {"kind": "full"},
        "engine": {"zero_stage": 3},
        "method.adapter_init": "lora",
    }
    rates = {"optimizer.learning_rate": {"categorical": [1e-5, 1e-4], "why": "two rates"}}
    values = fixed_rate_values(apart) | {"space": rates}
    del values["optimizer"]
    spec = load_sweep(write_spec(values))
    assert not bind(spec, {"optimizer.learning_rate": 1e-5}, where="test").lands


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            {"stop": {"landing": True}, "objective": {"metric": "accuracy_closure"}},
            "landing: a trial lands where its forget cross-entropy is on target, which accuracy_closure does not ask",
            id="another-target",
        ),
        pytest.param(
            {"stop": {"landing": False}, "objective": {"metric": "drop_at_target"}},
            "landing: drop_at_target compares trials on the target, which few hit without landing, got landing=false",
            id="without-landing",
        ),
        pytest.param(
            {"objective": {"metric": "drop_at_target", "direction": "maximize"}},
            "objective: direction: drop_at_target has direction minimize, got maximize; leave it out",
            id="direction",
        ),
        pytest.param(
            {"stop": {"no_effect": {"after": 0.0}}}, "stop.no_effect.after: ", id="no-share"
        ),
    ],
)
def test_rules_that_contradict_the_objective_are_refused(
    tune: Command, write_spec: WriteSpec, changes: dict[str, Any], expected: str
) -> None:
    ends_refused(tune("validate", write_spec(fixed_rate_values(changes))), expected)


def test_no_effect_reaches_the_trial_and_is_off_unless_given(write_spec: WriteSpec) -> None:
    for stop, found in (({}, None), ({"no_effect": {"after": 0.4}}, NoEffectConfig(after=0.4))):
        spec = load_sweep(write_spec(fixed_rate_values({"stop": stop})))
        assert spec.trial_selection().no_effect == found
