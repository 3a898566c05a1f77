"""A sweep file: what is fixed, what is searched, for how long, and on what."""

import json
from collections.abc import Mapping
from difflib import unified_diff
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from core.config import (
    STOP_METRIC,
    ConstraintConfig,
    ObjectiveMetric,
    PastTargetConfig,
    RetainGuardConfig,
    UtilityMetric,
    describe_problems,
)
from core.config.section import Positive, Section
from core.errors import ConfigError

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Names of runs; anything else could leave the folder of runs."""

MAX_FILE_BYTES = 1 << 20
_PATH_KEYS = ("source", "mirror", "retain_only")
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
    """What is maximised."""

    metric: ObjectiveMetric = "forget_closure"
    """A probe metric in [-1, 1]."""
    direction: Literal["maximize"] = "maximize"
    """Every objective is a closure: more is better, and overshooting lowers it."""
    select: Literal["best_feasible_probe", "last"] = "best_feasible_probe"
    """Which probe gives a trial its value."""
    tau: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """forget_closure_at_utility: share of its original value that ``utility`` keeps."""
    utility: UtilityMetric = "retain_utility"
    """forget_closure_at_utility: what is kept."""


class StopSpec(Section):
    """A trial's own stop rules."""

    past_target: PastTargetConfig | None = PastTargetConfig()
    """Stop on overshoot; null switches it off."""
    when: dict[
        Annotated[str, StringConstraints(pattern=STOP_METRIC)],
        Annotated[float, Field(ge=0.0, le=1.0)],
    ] = Field(default={})
    """Stop when all of these forget metrics are at or below their values, such as ``{el_10: 0.0499}``."""


class PruningSpec(Section):
    """When Optuna stops a trial."""

    retain: RetainGuardConfig | None = RetainGuardConfig()
    """The retain guard; null switches it off."""
    ranking: Literal["none", "median", "successive_halving", "hyperband"] = "none"
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
    max_attempts: Positive = 3
    """Attempts at a trial that breaks (crash, out of memory)."""
    finalists: Annotated[int, Field(ge=0, le=100_000)] = 3
    """Best trials that are measured on the reporting split at the end, also calibrated to equal utility."""


class SamplerSpec(Section):
    """Who proposes configurations."""

    name: Literal["tpe", "random", "grid", "qmc", "gp", "nsga2"] = "tpe"
    """Optuna's sampler."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Its seed; each trial derives its own from it and its number."""
    n_startup_trials: Annotated[int, Field(ge=1)] = 10
    """tpe, gp: random trials before the model is fitted."""


class ResourcesSpec(Section):
    """What a trial occupies."""

    ranks_per_trial: Positive = 1
    """Processes of a trial."""
    gpus_per_rank: Annotated[float, Field(ge=0, le=1)] = 0.0
    """GPUs of each; a fraction lets several trials share one."""
    cpus_per_rank: Positive = 1
    """CPU cores, and threads, of each."""
    max_concurrent: Positive | Literal["auto"] = "auto"
    """Trials at the same time; ``auto``: as many as fit."""


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
        if self.sampler.name == "nsga2" and self.sampler.n_startup_trials < 2:
            problems.append(
                "sampler.n_startup_trials: is the population of nsga2 and must be >= 2, "
                f"got {self.sampler.n_startup_trials}"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def fixed_values(self) -> dict[str, Any]:
        """Values of a trial that are not searched: nested, without ``selection``'s defaults left out."""
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
            "metric": self.objective.metric,
            "select": self.objective.select,
            "tau": self.objective.tau,
            "utility": self.objective.utility,
            "stop_when": [{"metric": k, "at_most": v} for k, v in self.stop.when.items()],
            "constraints": [c.model_dump() for c in self.constraints],
            "past_target": self.stop.past_target.model_dump() if self.stop.past_target else None,
            "retain_guard": self.pruning.retain.model_dump() if self.pruning.retain else None,
        }
        return values | {"seed": self.seed}

    def plain(self) -> dict[str, Any]:
        """The specification as plain values, in the file's own words."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=False)

    def binding(self) -> dict[str, Any]:
        """What a resumed sweep must share with its beginning; trials, resources and names may change."""
        plain = self.plain()
        for key in ("name", "resources"):
            plain.pop(key)
        plain["budget"] = {k: plain["budget"][k] for k in ("max_steps", "probe_every")}
        return plain


def load_sweep(path: Path, *, overrides: Mapping[str, Any] | None = None) -> SweepSpec:
    """Read and check a sweep file; relative paths in it become absolute.

    Args:
        path: A YAML file.
        overrides: Dotted path to value, from ``--set``.

    Raises:
        ConfigError: With every problem at once.
    """
    return parse_sweep(read_specification(path, overrides or {}), where=str(path))


def read_specification(path: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a sweep or preparation file with ``overrides``, all paths absolute.

    Relative paths in the file are relative to it, those of ``--set`` to the current folder.

    Raises:
        ConfigError: If the file is no mapping, or an override runs through a value.
    """
    values = anchored(read_yaml(path), path.parent)
    for key, value in overrides.items():
        is_path = key.rpartition(".")[2] in _PATH_KEYS and isinstance(value, str)
        here = is_path and ":" not in value and Path(value).exists()
        set_dotted(values, key, str(Path(value).resolve()) if here else value, where=str(path))
    return values


