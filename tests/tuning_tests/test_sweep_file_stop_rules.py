"""Stop rules of a sweep file reach its trials, and wrong ones are refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from command_line import ROOT, Command, WriteSpec, ends_refused
from small_sweep import fixed_rate_values

from core.config import StopRule
from core.errors import ConfigError
from tuning.files import load_sweep
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
