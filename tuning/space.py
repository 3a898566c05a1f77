"""The search space: dotted fields of a trial, their ranges, and what a proposal becomes.

A parameter is a field of ``TrialConfig``; its range must lie within the field's own limits. All of that
is checked here, without torch, Ray or Optuna.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from core.config import TrialConfig, describe_problems, parse_trial, with_numbers
from core.config.elsewhere import ELSEWHERE
from core.config.method import FORGET_LOSS_FACTS, RETAIN_LOSS_FACTS, LossFacts
from core.errors import ConfigError
from tuning.config import FIXED_SECTIONS, Choice, Dimension, SweepSpec

_BOUND_INTEGERS = 64

Proposal = Mapping[str, Choice]
"""Dotted path to value: what a sampler proposes."""

_MAY_BE_ALL_SEARCHED = ("method", "optimizer")
"""Sections of a trial that have required fields, and that a sweep file may leave out."""

_SEARCHABLE_SECTIONS = ("method", "optimizer", "adapter", "fisher", "batch", "seed")


def searchable_fields() -> dict[str, tuple[Any, list[Any]]]:
    """Fields that may be searched: everything of a trial that does not change what is measured on what."""
    return {
        path: field
        for path, field in leaf_fields(TrialConfig).items()
        if path.partition(".")[0] in _SEARCHABLE_SECTIONS and path != "batch.probe_batch_size"
    }


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


def ordered_dimensions(spec: SweepSpec) -> dict[str, Dimension]:
    """Dimensions in the file's order, but after those that their ``when`` names.

    Raises:
        ConfigError: If conditions go round in a circle.
    """
    ordered: dict[str, Dimension] = {}
    waiting = dict(spec.space)
    while waiting:
        ready = [n for n, d in waiting.items() if all(p not in waiting for p in d.when)]
        if not ready:
            raise ConfigError(
                "space", [f"{', '.join(waiting)}: conditions in `when` form a circle"]
            )
        for name in ready:
            ordered[name] = waiting.pop(name)
    return ordered


def is_active(dimension: Dimension, chosen: Proposal) -> bool:
    """Whether the conditions of a dimension hold under what is chosen so far."""
    for parent, wanted in dimension.when.items():
        options = wanted if isinstance(wanted, tuple) else (wanted,)
        if parent not in chosen or chosen[parent] not in options:
            return False
    return True


def bind(spec: SweepSpec, proposal: Proposal, *, where: str) -> TrialConfig:
    """The trial that a proposal stands for.

    Raises:
        ConfigError: If fixed and proposed values together are no valid trial.
    """
    values = spec.fixed_values()
    for path, value in proposal.items():
        *parents, last = path.split(".")
        place: dict[str, Any] = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return parse_trial(values, where=where)


def corner_proposals(spec: SweepSpec, *, limit: int = 64) -> Iterator[dict[str, Choice]]:
    """Proposals at the ends of ranges and for every choice: what is bound to check the file."""
    dimensions = ordered_dimensions(spec)
    ends = {name: _ends(d) for name, d in dimensions.items()}
    for corner in itertools.islice(itertools.product(*ends.values()), limit):
        yield _active_part(dimensions, dict(zip(ends, corner, strict=True)))
    first = {name: values[0] for name, values in ends.items()}
    for name, values in ends.items():  # every single choice, also where there are too many corners
        for value in values:
            yield _active_part(dimensions, first | {name: value})


def space_problems(spec: SweepSpec) -> list[str]:
    """Everything wrong with fixed values, space, conditions and starting points, one line each."""
    problems = _fixed_problems(spec.fixed_values(), spec.space)
    fields = searchable_fields()
    for name, dimension in spec.space.items():
        problems += _dimension_problems(name, dimension, fields)
        problems += _condition_problems(name, dimension, spec)
        problems += _idle_problems(name, spec)
        section, _, field = name.partition(".")
        if field and field in spec.fixed_values().get(section, {}) and section != "engine":
            problems.append(f"space.{name}: is also fixed by {name}; remove one of the two")
    for i, start in enumerate(spec.start_from):
        problems += _start_problems(f"start_from.{i}", start.values, spec)
    for i, start in enumerate(spec.sampler.prior.points if spec.sampler.prior else ()):
        problems += _start_problems(f"sampler.prior.points.{i}", start.values, spec)
    if problems:
        return problems
    try:
        ordered_dimensions(spec)
    except ConfigError as err:
        return [f"space: {p}" for p in err.problems]
    found: dict[str, None] = {}
    for proposal in corner_proposals(spec):
        try:
            bind(spec, proposal, where="")
        except ConfigError as err:
            found |= dict.fromkeys(err.problems)
    return list(found)


def problems_apart(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with fixed values and single ranges of a file that is no sweep for other reasons."""
    given = values.get("space")
    space: Mapping[Any, Any] = given if isinstance(given, Mapping) else {}
    problems = _fixed_problems(values, space)
    fields = searchable_fields()
    for name, range_ in space.items():
        try:
            problems += _dimension_problems(str(name), Dimension.model_validate(range_), fields)
        except ValidationError:
            continue  # already named
    return problems


