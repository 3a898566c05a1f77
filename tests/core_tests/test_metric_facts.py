"""The table of metrics holds all that a probe may hold, and agrees with the names that a file may give."""

import re
from typing import Any, get_args

import pytest

from core.config import (
    METRICS,
    STOP_METRIC,
    ConstraintMetric,
    LimitedMetric,
    ObjectiveMetric,
    UtilityMetric,
    metric_facts,
)
from core.measuring.probing import Measurement, at_utility
from core.metrics.probes import MEASURED, Level, degradation
from core.metrics.rows import ROW_METRICS

LEVELS = {name: Level(nll=2.0, accuracy=0.5) for name in MEASURED}
UNSEEN = Level(nll=3.0, accuracy=0.25)
BASELINE = LEVELS | {"target": UNSEEN, "unseen": UNSEEN}


def of_role(role: str) -> set[str]:
    return {name for name, facts in METRICS.items() if facts.role == role}


@pytest.mark.parametrize(
    ("names", "role"),
    [
        pytest.param(ObjectiveMetric, "objective", id="objective"),
        pytest.param(UtilityMetric, "utility", id="utility"),
    ],
)
def test_names_that_a_file_may_give_are_those_of_the_role(names: Any, role: str) -> None:
    assert set(get_args(names)) == of_role(role)


def test_what_may_be_limited_is_damage_and_the_utility_that_every_probe_has() -> None:
    assert set(get_args(ConstraintMetric)) == of_role("constraint") | {"retain_utility"}
    assert set(get_args(LimitedMetric)) == set(get_args(ConstraintMetric)) | {"auto"}


def test_the_pattern_of_stop_rules_is_the_stop_metrics_and_a_family() -> None:
    assert {name for name in METRICS if re.fullmatch(STOP_METRIC, name)} == of_role("stop")
    assert of_role("stop") <= set(ROW_METRICS)
    assert metric_facts("el_10").role == "stop"
    assert metric_facts("el_10").label == "extraction likelihood 10"


def test_every_metric_of_a_probe_has_facts() -> None:
    assert set(degradation(LEVELS, BASELINE)) <= set(METRICS)


def test_every_metric_at_equal_utility_has_facts() -> None:
    whole = Measurement(metrics=degradation(LEVELS, BASELINE), intervals={}, n_rows={}, sums={})
    found = at_utility(whole, whole, 0.5, {}).metrics
    assert {"forget_closure_at_utility", "calibration_factor"} <= set(found) <= set(METRICS)


def test_limits_are_in_nats_or_in_shares() -> None:
    units = {name: METRICS[name].unit for name in of_role("constraint")}
    assert units == {
        "retain_drop": "nats per token",
        "general_drop": "nats per token",
        "retain_accuracy_drop": "share of tokens",
        "general_accuracy_drop": "share of tokens",
        "retain_forgetting": "",
    }


def test_more_is_better_of_objectives_and_less_of_what_is_limited() -> None:
    closures = of_role("objective") - {"drop_at_target"}
    assert {METRICS[name].better for name in closures} == {"up"}
    assert METRICS["drop_at_target"].better == "down"
    assert {METRICS[name].better for name in of_role("constraint") | of_role("stop")} == {"down"}


def test_words_are_made_of_the_facts() -> None:
    drop, forget = METRICS["retain_drop"], METRICS["forget_perplexity"]
    assert drop.full_name == "retain drop (nats per token)"
    assert drop.description == "rise of retain cross-entropy; down is better"
    assert METRICS["accuracy_gap"].direction == "near 0 is better"
    assert (forget.direction, forget.description) == ("", forget.meaning)


@pytest.mark.parametrize("name", ["retain_dorp", "el_0", "el_10000", "el_", ""])
def test_an_unknown_metric_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"must be known by name, got {name!r}; known: forget_nll"):
        metric_facts(name)
