"""The sections of a sweep file: what is fixed, what is searched, for how long, and on what."""

import json
from collections.abc import Mapping
from difflib import unified_diff
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from core.config import (
    AUTO,
    METRICS,
    STOP_METRIC,
    CheckpointEvery,
    ConstraintConfig,
    DataConfig,
    EngineConfig,
    LimitedMetric,
    ModelConfig,
    NoEffectConfig,
    ObjectiveMetric,
    PastTargetConfig,
    RetainGuardConfig,
    RowsPerProbe,
    SelectionConfig,
    UtilityMetric,
)
from core.config.section import Positive, Section, auto_or
from tuning.evaluation_limits import EvaluationSpec

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Names of runs; anything else could leave the folder of runs."""

FIXED_SECTIONS = ("model", "data", "method", "optimizer", "adapter", "fisher", "batch", "engine")


class FloatRange(Section):
    """A real-valued range, inclusive."""

    low: float
    """Lower end."""
    high: float
    """Upper end."""
    log: bool = False
    """Search the logarithm."""
    step: Annotated[float, Field(gt=0)] | None = None
    """Grid of the range; needed by the grid sampler."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        _check_range(self)
        return self


class IntRange(Section):
    """An integer range, inclusive."""

    low: int
    """Lower end."""
    high: int
    """Upper end."""
    log: bool = False
    """Search the logarithm."""
    step: Annotated[int, Field(ge=1)] = 1
    """Distance of neighbours."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        _check_range(self)
        return self


def _check_range(value: FloatRange | IntRange) -> None:
    if value.low > value.high:
        raise ValueError(f"low must not exceed high, got low={value.low} high={value.high}")
    if value.log and value.low <= 0:
        raise ValueError(f"a log scale needs low > 0, got low={value.low}")
    if value.log and value.step not in (None, 1):
        raise ValueError(f"a log scale takes no step, got step={value.step}")


Choice = bool | int | float | str

Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Dimension(Section):
    """One searched field: exactly one of ``float``, ``int``, ``categorical``, and why this range."""

    float_range: Annotated[FloatRange | None, Field(alias="float")] = None
    """A real-valued range."""
    int_range: Annotated[IntRange | None, Field(alias="int")] = None
    """An integer range."""
    categorical: Annotated[tuple[Choice, ...] | None, Field(min_length=1)] = None
    """Choices without an order."""
    why: Reason
    """Why this range: required."""
    source: str | None = None
    """Where the range comes from."""
    when: dict[str, Choice | tuple[Choice, ...]] = Field(default={})
    """Searched only while these categorical dimensions have these values."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [
            n
            for n, v in (
                ("float", self.float_range),
                ("int", self.int_range),
                ("categorical", self.categorical),
            )
            if v is not None
        ]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of float, int, categorical, got {', '.join(given) or 'none'}"
            )
        return self


class StartingPoint(Section):
    """A configuration tried before the sampler proposes any."""

    source: Reason
    """Where it comes from: required."""
    values: dict[str, Choice]
    """A value for each searched field; those left out are sampled."""


class ObjectiveSpec(Section):
    """What is maximised, or minimised."""

    metric: ObjectiveMetric = "forget_closure"
    """A closure in [-1, 1], or ``drop_at_target``: the largest damage where the forget set lies on its target."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """That of the metric, and follows from it: more of a closure is better, less of ``drop_at_target``."""
    select: Literal["best_feasible_probe", "last"] = "best_feasible_probe"
    """Which probe gives a trial its value."""
    tau: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """forget_closure_at_utility: share of its original value that ``utility`` keeps."""
    utility: UtilityMetric = "retain_utility"
    """forget_closure_at_utility: what is kept."""

    @model_validator(mode="before")
    @classmethod
    def _direction_of_the_metric(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("metric") == "drop_at_target":
            return {"direction": "minimize"} | values
        return values

    @model_validator(mode="after")
    def _direction_fits(self) -> Self:
        fitting = "minimize" if METRICS[self.metric].better == "down" else "maximize"
        if self.direction != fitting:
            raise ValueError(
                f"direction: {self.metric} has direction {fitting}, got {self.direction}; leave it out"
            )
        return self


class StopSpec(Section):
    """A trial's own stop rules."""

    past_target: PastTargetConfig | None = PastTargetConfig()
    """Stop on overshoot; null switches it off."""
    landing: bool | Literal["auto"] = "auto"
    """Whether a trial that ends past its target is scaled back onto it, as one more candidate beside its probes.
    ``auto``: with ``forget_closure`` under ``past_target``, and with ``drop_at_target``."""
    no_effect: NoEffectConfig | None = None
    """Stop a trial whose closure stays within its noise; null, the default, switches it off."""
    when: dict[
        Annotated[str, StringConstraints(pattern=STOP_METRIC)],
        Annotated[float, Field(ge=0.0, le=1.0)],
    ] = Field(default={})
    """Stop when all of these forget metrics are at or below their values, such as ``{el_10: 0.0499}``."""