def parse_sweep(values: Mapping[str, Any], *, where: str) -> SweepSpec:
    """Check plain values: the format first, then that every searched field fits a trial.

    Raises:
        ConfigError: With every problem at once.
    """
    from tuning.space import problems_apart, space_problems

    try:
        spec = SweepSpec.model_validate(values)
    except ValidationError as err:
        found = [*describe_problems(err, SweepSpec), *problems_apart(values)]
        raise ConfigError(where, found) from err
    problems = space_problems(spec)
    if problems:
        raise ConfigError(where, problems)
    return spec


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file: safe loader, no duplicate keys, at most 1 MiB.

    Raises:
        ConfigError: If the file is missing, too large, or no such mapping.
    """
    if not path.is_file():
        raise ConfigError(str(path), ["file does not exist; check the path"])
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError(str(path), [f"file exceeds {MAX_FILE_BYTES} bytes; it is no sweep file"])
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)  # noqa: S506
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ConfigError(str(path), [f"not YAML: {' '.join(str(err).split())}"]) from err
    if not isinstance(values, dict):
        raise ConfigError(str(path), [f"a mapping is expected, got {type(values).__name__}"])
    return values


def set_dotted(values: dict[str, Any], key: str, value: Any, *, where: str) -> None:
    """Set ``a.b.c`` in nested mappings; in ``space``, the rest of the path is one key.

    Raises:
        ConfigError: If the path runs through something that is no mapping.
    """
    head, _, rest = key.partition(".")
    if head == "space" and rest:
        raise ConfigError(
            where, [f"--set {key}: change the search space in the file, not by --set"]
        )
    *parents, last = key.split(".")
    place = values
    for parent in parents:
        inner = place.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(where, [f"--set {key}: {parent!r} holds a value, not a section"])
        place = inner
    place[last] = value


def specification_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines that differ between two bindings, ``-`` before and ``+`` now; empty if they are equal."""
    old, new = (json.dumps(v, indent=1, sort_keys=True).splitlines() for v in (before, now))
    names = {"fromfile": "when the run began", "tofile": "now"}
    return list(unified_diff(old, new, **names, lineterm="", n=1))


def anchored(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Make relative paths in ``model`` and ``data`` absolute, relative to the file that holds them."""
    result = json.loads(json.dumps(values, default=str))
    data = result.get("data")
    sections = [result.get("model"), *(data.values() if isinstance(data, dict) else ())]
    for section in sections:
        for key in _PATH_KEYS:
            path = section.get(key) if isinstance(section, dict) else None
            if not isinstance(path, str) or ":" in path or Path(path).is_absolute():
                continue
            if (folder / path).exists():
                section[key] = str((folder / path).resolve())
    return dict(result)


def leaf_fields(model: type[BaseModel], prefix: str = "") -> dict[str, tuple[Any, list[Any]]]:
    """Dotted path of every plain field below a model, with its annotation and limits."""
    found: dict[str, tuple[Any, list[Any]]] = {}
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= leaf_fields(inner, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = (inner, list(field.metadata))
    return found
