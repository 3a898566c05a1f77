"""On which scale damage to retained text is counted, and which limits the baseline makes senseless."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import SelectionConfig
from core.measuring.scale import RetainScale, limit_warnings
from core.metrics.probes import Level, degradation, retain_forgetting

TOFU = {
    "retain_nll": 0.12,
    "unseen_nll": 2.62,
    "retain_accuracy": 0.97,
    "unseen_accuracy": 0.47,
    "general_accuracy": 0.4,
}
"""SmolLM2 taught TOFU's forget05 and 600 retain rows."""

ORDINARY = {
    "retain_nll": 4.315,
    "unseen_nll": 4.095,
    "retain_accuracy": 0.239,
    "unseen_accuracy": 0.305,
    "general_accuracy": 0.269,
}
"""SmolLM2 as published, and the demo's texts."""


def selection(*constraints: dict[str, Any], guard: dict[str, Any] | None = None) -> SelectionConfig:
    return SelectionConfig.model_validate(
        {"max_steps": 9, "constraints": constraints, "retain_guard": guard}
    )


# The metric


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        pytest.param(0.12, 0.0, id="as-before"),
        pytest.param(0.37, 0.1, id="a-tenth"),
        pytest.param(1.10, 0.392, id="the-trial-of-closure-0.48"),
        pytest.param(2.62, 1.0, id="like-unseen-text"),
        pytest.param(5.12, 2.0, id="worse-than-unseen-text"),
        pytest.param(0.07, -0.02, id="better-than-before"),
    ],
)
def test_the_share_by_hand(now: float, expected: float) -> None:
    assert retain_forgetting(now, 0.12, 2.62) == pytest.approx(expected)


def test_without_an_advantage_there_is_no_share() -> None:
    assert retain_forgetting(4.4, 4.315, 4.095) is None
    assert retain_forgetting(1.0, 1.0, 1.29) is None
    assert retain_forgetting(1.15, 1.0, 1.3) == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_model_has_no_finite_share(bad: float) -> None:
    found = retain_forgetting(bad, 0.1, 2.0)
    assert found is not None and math.isnan(found)


def test_a_probe_holds_the_share_only_where_there_is_one() -> None:
    now = {name: Level(nll=1.0, accuracy=0.5) for name in ("forget", "retain", "general")}
    before = {name: Level(nll=0.5, accuracy=0.9) for name in ("forget", "retain", "general")}
    target = {"target": Level(nll=3.0, accuracy=0.3)}
    known = degradation(now, before | target | {"unseen": Level(nll=2.5, accuracy=0.4)})
    assert known["retain_forgetting"] == pytest.approx(0.25)
    assert known["retain_drop"] == 0.5
    ordinary = degradation(now, before | target | {"unseen": Level(nll=0.6, accuracy=0.4)})
    assert "retain_forgetting" not in ordinary
    assert set(known) - set(ordinary) == {"retain_forgetting"}


# The choice


def test_a_retain_set_that_is_known_by_heart_is_judged_by_its_share() -> None:
    scale = RetainScale.of(TOFU)
    assert scale.metric == "retain_forgetting"
    assert scale.advantage == pytest.approx(2.5)
    assert scale.why == (
        "auto is retain_forgetting: the retain set is known by heart (cross-entropy 0.12, unseen text of its kind "
        "2.62), so damage is counted as the share of this advantage of 2.50 nats that is lost"
    )


def test_ordinary_text_is_judged_in_nats() -> None:
    scale = RetainScale.of(ORDINARY)
    assert scale.metric == "retain_drop"
    assert scale.why == (
        "auto is retain_drop: the retain set is ordinary text (cross-entropy 4.32, unseen text of its kind 4.09; "
        "known by heart is at most 50% of that), so damage is counted in nats"
    )


@pytest.mark.parametrize(
    ("retain", "unseen", "metric"),
    [
        pytest.param(1.0, 2.0, "retain_forgetting", id="half"),
        pytest.param(1.01, 2.0, "retain_drop", id="more-than-half"),
        pytest.param(0.2, 0.5, "retain_forgetting", id="a-small-gap"),
        pytest.param(0.1, 0.39, "retain_drop", id="too-small-a-gap"),
        pytest.param(2.0, 1.0, "retain_drop", id="harder-than-unseen"),
    ],
)
def test_the_boundary_of_the_choice(retain: float, unseen: float, metric: str) -> None:
    assert RetainScale(retain=retain, unseen=unseen).metric == metric