RankingName = Literal["none", "median", "successive_halving", "hyperband"]


class PruningSpec(Section):
    """When Optuna stops a trial."""

    retain: RetainGuardConfig | None = RetainGuardConfig()
    """The retain guard; null switches it off."""
    ranking: RankingName = "none"
    """A pruner that compares trials by their best feasible objective so far."""
    startup_trials: Annotated[int, Field(ge=0)] = 4
    """Median: trials that are never pruned by comparison."""
    warmup_steps: Annotated[int, Field(ge=0)] = 2
    """Median and successive halving: optimiser steps before the first comparison."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """Successive halving and hyperband: one in this many goes on at each rung."""


class BudgetSpec(Section):
    """How much is tried."""

    trials: Positive
    """Trials of the sweep."""
    max_steps: Positive
    """Optimiser steps of a trial that nothing stops."""
    probe_every: Positive = 1
    """Optimiser steps from probe to probe."""
    rows_per_probe: RowsPerProbe = "auto"
    """``all``, ``adaptive`` (retain and general rows until every limit is decided), or ``auto``: adaptive on a CPU.
    With a ranking pruner auto is all: it compares trials at every probe."""
    skip_probes: bool | Literal["auto"] = "auto"
    """Leave out a probe while target and limits are far; with a ranking pruner auto is false."""
    checkpoint_every: CheckpointEvery = "auto"
    """Optimiser steps from one checkpoint inside a trial to the next: a kill loses at most as many. ``auto``: at a
    probe where a minute has passed since the last and writing takes at most 3 % of the time; none in short trials.
    ``off``: none. No result depends on it."""
    max_attempts: Positive = 3
    """Attempts at a trial that breaks (crash, out of memory, hang). One that a full disk broke, or that was lost with
    its machine (up to ten times), does not count."""
    trial_timeout_s: Annotated[float, Field(gt=0.0)] | None = None
    """Seconds that an attempt at a trial may take; no limit if absent. A trial that is ended by it is judged by the
    probes that it has, and failed if it has none; it is not tried again."""
    hang_timeout_s: Literal["auto"] | Annotated[float, Field(gt=0.0)] = "auto"
    """Seconds without an optimiser step after which a trial hangs: its processes are killed, and it is tried again.
    ``auto``: twenty times the slowest step so far, at least 300. The first step, a probe and a checkpoint may take
    half an hour; preparation and loading are not watched."""
    finalists: Annotated[int, Field(ge=0, le=100_000)] = 3
    """Best trials that are measured on the reporting split at the end, also calibrated to equal utility."""
    samples: Annotated[int, Field(ge=0, le=100)] = 4
    """Rows of the forget and of the retain set that the best trial and the untouched model continue at the end; their
    texts stand in ``samples.json`` and in the report. None where this or ``finalists`` is 0."""


SamplerName = Literal["auto", "tpe", "random", "grid", "qmc", "gp", "nsga2"]


class PriorSpec(Section):
    """Where good configurations are expected; the search recovers where that is wrong."""

    points: Annotated[tuple[StartingPoint, ...], Field(min_length=1)]
    """Configurations around which some trials are drawn: values with their source, or ``{run: ..., top: 5}``."""
    confidence: Literal["low", "medium", "high"] = "medium"
    """How near to them, and how many trials: 30, 50 or 70 % at first. The share falls with the number of trials, and to
    nothing where they turn out worse than the others."""


class SamplerSpec(Section):
    """Who proposes configurations."""

    name: SamplerName = "auto"
    """Optuna's sampler. ``auto``: evenly spread trials, then a Gaussian process; TPE where a dimension has ``when``,
    and from the hundredth trial on."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Its seed; each trial derives its own from it and its number."""
    n_startup_trials: Annotated[int, Field(ge=1)] = 10
    """Trials before the model is fitted: evenly spread ones of auto (5 if absent), random ones of tpe and gp (10 if
    absent); nsga2: its population."""
    prior: PriorSpec | None = None
    """Where good configurations are expected; null, the default, expects nothing. Not with grid and qmc."""

    @model_validator(mode="before")
    @classmethod
    def _begins_sooner_if_spread(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("name", "auto") != "auto":
            return values
        return {"n_startup_trials": 5} | dict(values)


Placement = Literal["pack", "strict_pack", "strict_spread"]
"""Where the ranks of a trial are put: on as few nodes as possible, on one, or each on a node of its own."""


class ResourcesSpec(Section):
    """What a trial occupies."""

    ranks_per_trial: Positive = 1
    """Processes of a trial."""
    gpus_per_rank: Annotated[
        float | Literal["auto"], auto_or("a number from 0 to 1", lambda n: 0 <= n <= 1)
    ] = "auto"
    """GPUs of each; a fraction lets several trials share one. ``auto``: the share that the estimate needs, 0 without
    a GPU; recorded resolved."""
    cpus_per_rank: Positive = 1
    """CPU cores, and threads, of each."""
    max_concurrent: Annotated[
        int | Literal["auto"],
        auto_or("a whole number from 1 on", lambda n: n >= 1 and n == int(n)),
    ] = "auto"
    """Trials at the same time; ``auto``: as many as fit into cores, GPUs and memory."""

    placement: Placement = "pack"
    """Where the ranks of a trial are put: ``pack``: on as few nodes as possible; ``strict_pack``: on one node, or the
    trial waits; ``strict_spread``: each on a node of its own."""

    @model_validator(mode="after")
    def _ranks_do_not_share_a_gpu(self) -> Self:
        if self.ranks_per_trial > 1 and 0 < self.n_gpus <= 0.5:
            raise ValueError(
                "gpus_per_rank: no two ranks of a trial may share a GPU (NCCL refuses that), got "
                f"gpus_per_rank={self.n_gpus:g} with ranks_per_trial={self.ranks_per_trial}; give 1, 0 for the "
                "CPU, or one rank"
            )
        return self

    @property
    def n_gpus(self) -> float:
        """GPUs of each rank; 0 while ``auto`` is not resolved."""
        return 0.0 if self.gpus_per_rank == "auto" else self.gpus_per_rank


class SweepSpec(Section):
    """A sweep file, validated."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    """Version of this format."""
    name: Annotated[str, Field(pattern=RUN_NAME)]
    """Name of the sweep; the run folder is ``runs/NAME`` unless ``--name`` says otherwise."""
    model: dict[str, Any]
    """Fixed values of the section of the same name; so for the next ones."""
    data: dict[str, Any]
    method: dict[str, Any] = Field(default={})
    optimizer: dict[str, Any] = Field(default={})
    adapter: dict[str, Any] = Field(default={})
    fisher: dict[str, Any] = Field(default={})
    batch: dict[str, Any] = Field(default={})
    engine: dict[str, Any] = Field(default={})
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the trials (data order, adapter initialisation)."""
    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    """Searched fields by dotted path."""
    start_from: tuple[StartingPoint, ...] = ()
    """Configurations to try first."""
    objective: ObjectiveSpec = ObjectiveSpec()
    constraints: tuple[ConstraintConfig, ...] = (
        ConstraintConfig(metric="retain_drop", at_most=0.10),
        ConstraintConfig(metric="general_drop", at_most=0.10),
    )
    stop: StopSpec = StopSpec()
    pruning: PruningSpec = PruningSpec()
    budget: BudgetSpec
    evaluation: EvaluationSpec = EvaluationSpec()
    sampler: SamplerSpec = SamplerSpec()
    resources: ResourcesSpec = ResourcesSpec()

    @field_validator("engine")
    @classmethod
    def _resources_set_ranks(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key in ("ranks", "threads"):
            if key in value:
                name = "ranks_per_trial" if key == "ranks" else "cpus_per_rank"
                raise ValueError(f"{key} is set by resources.{name} in a sweep")
        return value

    @model_validator(mode="after")
    def _cuda_has_a_gpu(self) -> Self:
        if self.engine.get("device") == "cuda" and self.resources.gpus_per_rank == 0:
            raise ValueError(
                "resources.gpus_per_rank: engine.device: cuda needs a GPU or a share of one for each rank, got "
                "gpus_per_rank=0; leave it at auto, or take engine.device: auto"
            )
        return self

    @model_validator(mode="after")
    def _evaluation_loads_the_model(self) -> Self:
        if self.evaluation.all_suites and self.model.get("quantisation", "none") != "none":
            raise ValueError(
                "evaluation: the suites hold the model unquantised, got "
                f"model.quantisation={self.model['quantisation']}; leave one of the two out, and run "
                "`unlearn-tune evaluate` on what `export` writes"
            )
        return self

    @model_validator(mode="after")
    def _sampler_fits(self) -> Self:
        problems = []
        if self.sampler.name == "grid":
            for name, dimension in self.space.items():
                if dimension.float_range is not None and dimension.float_range.step is None:
                    problems.append(
                        f"space.{name}: the grid sampler needs a step for a float range (or categorical)"
                    )
                if dimension.when:
                    problems.append(
                        f"space.{name}: the grid sampler takes no conditional parameter"
                    )
            for i, start in enumerate(self.start_from):
                absent = [name for name in self.space if name not in start.values]
                if absent:
                    problems.append(
                        f"start_from.{i}.values: the grid sampler needs every searched field, "
                        f"{', '.join(absent)} absent"
                    )
        if self.sampler.prior is not None and self.sampler.name in ("grid", "qmc"):
            problems.append(
                f"sampler.prior: {self.sampler.name} tries evenly placed points whatever is expected; take auto, tpe, "
                "gp, nsga2 or random, or leave the prior out"
            )
        if self.sampler.name == "nsga2" and self.sampler.n_startup_trials < 2:
            problems.append(
                "sampler.n_startup_trials: is the population of nsga2 and must be >= 2, "
                f"got {self.sampler.n_startup_trials}"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _compared_probes_are_whole(self) -> Self:
        if self.pruning.ranking == "none":
            return self
        given = {"rows_per_probe": ("adaptive", "all"), "skip_probes": (True, "false")}
        problems = [
            f"budget.{name}: pruning.ranking: {self.pruning.ranking} compares trials at every probe, on all rows; "
            f"take {instead} or auto, got {str(value).lower()}"
            for name, (value, instead) in given.items()
            if getattr(self.budget, name) == value
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _auto_is_not_named_beside(self) -> Self:
        guard = self.pruning.retain
        for place, names in (
            ("constraints", tuple(c.metric for c in self.constraints)),
            ("pruning.retain.metrics", guard.metrics if guard else ()),
        ):
            beside = [m for m in names if m in ("retain_drop", "retain_forgetting")]
            if AUTO in names and beside:
                raise ValueError(
                    f"{place}: auto is retain_drop or retain_forgetting, so neither may stand beside it, got "
                    f"{', '.join(beside)}"
                )
        return self

    @classmethod
    def from_file(
        cls, path: Path | str, *, overrides: Mapping[str, Any] | None = None
    ) -> "SweepSpec":
        """Read a sweep file, as :func:`tuning.files.load_sweep`: files are read above the sections they hold.

        Args:
            path: A YAML file; relative paths in it are relative to it.
            overrides: Dotted path to value, as ``--set`` has them.

        Raises:
            ConfigError: With every problem at once.
        """
        import tuning

        spec: SweepSpec = tuning.load_sweep(path, overrides=overrides)
        return spec

    @property
    def has_auto(self) -> bool:
        """Whether a constraint or the guard waits for the baseline to say on which scale damage is counted."""
        guard = self.pruning.retain
        return AUTO in (*(c.metric for c in self.constraints), *(guard.metrics if guard else ()))

    def with_auto_as(self, metric: LimitedMetric) -> "SweepSpec":
        """The same with ``metric`` in place of every ``auto``."""
        if not self.has_auto:
            return self

        def chosen(name: LimitedMetric) -> LimitedMetric:
            return metric if name == AUTO else name

        constraints = tuple(
            c.model_copy(update={"metric": chosen(c.metric)}) for c in self.constraints
        )
        guard = self.pruning.retain
        if guard is not None:
            guard = guard.model_copy(update={"metrics": tuple(map(chosen, guard.metrics))})
        pruning = self.pruning.model_copy(update={"retain": guard})
        return self.model_copy(update={"constraints": constraints, "pruning": pruning})

    def fixed_values(self) -> dict[str, Any]:
        """Values of a trial that are not searched: nested, without ``selection``'s defaults left out.

        What is ``auto`` before the baseline is known stands as ``retain_drop``, which every model has.
        """
        if self.has_auto:
            return self.with_auto_as("retain_drop").fixed_values()
        values = {name: dict(getattr(self, name)) for name in FIXED_SECTIONS}
        if not self.batch:
            del values["batch"]  # TrialConfig has a default for the whole section
        values["engine"] |= {
            "ranks": self.resources.ranks_per_trial,
            "threads": self.resources.cpus_per_rank,
        }
        values["selection"] = {
            "max_steps": self.budget.max_steps,
            "probe_every": self.budget.probe_every,
            **self._probe_extent(),
            "checkpoint_every": self.budget.checkpoint_every,
            "metric": self.objective.metric,
            "select": self.objective.select,
            "tau": self.objective.tau,
            "utility": self.objective.utility,
            "stop_when": [{"metric": k, "at_most": v} for k, v in self.stop.when.items()],
            "constraints": [c.model_dump() for c in self.constraints],
            "past_target": self.stop.past_target.model_dump() if self.stop.past_target else None,
            "landing": self.stop.landing,
            "no_effect": self.stop.no_effect.model_dump() if self.stop.no_effect else None,
            "retain_guard": self.pruning.retain.model_dump() if self.pruning.retain else None,
        }
        return values | {"seed": self.seed}

    def _probe_extent(self) -> dict[str, Any]:
        """What ``auto`` of the budget is, as far as a trial could not know: a ranking pruner reads every probe."""
        budget, is_compared = self.budget, self.pruning.ranking != "none"
        if not is_compared:
            return {"rows_per_probe": budget.rows_per_probe, "skip_probes": budget.skip_probes}
        return {"rows_per_probe": "all", "skip_probes": False}

    def trial_model(self) -> ModelConfig:
        """The model of every trial: nothing of it is searched; so for the next ones."""
        return ModelConfig.model_validate(self.model)

    def trial_data(self) -> DataConfig:
        """The data of every trial."""
        return DataConfig.model_validate(self.data)

    def trial_engine(self) -> EngineConfig:
        """The engine of every trial."""
        return EngineConfig.model_validate(self.fixed_values()["engine"])

    def trial_selection(self) -> SelectionConfig:
        """The rules of every trial: objective, constraints, and what stops it."""
        return SelectionConfig.model_validate(self.fixed_values()["selection"])

    def plain(self) -> dict[str, Any]:
        """The specification as plain values, in the file's own words."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=False)

    def binding(self) -> dict[str, Any]:
        """What a resumed sweep must share with its beginning; trials, resources and names may change."""
        plain = self.plain()
        for key in ("name", "resources"):
            plain.pop(key)
        plain["engine"].pop("packing", None)  # how trials share a machine, as resources are
        plain["budget"] = {k: plain["budget"][k] for k in ("max_steps", "probe_every")}
        return plain


def specification_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines that differ between two bindings, ``-`` before and ``+`` now; empty if they are equal."""
    old, new = (json.dumps(v, indent=1, sort_keys=True).splitlines() for v in (before, now))
    names = {"fromfile": "when the run began", "tofile": "now"}
    return list(unified_diff(old, new, **names, lineterm="", n=1))
