"""Where scenarios are run: a folder, drivers, and the control of each sweep."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from faults.driver import Drivers, Ended, Life
from faults.study import SLOTS
from faults.tally import Tally
from faults.witness import Control, Witness
from tuning.config import SweepSpec

_EARLY = 100


@dataclass(kw_only=True)
class Case:
    """One run with faults in it.

    Attributes:
        spec: Its sweep.
        run_dir: Its folder.
        drivers: Who drives it.
        witness: Who looks at it.
    """

    spec: SweepSpec
    run_dir: Path
    drivers: Drivers
    witness: Witness

    def live(self, life: Life) -> Ended:
        """A driver's life, with a fault in it."""
        ended = self.drivers.live(self.spec, self.run_dir, life)
        self.witness.look(ended)
        return ended

    def finish(self, life: Life | None = None) -> Ended:
        """A driver that nothing hinders, to the end."""
        ended = self.drivers.live(self.spec, self.run_dir, life)
        self.witness.end(ended)
        return ended


@dataclass(kw_only=True)
class Bench:
    """Runs cases, one after the other, of those of a scenario that are this process's.

    Attributes:
        folder: Where runs are made.
        drivers: Who drives them.
        part: Which share of a scenario's cases is this process's, from 0.
        parts: Into how many they are divided.
        is_short: Whether one of each kind is enough.
    """

    folder: Path
    drivers: Drivers
    part: int = 0
    parts: int = 1
    is_short: bool = False
    _controls: dict[str, Control] = field(default_factory=dict)

    def control(self, spec: SweepSpec, *, slots: int = SLOTS) -> Control:
        """The sweep without faults, run once."""
        key = f"{slots} {spec.model_dump_json()}"
        if key not in self._controls:
            run_dir = self.folder / f"control-{len(self._controls)}"
            ended = self.drivers.live(spec, run_dir, Life(slots=slots))
            assert ended.status == 0, ended.said
            self._controls[key] = Control.of(run_dir, spec, ended)
        return self._controls[key]

    @contextmanager
    def case(self, spec: SweepSpec, tally: Tally, name: str) -> Iterator[Case]:
        """A new run, whose folder is removed afterwards."""
        run_dir = self.folder / "runs" / "case"
        shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.mkdir(parents=True)
        witness = Witness(run_dir, self.control(spec), tally, case=f"{tally.scenario}, {name}")
        yield Case(spec=spec, run_dir=run_dir, drivers=self.drivers, witness=witness)

    def mine(self, first: int, last: int, step: int = 1) -> Iterator[int]:
        """Those of the positions that are this process's; one in the middle if the bench is short."""
        positions = range(first, last + 1, step)
        if self.is_short:
            return iter(positions[len(positions) // 2 :][:1])
        return itertools.islice(positions, self.part, None, self.parts)

    def from_first(self, step: int = 1) -> Iterator[int]:
        """Positions from the first on, without an end; of a short bench one that is surely there."""
        if self.is_short:
            return iter([_EARLY])
        return itertools.count(1 + self.part * step, self.parts * step)