def with_meant_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep file's values with text such as ``1e-4`` read as a number wherever a number is meant.

    What is meant is said by the sweep's own fields, by a trial's of the fixed sections, and by the searched field
    of choices, conditions and starting points.
    """
    read: dict[str, Any] = dict(with_numbers(values, SweepSpec))
    fixed = {name: read[name] for name in FIXED_SECTIONS if name in read}
    read |= with_numbers(fixed, TrialConfig)
    if isinstance(read.get("space"), Mapping):
        read["space"] = {n: _with_meant_choices(str(n), d) for n, d in read["space"].items()}
    if isinstance(read.get("start_from"), list):
        read["start_from"] = [_with_meant_values(start, "values") for start in read["start_from"]]
    sampler = read.get("sampler")
    prior = sampler.get("prior") if isinstance(sampler, Mapping) else None
    if isinstance(prior, Mapping) and isinstance(prior.get("points"), list):
        points = [_with_meant_values(point, "values") for point in prior["points"]]
        read["sampler"] = {**read["sampler"], "prior": {**prior, "points": points}}
    return read


def _with_meant_choices(name: str, dimension: Any) -> Any:
    """A dimension whose choices are what the searched field takes, and whose conditions what theirs take."""
    if not isinstance(dimension, Mapping):
        return dimension
    read = _with_meant_values(dimension, "when")
    if isinstance(read.get("categorical"), list):
        read["categorical"] = [_meant(name, choice) for choice in read["categorical"]]
    return read


def _with_meant_values(holder: Any, key: str) -> Any:
    """What holds a mapping of searched fields under a key, with the values that those fields take."""
    if not isinstance(holder, Mapping) or not isinstance(holder.get(key), Mapping):
        return dict(holder) if isinstance(holder, Mapping) else holder
    return {**holder, key: {n: _meant(str(n), value) for n, value in holder[key].items()}}


def _meant(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_meant(name, inner) for inner in value]
    annotation, _ = searchable_fields().get(name, (None, []))
    return with_numbers(value, annotation)


def _fixed_problems(values: Mapping[str, Any], searched: Collection[Any]) -> list[str]:
    given = {n: values[n] for n in FIXED_SECTIONS if isinstance(values.get(n), Mapping)}
    given |= {n: {} for n in _MAY_BE_ALL_SEARCHED if values.get(n) is None}
    try:
        TrialConfig.model_validate(given)
    except ValidationError as err:
        lines = zip(err.errors(), describe_problems(err, TrialConfig), strict=True)
        return [
            line
            for problem, line in lines
            if problem["type"] != "missing" or not _is_elsewhere(problem["loc"], given, searched)
        ]
    return []


def _is_elsewhere(
    absent: tuple[int | str, ...], given: Mapping[str, Any], searched: Collection[Any]
) -> bool:
    """Whether a field that is not among the fixed values is searched, or its whole section named or made elsewhere."""
    return absent[0] not in given or ".".join(map(str, absent)) in searched


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """Words that name the nearest valid name, or the valid ones."""
    by_leaf = {path.rpartition(".")[2]: path for path in known}
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    if not near:
        near = [by_leaf[n] for n in get_close_matches(name, by_leaf, n=1, cutoff=0.5)]
    if near:
        return f"did you mean {near[0]!r}?"
    return f"searchable fields: {', '.join(known)}"


def _dimension_problems(
    name: str, dimension: Dimension, fields: Mapping[str, tuple[Any, list[Any]]]
) -> list[str]:
    if name not in fields:
        last = name.rpartition(".")[2]
        ours = f"here it is {ELSEWHERE[last]}" if last in ELSEWHERE else nearest(name, fields)
        return [f"space.{name}: is no searchable field of a trial; {ours}"]
    annotation, limits = fields[name]
    literals = get_args(annotation) if get_origin(annotation) is Literal else None
    place = f"space.{name}"
    if dimension.categorical is not None:
        return [
            problem
            for value in dimension.categorical
            for problem in _value_problems(place, value, annotation, limits, literals)
        ]
    if literals is not None:
        return [f"{place}: takes one of {', '.join(map(str, literals))}; use categorical"]
    ends: tuple[float, float]
    if dimension.float_range is not None:
        if annotation is not float:
            return [f"{place}: is a whole number; use int or categorical, got float"]
        ends = (dimension.float_range.low, dimension.float_range.high)
    else:
        assert dimension.int_range is not None  # Dimension checks it
        ends = (dimension.int_range.low, dimension.int_range.high)
    return [p for end in ends for p in _value_problems(place, end, annotation, limits, None)]


def _value_problems(
    place: str,
    value: Choice | float,
    annotation: Any,
    limits: list[Any],
    literals: tuple[Any, ...] | None,
) -> list[str]:
    if literals is not None:
        if value in literals:
            return []
        known = {str(x): x for x in literals}
        near = get_close_matches(str(value), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return [f"{place}: unknown choice {value!r}; {hint}"]
    if isinstance(value, str) and annotation in (int, float):
        return [f"{place}: must be a number, got the string {value!r}"]
    if not isinstance(value, int | float) or isinstance(value, bool):
        return []  # TrialConfig judges it
    for limit in limits:
        rule = _broken_rule(float(value), limit)
        if rule:
            return [f"{place}: must be {rule}, got {value}"]
    return []


def _broken_rule(value: float, limit: Any) -> str | None:
    if not math.isfinite(value):
        return "finite"
    if isinstance(limit, Ge) and value < limit.ge:  # type: ignore[operator]
        return f">= {limit.ge}"
    if isinstance(limit, Gt) and value <= limit.gt:  # type: ignore[operator]
        return f"> {limit.gt}"
    if isinstance(limit, Le) and value > limit.le:  # type: ignore[operator]
        return f"<= {limit.le}"
    if isinstance(limit, Lt) and value >= limit.lt:  # type: ignore[operator]
        return f"< {limit.lt}"
    return None


def _condition_problems(name: str, dimension: Dimension, spec: SweepSpec) -> list[str]:
    problems = []
    for parent, wanted in dimension.when.items():
        if parent not in spec.space:
            problems.append(
                f"space.{name}.when: {parent!r} is not searched here; {nearest(parent, spec.space)}"
            )
            continue
        choices = spec.space[parent].categorical
        if choices is None:
            problems.append(f"space.{name}.when: {parent!r} is not categorical")
            continue
        options = wanted if isinstance(wanted, tuple) else (wanted,)
        problems += [
            f"space.{name}.when: {parent} never is {option!r}; its choices are "
            f"{', '.join(map(repr, choices))}"
            for option in options
            if option not in choices
        ]
    return problems


def _idle_problems(name: str, spec: SweepSpec) -> list[str]:
    """A searched field that no trial of the sweep would look at."""
    problems = []
    if _readers(name, RETAIN_LOSS_FACTS) & (_possible("method.retain_loss", spec) or frozenset()):
        return []  # a field of a forget loss that a retain loss reads, too
    for field, (working, rule) in _what_makes_it_work(name).items():
        possible = _possible(field, spec)
        if possible is not None and not working & possible:
            problems.append(f"space.{name}: has no effect here: {field} never is {rule}; remove it")
    return problems


def _what_makes_it_work(name: str) -> dict[str, tuple[frozenset[str], str]]:
    """Fields that must have one of some values for ``name`` to matter, and those values in words."""
    needs: dict[str, tuple[frozenset[str], str]] = {}
    section, readers = name.partition(".")[0], _readers(name, FORGET_LOSS_FACTS)
    if readers:
        needs["method.forget_loss"] = (readers, " or ".join(map(repr, sorted(readers))))
    if name in ("method.retain_weight", "method.retain_source"):
        losses = frozenset(loss for loss, facts in RETAIN_LOSS_FACTS.items() if facts is not None)
        needs["method.retain_loss"] = (losses, "other than 'none'")
    if section == "fisher":
        needs["method.adapter_init"] = (frozenset({"fila", "vila"}), "'fila' or 'vila'")
    of_adapters = ("adapter.rank", "adapter.scaling", "adapter.dropout", "adapter.targets")
    if section == "fisher" or name in of_adapters:
        needs["adapter.kind"] = (frozenset({"lora"}), "'lora'")
    return needs


def _readers(name: str, losses: Mapping[Any, LossFacts | None]) -> frozenset[str]:
    """Losses that look at a field of the method."""
    section, _, field = name.partition(".")
    if section != "method":
        return frozenset()
    return frozenset(
        str(loss) for loss, facts in losses.items() if facts is not None and field in facts.fields
    )


def _possible(field: str, spec: SweepSpec) -> frozenset[str] | None:
    """Values that a field may have in the sweep; ``None`` if it is required and nothing gives it."""
    dimension = spec.space.get(field)
    if dimension is not None:
        chosen = frozenset(map(str, dimension.categorical or ()))
        return chosen | _fallback(field) if dimension.when else chosen
    section, _, last = field.partition(".")
    fixed = spec.fixed_values().get(section, {})
    return frozenset({str(fixed[last])}) if last in fixed else _fallback(field) or None


def _fallback(field: str) -> frozenset[str]:
    """A field's default, where it has one."""
    section, _, last = field.partition(".")
    annotation = TrialConfig.model_fields[section].annotation
    assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
    default = annotation.model_fields[last].default
    return frozenset() if default is PydanticUndefined else frozenset({str(default)})


