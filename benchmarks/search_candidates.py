"""The samplers that ``benchmarks/search.py`` compares: those of a sweep file, and others behind the same door."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, cast

import optuna

from tuning.config import SweepSpec
from tuning.samplers import SAMPLERS, SamplerKind

Make = Callable[[SweepSpec, int], optuna.samplers.BaseSampler]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A sampler with its settings.

    Attributes:
        name: As the table shows it.
        settings: The section ``sampler`` of the sweep.
        started: Whether the sweep begins with published settings.
        told: Whether the sampler is told by how much a trial broke its constraints.
        kind: Stands in for the shipped sampler of that name; ``None`` for the shipped one itself.
    """

    name: str
    settings: Mapping[str, Any]
    started: bool = False
    told: bool = True
    kind: SamplerKind | None = None

    @property
    def is_shipped(self) -> bool:
        """Whether a sweep file can ask for it."""
        return self.kind is None and self.told

    @property
    def is_slow(self) -> bool:
        """Whether a proposal takes tenths of a second."""
        return self.settings["name"] in ("gp", "auto")

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While it lasts, the sweep's proposals are this sampler's."""
        entries = cast(dict[str, SamplerKind], SAMPLERS)
        name = self.settings["name"]
        shipped = entries[name]
        entries[name] = self.kind or shipped
        try:
            yield
        finally:
            entries[name] = shipped


def _tpe(**settings: Any) -> Make:
    def make(spec: SweepSpec, seed: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=spec.sampler.n_startup_trials, **settings
        )

    return make


def _tpe_kind(**settings: Any) -> SamplerKind:
    return SamplerKind(make=_tpe(**settings), has_model=True)


def _cma_es(spec: SweepSpec, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.CmaEsSampler(
        seed=seed,
        n_startup_trials=spec.sampler.n_startup_trials,
        independent_sampler=optuna.samplers.RandomSampler(seed=seed),
        warn_independent_sampling=False,
    )


def candidates() -> list[Candidate]:
    """Every sampler of the comparison."""
    even = replace(_tpe_kind(multivariate=True, group=True), spreads_startup=True)

    def of(sampler: str, n: int, name: str, **rest: Any) -> Candidate:
        return Candidate(
            name=f"{sampler}, {name}", settings={"name": sampler, "n_startup_trials": n}, **rest
        )

    found = [
        Candidate(name="random", settings={"name": "random"}),
        Candidate(name="qmc", settings={"name": "qmc"}),
        Candidate(name="grid, 4 a dimension", settings={"name": "grid"}),
        of("nsga2", 10, "population 10"),
        of("tpe", 10, "10 startup"),
        of("tpe", 10, "Optuna's defaults", kind=_tpe_kind()),
        of("tpe", 5, "5 startup"),
        of("tpe", 10, "10 spread startup", kind=even),
        of("tpe", 5, "5 spread startup", kind=even),
        of("tpe", 10, "one by one", kind=_tpe_kind(multivariate=False)),
        of("tpe", 10, "no constant liar", kind=_tpe_kind(constant_liar=False, group=True)),
        of("tpe", 10, "constraints not told", told=False),
        of("tpe", 10, "from published", started=True),
        of("gp", 10, "10 startup"),
        of("auto", 5, "5 startup"),
        of("auto", 10, "10 startup"),
        of("auto", 5, "constraints not told", told=False),
        of("auto", 5, "from published", started=True),
    ]
    if find_spec("cmaes") is not None:
        kind = SamplerKind(make=_cma_es, has_model=True, reads_pruned=False)
        settings = {"name": "tpe", "n_startup_trials": 10}
        found.append(Candidate(name="cma-es, 10 startup", settings=settings, kind=kind))
    return found
