"""How long a trial trains, when it is stopped, and which of its probes counts."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from core.config.metrics import STOP_METRIC, ConstraintMetric, ObjectiveMetric, UtilityMetric
from core.config.section import Positive, Section


class ConstraintConfig(Section):
    """An upper limit that a probe must keep to be feasible."""

    metric: ConstraintMetric
    """Name of a probe metric; drops are degradations relative to the untouched model."""
    at_most: Annotated[float, Field(ge=0.0, le=100.0)]
    """Largest allowed value; nats per token for ``*_drop``, a fraction for ``*_accuracy_drop``."""


class RetainGuardConfig(Section):
    """When a trial is stopped because retained text degrades. Patience and grace count probes."""

    metrics: Annotated[tuple[ConstraintMetric, ...], Field(min_length=1)] = (
        "retain_drop",
        "general_drop",
    )
    """Watched metrics; the guard acts when any of them is above ``limit``."""
    limit: Annotated[float, Field(ge=0.0, le=100.0)] = 0.10
    """Largest tolerated value, in nats per token for drops."""
    patience: Annotated[int, Field(ge=1, le=1000)] = 2
    """Consecutive violating probes after which the trial stops."""
    grace_steps: Annotated[int, Field(ge=0, le=1000)] = 2
    """First probes that are not counted (retained text can dip and recover)."""
    hard_limit: Annotated[float, Field(gt=0.0, le=1000.0)] = 0.50
    """A single probe above this stops the trial at once, also during grace; so does a non-finite value."""

    @model_validator(mode="after")
    def _hard_limit_is_harder(self) -> Self:
        if self.hard_limit <= self.limit:
            raise ValueError(
                f"hard_limit must exceed limit, got hard_limit={self.hard_limit} limit={self.limit}"
            )
        return self


class PastTargetConfig(Section):
    """Stop a trial that has overshot: forget cross-entropy past the target and the objective falling."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 2
    """Consecutive overshooting probes after which the trial stops."""


class StopRule(Section):
    """A level of forgetting that is enough (Jang et al., ACL 2023)."""

    metric: Annotated[str, Field(pattern=STOP_METRIC)]
    """``el_N`` for any N, ``memorization_accuracy``, ``extraction_strength`` or ``exact_memorization``: means over
    the forget rows."""
    at_most: Annotated[float, Field(ge=0.0, le=1.0)]
    """Enough is forgotten when the metric is at or below this."""


class SelectionConfig(Section):
    """How long a trial may train, and which of its probes counts. A sweep fills this in."""

    max_steps: Annotated[int, Field(ge=1, le=1_000_000)]
    """Optimiser steps of a trial that nothing stops."""
    probe_every: Positive = 1
    """Optimiser steps from one probe to the next; the last step is always probed."""
    metric: ObjectiveMetric = "forget_closure"
    """Objective, maximised; in [-1, 1], 1 when the forget set looks like text that was never seen.
    ``forget_closure_at_utility``: with the trained difference scaled back until ``utility`` is kept (UWC)."""
    tau: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Share of its original value that ``utility`` keeps in ``forget_closure_at_utility``."""
    utility: UtilityMetric = "retain_utility"
    """What is kept there: next-token accuracy, or extraction strength, of the retain set's probe rows."""
    select: Literal["best_feasible_probe", "last"] = "best_feasible_probe"
    """Which probe gives the trial its value and its adapter."""
    constraints: tuple[ConstraintConfig, ...] = ()
    """Limits that a feasible probe keeps."""
    past_target: PastTargetConfig | None = PastTargetConfig()
    """Stop on overshoot; null switches it off."""
    retain_guard: RetainGuardConfig | None = RetainGuardConfig()
    """Stop on degradation of retained text; null switches it off."""
    stop_when: tuple[StopRule, ...] = ()
    """Stop when every one of these holds; empty: never."""

    @field_validator("constraints")
    @classmethod
    def _each_metric_once(cls, value: tuple[ConstraintConfig, ...]) -> tuple[ConstraintConfig, ...]:
        names = [c.metric for c in value]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"each metric may have one limit, got two for {', '.join(twice)}")
        return value

    @model_validator(mode="after")
    def _probe_within_budget(self) -> Self:
        if self.probe_every > self.max_steps:
            raise ValueError(
                f"probe_every must not exceed max_steps, got probe_every={self.probe_every} "
                f"max_steps={self.max_steps}"
            )
        return self
