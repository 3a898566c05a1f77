"""How long a trial may go without a step, and when something else than a step may be done."""

from __future__ import annotations

from typing import Any

import pytest
from analytic_study import spec_of

from core.config import SelectionConfig
from tuning.limits import (
    LEAST_S,
    LONG_S,
    Course,
    HungRankError,
    Limits,
    TrialTimeoutError,
    Watch,
)
from tuning.space import bind, corner_proposals


def rules(**budget: Any) -> SelectionConfig:
    spec = spec_of(budget={"trials": 1, "max_steps": 9} | budget)
    return bind(spec, next(corner_proposals(spec)), where="test").selection


def parts(course: Course, n: int, *, probes: tuple[int, ...] = ()) -> list[str]:
    """What comes before each of the first steps."""
    found: list[str] = []
    for step in range(1, n + 1):
        found.append(course.next_part)
        course.stepped()
        if step in probes:
            course.probed(step)
    return found


def test_only_where_a_probe_or_a_checkpoint_is_due_more_than_a_step_may_be_done() -> None:
    course = Course(rules(probe_every=4, checkpoint_every=3), is_resumed=False)
    assert parts(course, 6) == ["load", "step", "step", "pause", "pause", "step"]
    assert parts(Course(rules(), is_resumed=False), 3) == ["load", "pause", "pause"]
    resumed = Course(rules(probe_every=4), is_resumed=True)
    assert parts(resumed, 3) == ["load", "pause", "pause"]
    after = Course(rules(probe_every=4), is_resumed=False)
    assert parts(after, 6, probes=(4,)) == ["load", "step", "step", "step", "pause", "step"]


def test_a_step_has_twenty_times_the_slowest_and_the_first_half_an_hour() -> None:
    watch = Watch(Limits())
    assert watch.timeout_s("load") is None
    assert watch.timeout_s("step") == watch.timeout_s("pause") == LONG_S
    watch.took("step", 1.0)
    assert watch.timeout_s("step") == LEAST_S
    watch.took("step", 60.0)
    watch.took("step", 2.0)
    assert watch.timeout_s("step") == 20 * 60.0


def test_what_the_file_says_holds_for_steps_not_for_what_is_between_them() -> None:
    watch = Watch(Limits(hang_s=5.0))
    watch.took("step", 60.0)
    watch.took("pause", 0.1)
    assert watch.timeout_s("step") == 5.0
    assert watch.timeout_s("pause") == LONG_S


def test_the_limit_of_the_attempt_holds_for_all_that_it_does() -> None:
    watch = Watch(Limits(trial_s=1e-9))
    assert watch.timeout_s("load") == watch.timeout_s("step") == 0.0
    err = watch.expired("load", silent=(), size=1)
    with pytest.raises(TrialTimeoutError, match="longer than budget.trial_timeout_s = 1e-09 s"):
        raise err
    hung = Watch(Limits(hang_s=5.0)).expired("pause", silent=[1], size=2)
    with pytest.raises(HungRankError, match="rank 1 of 2 did not come to the end of a pause"):
        raise hung