def test_the_split_on_which_the_retain_set_is_known_least_decides() -> None:
    known = {"retain_nll": 0.9, "unseen_nll": 2.0}
    unknown = {"retain_nll": 1.1, "unseen_nll": 2.0}
    assert RetainScale.of(known, unknown) == RetainScale(retain=1.1, unseen=2.0)
    assert RetainScale.of(unknown, known).metric == "retain_drop"
    assert RetainScale.of(known, known).metric == "retain_forgetting"


@given(retain=st.floats(0.0, 12.0), unseen=st.floats(0.0, 12.0))
def test_a_share_is_defined_wherever_it_is_chosen(retain: float, unseen: float) -> None:
    if RetainScale(retain=retain, unseen=unseen).metric == "retain_forgetting":
        assert retain_forgetting(retain, retain, unseen) == 0.0


# Warnings


def test_a_tenth_of_a_nat_is_far_too_little_on_a_memorised_retain_set() -> None:
    limits = selection(
        {"metric": "retain_drop", "at_most": 0.1},
        guard={"metrics": ["retain_drop"], "limit": 0.1},
    )
    (warning,) = limit_warnings(limits, TOFU)  # constraint and guard are named once
    assert warning.startswith(
        "constraints: the limit of retain_drop, 0.1 from the untouched model, lies far below what the baseline makes "
        "sensible: it is 4.0% of the advantage that the retain set has over unseen text"
    )
    assert limit_warnings(limits, ORDINARY) == []


@pytest.mark.parametrize(
    ("metric", "limit", "baseline", "side"),
    [
        pytest.param("retain_forgetting", {"at_most": 0.10}, TOFU, None, id="share"),
        pytest.param("retain_forgetting", {"at_most": 0.01}, TOFU, "below", id="share-tiny"),
        pytest.param("retain_forgetting", {"at_most": 0.80}, TOFU, "above", id="share-huge"),
        pytest.param("retain_drop", {"at_most": 0.25}, TOFU, None, id="nats-as-a-tenth"),
        pytest.param("retain_drop", {"at_most": 2.0}, TOFU, "above", id="nats-huge"),
        pytest.param("retain_accuracy_drop", {"at_most": 0.05}, TOFU, None, id="accuracy"),
        pytest.param("retain_accuracy_drop", {"at_most": 0.01}, TOFU, "below", id="accuracy-tiny"),
        pytest.param("retain_utility", {"at_least": 0.95}, TOFU, None, id="utility"),
        pytest.param("retain_utility", {"at_least": 0.40}, TOFU, "above", id="utility-low"),
        pytest.param("general_drop", {"at_most": 0.10}, TOFU, None, id="general"),
        pytest.param("general_drop", {"at_most": 3.0}, TOFU, "above", id="general-huge"),
        pytest.param("retain_drop", {"at_most": 0.001}, ORDINARY, "below", id="ordinary-tiny"),
        pytest.param("retain_drop", {"at_most": 1.0}, ORDINARY, "above", id="ordinary-huge"),
        pytest.param("retain_accuracy_drop", {"at_most": 0.2}, ORDINARY, "above", id="all-of-it"),
        pytest.param("retain_utility", {"at_least": 0.95}, ORDINARY, None, id="ordinary-utility"),
    ],
)
def test_a_limit_is_warned_of_where_it_lies_far_off(
    metric: str, limit: dict[str, float], baseline: dict[str, float], side: str | None
) -> None:
    found = limit_warnings(selection({"metric": metric} | limit), baseline)
    assert [f"lies far {side} what" in warning for warning in found] == [True] * (side is not None)


def test_a_guard_of_its_own_is_named() -> None:
    limits = selection(guard={"metrics": ["retain_drop"], "limit": 0.05})
    (warning,) = limit_warnings(limits, TOFU)
    assert warning.startswith("the retain guard: the limit of retain_drop, 0.05 ")
