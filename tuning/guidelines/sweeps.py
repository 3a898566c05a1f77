"""The sweeps that test a guideline: put together from preset, guideline and changes, each a grid over its knobs."""

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from tuning.config import SweepSpec
from tuning.files import parse_sweep, set_dotted
from tuning.guidelines.catalogue import PRESETS_FILE, Base, Guideline, PresetName, bases
from tuning.guidelines.trajectories import RATE
from tuning.space import bind, corner_proposals


def sweeps_of(
    guideline: Guideline, preset: PresetName, *, overrides: Mapping[str, Any] | None = None
) -> dict[str, SweepSpec]:
    """The sweeps of a guideline under a preset, by name.

    Args:
        guideline: The guideline.
        preset: One that it has.
        overrides: Dotted key to value, put over all of them last, as ``--set`` does.

    Raises:
        ConfigError: If one of them is no valid sweep.
    """
    use = guideline.use(preset)
    base = bases().get(use.base or preset)
    if base is None:
        problem = f"no such entry in {PRESETS_FILE}, got {use.base!r}; known: {', '.join(bases())}"
        raise ConfigError(f"guideline {guideline.id}", [f"presets.{preset}.base: {problem}"])
    found = {}
    for name, own in guideline.sweeps.items():
        where = f"guideline {guideline.id}, sweep {name}"
        values: dict[str, Any] = {"schema": 1, "name": f"{preset}-{name}"}
        for layer in (base.sweep, guideline.shared, own, use.changes):
            values = _over(values, layer)
        values = copy.deepcopy(values)  # what follows writes into it, and presets are read once
        for key, value in (overrides or {}).items():
            set_dotted(values, key, value, where=where)
        found[name] = parse_sweep(_as_grid(values, base, where=where), where=where)
    return found


def run_name(spec: SweepSpec) -> str:
    """Name of the run folder of a guideline's sweep.

    It ends with eight characters that stand for what decides its trials, whatever it is called: a default that is
    written out changes nothing.
    """
    plain = spec.plain()
    for key in ("name", "resources"):
        plain.pop(key)
    trial = bind(spec, next(corner_proposals(spec)), where=spec.name).model_dump(mode="json")
    content = json.dumps(plain | trial, sort_keys=True).encode()
    return f"guideline-{spec.name}-{hashlib.sha256(content).hexdigest()[:8]}"


def run_folder(spec: SweepSpec, runs: Path) -> Path:
    """The folder of a guideline's sweep: that of an equal one by any name, if it is there, else one of its own.

    Guidelines that ask for the same sweep share its run.
    """
    own = runs / run_name(spec)
    equal = sorted(runs.glob(f"guideline-*-{own.name.rpartition('-')[2]}"))
    return equal[0] if equal else own


def _as_grid(values: dict[str, Any], base: Base, *, where: str) -> dict[str, Any]:
    """Add rates and seeds to what is searched, and the number of trials that this makes.

    Raises:
        ConfigError: If a searched field is not categorical.
    """
    wrong = [name for name in _READ_HERE if not isinstance(values.get(name, {}), Mapping)]
    if wrong:
        raise ConfigError(
            where, [f"{n}: a section is expected, got {values[n]!r}; write its keys" for n in wrong]
        )
    kind = values.get("adapter", {}).get("kind", "lora")
    space: dict[str, Any] = {}
    if "learning_rate" not in values.get("optimizer", {}):
        rates = list(base.rates["full" if kind == "full" else "lora"])
        space[RATE] = {"categorical": rates, "why": "The preset's rates, evenly spread in decades."}
    space |= values.get("space", {})
    space["seed"] = {"categorical": list(base.seeds), "why": "Units of the interval."}
    wrong = [name for name, dimension in space.items() if not _has_choices(dimension)]
    if wrong:
        problem = "a guideline needs categorical, a list of values"
        raise ConfigError(where, [f"space.{name}: {problem}" for name in wrong])
    trials = math.prod(len(dimension["categorical"]) for dimension in space.values())
    budget = {"finalists": 0} | values.get("budget", {}) | {"trials": trials}
    return values | {"space": space, "budget": budget, "sampler": {"name": "grid"}}


def _has_choices(dimension: Any) -> bool:
    return isinstance(dimension, Mapping) and isinstance(dimension.get("categorical"), list)


def _over(values: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """``layer`` over ``values``, section by section; null removes, and a searched field is replaced whole."""
    made = dict(values)
    for key, value in layer.items():
        below = made.get(key)
        if value is None and key not in _NULL_MEANS_OFF:
            made.pop(key, None)
        elif key != "space" and isinstance(value, Mapping) and isinstance(below, Mapping):
            made[key] = _over(below, value)
        elif key == "space" and isinstance(value, Mapping) and isinstance(below, Mapping):
            made[key] = {**below, **value}
        else:
            made[key] = value
    return made


_READ_HERE = ("adapter", "optimizer", "space", "budget")
"""Sections that the grid depends on, looked at before the whole is checked as a sweep."""
_NULL_MEANS_OFF = ("past_target", "no_effect", "retain")
"""Keys of a sweep file whose null says something itself."""
