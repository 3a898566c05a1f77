"""The problems of ``benchmarks/search.py``: spaces, and what a trial at a point of them would have measured.

* **TOFU** (``tofu-150-models.json``): eight methods on forget10 with Llama-3.2-1B, each a full factorial of learning
  rate, a second knob and 5 or 10 epochs. Two surrogates a method, of memorisation and of utility. As in a sweep, a
  trial has a probe at each number of epochs; its closure is ``1 - |m - m*| / |m0 - m*|``, with ``m0`` of the target
  model and ``m*`` of the retain-only one, and a probe is feasible while ``retain_utility >= 0.95``.
* **Budgeted searches** (``DATASET.results*.MODEL.json``): 17 pairs of data set and model, five published losses and
  three variants of one more method, 30 trials of Optuna's TPE each. Their trials stop at a budget of damage, so that
  nothing else is constrained. The closure is ``(u - v) / (u - v*)``: ``v*`` the best logged value, ``u`` the median,
  which about half of the trials share with the untouched model.
* **Choice of method**: both with the loss as a searched choice and each loss's own knobs under a condition, as
  ``search_spaces/methods.yaml`` has it, over the ranges that the data of all losses cover.
* **Analytic**: a control with a known answer, 1, on the boundary of what is feasible.
"""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import qmc
from search_surrogates import Array, Forest, GaussianProcess, Quality, quality

from core.measuring.selection import Probe
from tuning.config import Choice, SweepSpec
from tuning.space import Proposal, is_active, ordered_dimensions

Kind = Literal["gp", "forest"]
KINDS: tuple[Kind, ...] = ("gp", "forest")
TOFU = "tofu-150-models.json"
CHOSEN = "forget_loss"
UTILITY = 0.95
LOSSES = ("GradDiff", "NPO", "RMU", "SimNPO", "UNDIAL")
"""Losses of the budgeted searches among which a method is chosen."""
LEAST_SPEARMAN = 0.3
"""Rank correlation of held-out predictions below which a budgeted search is left out: its surrogate is chance."""