def _start_problems(place: str, values: Proposal, spec: SweepSpec) -> list[str]:
    problems = []
    for name, value in values.items():
        if name not in spec.space:
            problems.append(
                f"{place}.values: {name!r} is not searched here; {nearest(name, spec.space)}"
            )
        elif not contains(spec.space[name], value):
            problems.append(
                f"{place}.values: {name} = {value!r} lies outside the space ({describe(spec.space[name])})"
            )
    return problems


def contains(dimension: Dimension, value: Choice) -> bool:
    """Whether a value lies in a range, on its grid where it has one, or is one of the choices."""
    if dimension.categorical is not None:
        return any(
            value == c and isinstance(value, bool) == isinstance(c, bool)
            for c in dimension.categorical
        )
    range_ = dimension.float_range or dimension.int_range
    assert range_ is not None  # Dimension checks it
    if isinstance(value, bool | str):
        return False
    if dimension.int_range is not None and value != int(value):
        return False
    inside = range_.low <= value <= range_.high
    if not inside or range_.step is None:
        return inside
    steps = (value - range_.low) / range_.step
    return abs(steps - round(steps)) < 1e-9


def describe(dimension: Dimension) -> str:
    """The range in words, such as ``1e-05 to 0.01, log``."""
    if dimension.categorical is not None:
        return ", ".join(map(str, dimension.categorical))
    range_ = dimension.float_range or dimension.int_range
    assert range_ is not None  # Dimension checks it
    text = f"{range_.low:g} to {range_.high:g}"
    if range_.log:
        return f"{text}, log"
    return text if range_.step in (None, 1) else f"{text}, step {range_.step:g}"


def _ends(dimension: Dimension) -> tuple[Choice, ...]:
    if dimension.categorical is not None:
        return dimension.categorical
    if dimension.int_range is not None:
        i = dimension.int_range
        every = range(i.low, i.high + 1, i.step)
        return tuple(every) if len(every) <= _BOUND_INTEGERS else (i.low, i.high)
    assert dimension.float_range is not None  # Dimension checks it
    return (dimension.float_range.low, dimension.float_range.high)


def _active_part(
    dimensions: Mapping[str, Dimension], values: Mapping[str, Choice]
) -> dict[str, Choice]:
    chosen: dict[str, Choice] = {}
    for name, dimension in dimensions.items():
        if is_active(dimension, chosen):
            chosen[name] = values[name]
    return chosen
