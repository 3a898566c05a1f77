"""How long a trial trains, when it is stopped, and which of its probes counts."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from core.config.metrics import (
    AUTO,
    METRICS,
    STOP_METRIC,
    LimitedMetric,
    ObjectiveMetric,
    UtilityMetric,
)
from core.config.section import Positive, Section

_AT_UTILITY: ObjectiveMetric = "forget_closure_at_utility"
LANDING_METRICS: Final[tuple[ObjectiveMetric, ...]] = ("forget_closure", "drop_at_target")
"""Objectives under which a trial may be scaled back onto its target."""


def _more_is_better(metric: LimitedMetric) -> bool:
    return metric != AUTO and METRICS[metric].better == "up"


class ConstraintConfig(Section):
    """A limit that a probe must keep to be feasible: ``at_most`` of a damage, ``at_least`` of a utility."""

    metric: LimitedMetric
    """Name of a probe metric; drops are degradations relative to the untouched model."""
    at_most: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    """Largest allowed value; nats per token for ``*_drop``, a fraction for ``*_accuracy_drop`` and
    ``retain_forgetting``."""
    at_least: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Smallest allowed value of ``retain_utility``, a fraction of what it was."""

    @model_validator(mode="after")
    def _limit_in_the_metric_s_direction(self) -> Self:
        fitting, other = ("at_least", "at_most") if self.is_floor else ("at_most", "at_least")
        if getattr(self, fitting) is None or getattr(self, other) is not None:
            given = {k: getattr(self, k) for k in ("at_most", "at_least")}
            shown = " ".join(f"{k}={v}" for k, v in given.items() if v is not None)
            raise ValueError(f"{self.metric} needs {fitting} alone, got {shown or 'neither'}")
        return self

    @model_serializer(mode="wrap")
    def _with_its_own_limit_only(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: Mapping[str, Any] = handler(self)
        return {name: value for name, value in plain.items() if value is not None}

    @property
    def is_floor(self) -> bool:
        """Whether values must not fall below the limit, instead of not rising above it."""
        return _more_is_better(self.metric)

    @property
    def limit(self) -> float:
        """The limit, of either direction."""
        found = self.at_least if self.is_floor else self.at_most
        assert found is not None  # validated
        return found

    @property
    def words(self) -> str:
        """The limit with its direction."""
        return f"{'at least' if self.is_floor else 'at most'} {self.limit:g}"

    @property
    def tolerance(self) -> float:
        """How far a probe may lie from the untouched model."""
        return 1.0 - self.limit if self.is_floor else self.limit

    def excess(self, value: float) -> float:
        """How far ``value`` lies beyond the limit; positive when it is broken, NaN for NaN."""
        return self.limit - value if self.is_floor else value - self.limit


class RetainGuardConfig(Section):
    """When a trial is stopped because retained text degrades. Patience and grace count probes."""

    metrics: Annotated[tuple[LimitedMetric, ...], Field(min_length=1)] = (
        "retain_drop",
        "general_drop",
    )
    """Watched metrics; the guard acts when any of them is above ``limit``."""
    limit: Annotated[float, Field(ge=0.0, le=100.0)] = 0.10
    """Largest tolerated value: in nats per token for drops, a share for the others; of ``retain_utility``
    the largest fall below 1."""
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

    @property
    def first_verdict(self) -> int:
        """The first probe at which the guard can act on ``limit``, counted from 1."""
        return self.grace_steps + self.patience

    def bound(self, metric: LimitedMetric, tolerated: float) -> float:
        """The value of ``metric`` at which ``tolerated``, the limit or the hard limit, is used up."""
        return 1.0 - tolerated if _more_is_better(metric) else tolerated

    def excess(self, metric: LimitedMetric, value: float, tolerated: float) -> float:
        """How far ``value`` lies beyond that bound; positive when it is broken."""
        bound = self.bound(metric, tolerated)
        return bound - value if _more_is_better(metric) else value - bound


class PastTargetConfig(Section):
    """Stop a trial that has overshot: forget cross-entropy past the target and the objective falling."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 2
    """Consecutive overshooting probes after which the trial stops."""


class NoEffectConfig(Section):
    """Stop a trial that forgets nothing: its closure cannot be told from none for a share of its budget."""

    after: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of the steps that follow ``optimizer.warmup_steps`` after which it is decided."""
    at_most: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.02
    """A closure that counts as none: at every probe so far the lower end of its 95 % interval is at or below it."""


class StopRule(Section):
    """A level of forgetting that is enough (Jang et al., ACL 2023)."""

    metric: Annotated[str, Field(pattern=STOP_METRIC)]
    """``el_N`` for any N, ``memorization_accuracy``, ``extraction_strength`` or ``exact_memorization``: means over
    the forget rows."""
    at_most: Annotated[float, Field(ge=0.0, le=1.0)]
    """Enough is forgotten when the metric is at or below this."""


def _off_as_written(value: object) -> object:
    """YAML reads ``off`` as false."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if value is False:
        return "off"
    if value not in ("auto", "off") and not (is_number and value >= 1):  # type: ignore[operator]
        raise ValueError("must be auto, off or a whole number of steps from 1 on")
    return value


CheckpointEvery = Annotated[int | Literal["auto", "off"], BeforeValidator(_off_as_written)]
"""Optimiser steps from one checkpoint to the next."""

RowsPerProbe = Literal["auto", "all", "adaptive"]
"""How many rows a probe measures."""


class SelectionConfig(Section):
    """How long a trial may train, and which of its probes counts. A sweep fills this in."""

    max_steps: Annotated[int, Field(ge=1, le=1_000_000)]
    """Optimiser steps of a trial that nothing stops."""
    probe_every: Positive = 1
    """Optimiser steps from one probe to the next; the last step is always probed."""
    rows_per_probe: RowsPerProbe = "auto"
    """``all``: a probe measures every row. ``adaptive``: the forget set whole, retain and general rows until every
    limit is decided, and all of them where the probe is the best so far or ends the trial. ``auto``: adaptive on a
    CPU, where rows cost time; all on a GPU, and for ``forget_closure_at_utility``."""
    skip_probes: bool | Literal["auto"] = "auto"
    """Leave out the next probe while target and limits are far: extrapolated over two probes, neither is reached.
    It counts, for patience and grace, as one that kept every limit. A probe that the next one foreseeably betters
    is no candidate for the best. ``auto``: true, but for ``forget_closure_at_utility`` and with stop rules on other
    metrics, which no extrapolation covers."""
    checkpoint_every: CheckpointEvery = "auto"
    """Optimiser steps from one checkpoint to the next: a trial that is killed loses at most as many. ``auto``: at a
    probe where a minute has passed since the last one and writing takes at most 3 % of the time; none in a shorter
    trial. ``off``: none."""
    metric: ObjectiveMetric = "forget_closure"
    """Objective: a closure in [-1, 1], maximised, 1 when the forget set looks like text that was never seen.
    ``forget_closure_at_utility``: with the trained difference scaled back until ``utility`` is kept (UWC).
    ``drop_at_target``, minimised: the largest damage to what is limited, where the forget set lies on its target."""
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
    landing: bool | Literal["auto"] = False
    """Whether a trial that ends past its target is scaled back onto it, as one more candidate beside its probes.
    ``auto``: with ``forget_closure`` under ``past_target``, and with ``drop_at_target``, where weights are whole."""
    no_effect: NoEffectConfig | None = None
    """Stop a trial that forgets nothing; null switches it off."""
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

    @property
    def is_minimized(self) -> bool:
        """Whether less is better of the objective."""
        return METRICS[self.metric].better == "down"

    @property
    def limited_metrics(self) -> tuple[LimitedMetric, ...]:
        """Metrics that a constraint limits or the guard watches, each once."""
        watched = self.retain_guard.metrics if self.retain_guard else ()
        return tuple(dict.fromkeys((*(c.metric for c in self.constraints), *watched)))

    @property
    def n_probes(self) -> int:
        """Probes of a trial that nothing stops."""
        return -(-self.max_steps // self.probe_every)

    @property
    def horizon_problem(self) -> str | None:
        """Why the last probe cannot count while overshoot may end the trial before it; ``None`` if it can.

        Asked of what a user hands in, not of a record: an older run may hold the pair.
        """
        if self.select != "last" or self.past_target is None:
            return None
        return (
            "past_target ends a trial before its horizon, so that a linear schedule stops at a part of its rate and "
            "the overshot probe counts; with select: last set past_target: null, or take best_feasible_probe"
        )

    @model_validator(mode="after")
    def _metrics_are_chosen(self) -> Self:
        if AUTO in self.limited_metrics:
            raise ValueError(
                "auto is resolved when a sweep begins, by its baseline; name a metric, such as retain_drop or "
                "retain_forgetting, in constraints and retain_guard.metrics"
            )
        return self

    @model_validator(mode="after")
    def _every_decision_is_seen(self) -> Self:
        problems = []
        if self.rows_per_probe == "adaptive" and self.metric == _AT_UTILITY:
            problems.append(
                f"rows_per_probe: {_AT_UTILITY} scales the difference by the utility of all rows; take all or "
                "auto, got adaptive"
            )
        if self.skip_probes is True and not self.is_foreseeable:
            why = (
                _AT_UTILITY if self.metric == _AT_UTILITY else "a stop rule on other forget metrics"
            )
            problems.append(
                f"skip_probes: {why} is not extrapolated, so that a probe left out could be the one that counts; "
                "take false or auto, got true"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def is_foreseeable(self) -> bool:
        """Whether cross-entropy, accuracy and drops alone say that a probe will decide nothing."""
        return self.metric != _AT_UTILITY and not self.stop_when

    @model_validator(mode="after")
    def _landing_fits_the_objective(self) -> Self:
        if self.landing is True and self.metric not in LANDING_METRICS:
            raise ValueError(
                f"landing: a trial lands where its forget cross-entropy is on target, which {self.metric} does not "
                f"ask for; take metric {' or '.join(LANDING_METRICS)}, or set landing: false"
            )
        if self.landing is False and self.metric == "drop_at_target":
            raise ValueError(
                "landing: drop_at_target compares trials on the target, which few hit without landing, "
                "got landing=false; set it to auto or true"
            )
        return self

    @model_validator(mode="after")
    def _probe_within_budget(self) -> Self:
        if self.probe_every > self.max_steps:
            raise ValueError(
                f"probe_every must not exceed max_steps, got probe_every={self.probe_every} "
                f"max_steps={self.max_steps}"
            )
        return self