Surface = Callable[[Proposal], Sequence[tuple[float, float]]]
"""Closure and retain utility of each probe of a trial, without noise."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A searched dimension of the data: its name, its limits or choices, and its scale."""

    name: str
    low: float
    high: float
    log: bool = False
    choices: tuple[float, ...] | None = None

    def unit(self, value: float) -> float:
        """A value's place in [0, 1]."""
        low, high = (math.log(x) if self.log else x for x in (self.low, self.high))
        place = (math.log(value) if self.log else value) - low
        return place / (high - low) if high > low else 0.0

    def dimension(self, when: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """As a sweep file has it."""
        made: dict[str, Any] = {"why": "the range of the data"}
        if self.choices is not None:
            made["categorical"] = list(self.choices)
        else:
            made["float"] = {"low": self.low, "high": self.high, "log": self.log}
        return made | ({"when": dict(when)} if when else {})


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A space, and what a trial in it measures.

    Attributes:
        name: What it was made from.
        group: The part of the benchmark that it belongs to.
        kind: Kind of its surrogate; ``analytic`` for the control.
        space: As in a sweep file.
        constrained: Whether a trial's utility is limited.
        surface: Probes of a trial without noise.
        noise: Standard deviation of a told closure, and of a told utility.
        start: Published settings, or those nearest to them in the space.
        qualities: Of its surrogates.
        best: Largest feasible closure of the space.
    """

    name: str
    group: str
    kind: str
    space: Mapping[str, Any]
    constrained: bool
    surface: Surface
    noise: tuple[float, float]
    start: Sequence[Mapping[str, Choice]] = ()
    qualities: Sequence[Quality] = ()
    best: float = field(default=1.0)

    @property
    def is_conditional(self) -> bool:
        """Whether some dimensions are searched under a condition only, which a grid does not take."""
        return any("when" in dimension for dimension in self.space.values())

    def sweep(self, sampler: Mapping[str, Any], *, started: bool = False) -> SweepSpec:
        """The sweep over its space; for the grid sampler over four values of each range."""
        limits = [{"metric": "retain_utility", "at_least": UTILITY}] if self.constrained else []
        guard = {
            "metrics": ["retain_utility"],
            "limit": 1.0 - UTILITY,
            "patience": 2,
            "grace_steps": 0,
            "hard_limit": 0.5,
        }
        starts = [{"source": "published", "values": dict(s)} for s in self.start if started]
        return SweepSpec.model_validate(
            {
                "schema": 1,
                "name": "search",
                "model": {},
                "data": {},
                "space": _grid(self.space) if sampler["name"] == "grid" else self.space,
                "start_from": starts,
                "constraints": limits,
                "pruning": {"retain": guard if self.constrained else None},
                "stop": {"past_target": None},
                "budget": {"trials": 30, "max_steps": 2},
                "sampler": dict(sampler),
            }
        )

    def probes(self, proposal: Proposal, rng: np.random.Generator | None = None) -> list[Probe]:
        """The probes of a trial, with the noise of the data if ``rng`` is given."""
        by_closure, by_utility = self.noise if rng is not None else (0.0, 0.0)
        shift, dip = (rng.normal(), rng.normal()) if rng is not None else (0.0, 0.0)
        return [
            Probe(
                step=step,
                seconds=0.0,
                metrics={
                    "forget_closure": float(np.clip(closure + by_closure * shift, -1.0, 1.0)),
                    "retain_utility": float(np.clip(utility + by_utility * dip, 0.0, 2.0)),
                    "forget_nll": 1.0,
                },
            )
            for step, (closure, utility) in enumerate(self.surface(proposal), start=1)
        ]

    def value(self, proposal: Proposal) -> float:
        """The best feasible closure of a trial without noise; 0, that of doing nothing, if there is none better."""
        found = self.surface(proposal)
        kept = [c for c, utility in found if not self.constrained or utility >= UTILITY]
        return max([0.0, *kept])

    def regret(self, value: float) -> float:
        """Share of what can be gained over doing nothing that ``value`` leaves."""
        return max(0.0, 1.0 - value / self.best)


def problems(data: Path, *, every: int = 1) -> Iterator[Problem]:
    """The problems of the benchmark: all of TOFU, and parts of the budgeted searches.

    Args:
        data: Folder of the logged trials.
        every: One in this many budgeted searches is taken; the choice of a method, on three times that share.
    """
    yield from _tofu(data / TOFU)
    yield from _budgeted(data, every)
    yield _analytic()


def _grid(space: Mapping[str, Any]) -> dict[str, Any]:
    """A space with the ends and two evenly placed values of each range."""
    made = {}
    for name, dimension in space.items():
        if "float" in dimension:
            place = np.geomspace if dimension["float"]["log"] else np.linspace
            ends = dimension["float"]["low"], dimension["float"]["high"]
            made[name] = {"categorical": place(*ends, 4).tolist(), "why": dimension["why"]}
        else:
            made[name] = dimension
    return made


def _finished(**parts: Any) -> Problem | None:
    """A problem with its best value, looked for at 512 points; ``None`` if nothing beats doing nothing."""
    draft = Problem(**parts)
    spec = draft.sweep({"name": "random"})
    best = max(draft.value(p) for p in _cover(spec, 512))
    return Problem(**parts, best=best) if best > 0.05 else None


def _cover(spec: SweepSpec, count: int) -> Iterator[dict[str, Choice]]:
    """Points that fill a space evenly."""
    dimensions = ordered_dimensions(spec)
    for row in qmc.Sobol(len(dimensions), rng=0).random(count):
        point: dict[str, Choice] = {}
        for place, (name, dimension) in zip(row, dimensions.items(), strict=True):
            if not is_active(dimension, point):
                continue
            if dimension.categorical is not None:
                choices = dimension.categorical
                point[name] = choices[min(int(place * len(choices)), len(choices) - 1)]
            else:
                range_ = dimension.float_range
                assert range_ is not None
                low, high = range_.low, range_.high
                point[name] = (
                    low * (high / low) ** place if range_.log else low + place * (high - low)
                )
        yield point


def _fit(points: Array, values: Array) -> dict[Kind, tuple[Any, float, Quality]]:
    """Surrogates of each kind, the noise of the values (that of the Gaussian process), and their qualities."""
    process = GaussianProcess(points, values)
    made: dict[Kind, Any] = {"gp": process, "forest": Forest(points, values)}
    return {kind: (m, process.noise, quality(values, m)) for kind, m in made.items()}


def _row(axes: Sequence[Axis], params: Proposal, name: Callable[[str], str] = str) -> list[float]:
    return [axis.unit(float(params[name(axis.name)])) for axis in axes]


# TOFU


def _knobs(model: Mapping[str, Any]) -> dict[str, float]:
    """The searched settings of a logged model; those of RMU and SimNPO stand in its name."""
    parts = str(model["model"]).split("_")
    found = {"learning_rate": float(model["lr"])}
    if model["method"] == "rmu":
        found["layer"] = float(next(p for p in parts if p.startswith("l") and p[1:].isdigit())[1:])
    elif model["method"] == "simnpo":
        found["simnpo.beta"] = float(next(p for p in parts if p.startswith("b"))[1:]) / 10
        found["simnpo.gamma"] = {"g0125": 0.125, "g025": 0.25}[
            next(p for p in parts if p[0] == "g")
        ]
    else:
        found["retain_weight"] = float(model["alpha"])
    return found


def _tofu(path: Path) -> Iterator[Problem]:
    logged = json.loads(path.read_text(encoding="utf-8"))["models"]
    level = {m["method"]: m["mem"] for m in logged if m["method"] in ("full", "retain")}
    by_method: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for model in logged:
        if model["lr"] is not None:
            by_method[model["method"]].append(model)
    shared_rate = Axis(name="learning_rate", low=1e-5, high=5e-5, log=True)
    for kind in KINDS:
        surfaces: dict[
            str, tuple[list[Axis], Callable[[Array], Sequence[tuple[float, float]]]]
        ] = {}
        noises, found = [], []
        for method, models in sorted(by_method.items()):
            rows = [_knobs(m) for m in models]
            axes = [_axis(name, [r[name] for r in rows]) for name in rows[0]]
            epochs = np.array([[float(m["epoch"] == "ep10")] for m in models])
            points = np.hstack([np.array([_row(axes, r) for r in rows]), epochs])
            memory, m_noise, m_quality = _fit(points, np.array([m["mem"] for m in models]))[kind]
            utilities = np.array([m["utility_rel"] for m in models])
            kept, u_noise, u_quality = _fit(points, utilities)[kind]

            def measured(
                row: Array, memory: Any = memory, kept: Any = kept
            ) -> list[tuple[float, float]]:
                both = np.array([[*row, 0.0], [*row, 1.0]])
                gap = abs(level["retain"] - level["full"])
                closures = 1.0 - np.abs(memory(both) - level["retain"]) / gap
                return list(zip(closures.tolist(), kept(both).tolist(), strict=True))

            surfaces[method] = (axes, measured)
            gap = abs(level["retain"] - level["full"])
            noise = (m_noise / gap, u_noise)
            noises.append(noise)
            found.append([m_quality, u_quality])
            made = _finished(
                name=f"tofu {method}",
                group="tofu",
                kind=kind,
                space={a.name: a.dimension() for a in axes},
                constrained=True,
                surface=lambda p, axes=axes, measured=measured: measured(np.array(_row(axes, p))),
                noise=noise,
                start=[_published_tofu(method, axes)],
                qualities=[m_quality, u_quality],
            )
            if made is not None:
                yield made
        weighted = tuple(m for m, (axes, _) in surfaces.items() if axes[-1].name == "retain_weight")
        space = {
            CHOSEN: {"categorical": list(surfaces), "why": "the losses of the data"},
            "learning_rate": shared_rate.dimension(),
            "retain_weight": Axis(name="retain_weight", low=1, high=5, log=True).dimension(
                {CHOSEN: weighted}
            ),
            "layer": Axis(name="layer", low=5, high=15).dimension({CHOSEN: "rmu"}),
            "simnpo.beta": Axis(name="simnpo.beta", low=3.5, high=4.5).dimension(
                {CHOSEN: "simnpo"}
            ),
            "simnpo.gamma": Axis(name="simnpo.gamma", low=0.125, high=0.25).dimension(
                {CHOSEN: "simnpo"}
            ),
        }

        def chosen(p: Proposal, surfaces: Any = surfaces) -> Any:
            axes, measured = surfaces[p[CHOSEN]]
            return measured(np.array(_row(axes, p)))

        made = _finished(
            name="tofu, choice of method",
            group="choice of method",
            kind=kind,
            space=space,
            constrained=True,
            surface=chosen,
            noise=tuple(np.median(noises, axis=0).tolist()),
            start=[
                {CHOSEN: m} | _published_tofu(m, [*axes[1:], shared_rate])
                for m, (axes, _) in surfaces.items()
                if m in ("graddiff", "npo")
            ],
            qualities=[q for pair in found for q in pair],
        )
        assert made is not None
        yield made


_PUBLISHED = {
    "learning_rate": 1e-5,
    "retain_weight": 1.0,
    "alpha": 1.0,
    "layer": 10.0,
    "simnpo.beta": 4.5,
    "simnpo.gamma": 0.125,
    "steering_coeff": 2.0,
}
"""OpenUnlearning's defaults (configs/trainer)."""


def _published_tofu(method: str, axes: Sequence[Axis]) -> dict[str, Choice]:
    found = dict(_PUBLISHED) | ({"learning_rate": 1e-4} if method == "undial" else {})
    return {a.name: _nearest(a, found[a.name]) for a in axes}


def _nearest(axis: Axis, value: float) -> float:
    if axis.choices is not None:
        return min(axis.choices, key=lambda c: abs(c - value))
    return min(axis.high, max(axis.low, value))


def _axis(name: str, values: Sequence[float], *, choices: bool = False) -> Axis:
    low, high = min(values), max(values)
    found = tuple(sorted(set(values))) if choices else None
    return Axis(name=name, low=low, high=high, log=low > 0 and high / low >= 4.0, choices=found)


# Budgeted searches

_PUBLISHED_BY_LOSS: Mapping[str, Mapping[str, float]] = {
    "GradDiff": {},
    "NPO": {"beta": 0.1},
    "SimNPO": {"beta": 4.5, "delta": 0.0, "gamma": 0.125},
    "UNDIAL": {"beta": 10.0},
    "RMU": {},
}


def _budgeted(data: Path, every: int) -> Iterator[Problem]:
    studies = {
        path: json.loads(path.read_text("utf-8")) for path in sorted(data.glob("*.results*.json"))
    }
    axes = _budgeted_axes(studies.values())
    place = itertools.count()
    for n_cell, (path, by_method) in enumerate(studies.items()):
        is_chosen_among = n_cell % max(1, every // 3) == 0
        cell = path.name.removesuffix(".json").replace(".results", "")
        fitted: dict[tuple[Kind, str], Any] = {}
        for method, study in by_method.items():
            is_searched = next(place) % every == 0
            if not is_searched and not (is_chosen_among and method in LOSSES):
                continue
            names = tuple(sorted(study["trials"][0]["params"]))
            known = axes[method, names]
            rows = np.array([_row(known, _short(t["params"])) for t in study["trials"]])
            values = np.array([t["value"] for t in study["trials"]])
            untouched, best = float(np.median(values)), float(values.min())
            closures = np.clip((untouched - values) / (untouched - best), -1.0, 1.0)
            for kind, (surrogate, noise, found) in _fit(rows, closures).items():
                fitted[kind, method] = (known, surrogate, values, untouched, noise, found)
                if not is_searched or found.spearman < LEAST_SPEARMAN:
                    continue
                start = dict(_PUBLISHED) | dict(_PUBLISHED_BY_LOSS.get(method, {}))
                made = _finished(
                    name=f"{cell} {method}",
                    group="budgeted",
                    kind=kind,
                    space={a.name: a.dimension() for a in known},
                    constrained=False,
                    surface=lambda p, known=known, surrogate=surrogate: [
                        (float(surrogate(np.array([_row(known, p)]))[0]), 1.0)
                    ],
                    noise=(noise, 0.0),
                    start=[{a.name: _nearest(a, start[a.name]) for a in known}]
                    if method in _PUBLISHED_BY_LOSS
                    else [],
                    qualities=[found],
                )
                if made is not None:
                    yield made
        for kind in KINDS if is_chosen_among else ():
            yield from _choice_of_loss(cell, kind, {m: fitted[kind, m] for m in LOSSES})


def _choice_of_loss(cell: str, kind: Kind, fitted: Mapping[str, Any]) -> Iterator[Problem]:
    """One space over the five losses; the closure is that of the best logged value of all of them."""
    pooled = np.concatenate([values for _, _, values, *_ in fitted.values()])
    untouched, best = float(np.median(pooled)), float(pooled.min())
    rates = [known[0] for known, *_ in fitted.values()]
    assert all(rate.name == "learning_rate" for rate in rates)
    low, high = max(r.low for r in rates), min(r.high for r in rates)
    shared = Axis(name="learning_rate", low=low, high=high, log=True)
    space: dict[str, Any] = {
        CHOSEN: {"categorical": list(LOSSES), "why": "the losses of the data"},
        "learning_rate": shared.dimension(),
    }
    with_alpha = [m for m, (known, *_) in fitted.items() if any(a.name == "alpha" for a in known)]
    for method, (known, *_) in fitted.items():
        for axis in known:
            if axis.name == "alpha":
                space["alpha"] = Axis(name="alpha", low=1.0, high=5.0, log=True).dimension(
                    {CHOSEN: with_alpha}
                )
            elif axis.name != "learning_rate":
                space[f"{method}.{axis.name}"] = axis.dimension({CHOSEN: method})

    def surface(p: Proposal) -> Sequence[tuple[float, float]]:
        method = str(p[CHOSEN])
        known, surrogate, values, middle, _, _ = fitted[method]

        def name(axis: str) -> str:
            return axis if axis in ("learning_rate", "alpha") else f"{method}.{axis}"

        own = float(surrogate(np.array([_row(known, p, name)]))[0])
        value = middle - own * (middle - float(values.min()))
        return [((untouched - value) / (untouched - best), 1.0)]

    scale = [
        noise * (middle - float(values.min())) / (untouched - best)
        for _, _, values, middle, noise, _ in fitted.values()
    ]
    made = _finished(
        name=f"{cell}, choice of method",
        group="choice of method",
        kind=kind,
        space=space,
        constrained=False,
        surface=surface,
        noise=(float(np.median(scale)), 0.0),
        start=[
            {
                CHOSEN: m,
                "learning_rate": _nearest(shared, 1e-5),
                "alpha": 1.0,
            }
            for m in ("GradDiff",)
        ],
        qualities=[found for *_, found in fitted.values()],
    )
    if made is not None:
        yield made


def _short(params: Mapping[str, Any]) -> dict[str, float]:
    """Logged settings by the last part of their names; a layer by its number, lists (never varied) left out."""
    found = {name.rpartition(".")[2]: value for name, value in params.items()}
    layer = found.pop("module_regex", None)
    if layer is not None:
        found["layer"] = layer.rpartition(".")[2]
    return {name: float(value) for name, value in found.items() if not isinstance(value, list)}


def _budgeted_axes(
    studies: Sequence[Mapping[str, Any]] | Any,
) -> dict[tuple[str, tuple[str, ...]], list[Axis]]:
    """Axes of each method, over the ranges that its trials on all cells cover; the learning rate first."""
    pooled: dict[tuple[str, tuple[str, ...]], list[dict[str, float]]] = defaultdict(list)
    for by_method in studies:
        for method, study in by_method.items():
            for trial in study["trials"]:
                pooled[method, tuple(sorted(trial["params"]))].append(_short(trial["params"]))
    axes = {}
    for key, rows in pooled.items():
        names = sorted(rows[0], key=lambda n: (n != "learning_rate", n))
        axes[key] = [
            _axis(n, [r[n] for r in rows], choices=len({r[n] for r in rows}) <= 4) for n in names
        ]
    return axes


# Analytic


def _analytic() -> Problem:
    """Forgetting ``f = u + v / 2``, wanted at 0.9; damage grows with the rate ``u`` and leaves ``u <= 0.6``."""

    def surface(p: Proposal) -> Sequence[tuple[float, float]]:
        u = (math.log10(float(p["learning_rate"])) + 5.0) / 3.0
        v, w = float(p["strength"]), float(p["other"])
        closure = 1.0 - abs(u + v / 2.0 - 0.9) - 2.0 * (w - 0.3) ** 2
        return [(closure, UTILITY - 0.5 * (u - 0.6))]

    return Problem(
        name="analytic",
        group="analytic",
        kind="analytic",
        space={
            "learning_rate": Axis(name="", low=1e-5, high=1e-2, log=True).dimension(),
            "strength": Axis(name="", low=0.0, high=1.0).dimension(),
            "other": Axis(name="", low=0.0, high=1.0).dimension(),
        },
        constrained=True,
        surface=surface,
        noise=(0.02, 0.005),
    )
