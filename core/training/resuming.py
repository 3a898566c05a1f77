"""Checkpoints of a trial: when one is due, what is in it, and how a later attempt goes on from it.

What a trial is between two steps: what the optimiser holds on each rank, the retain weight, the probes so far with
the best adapter among them, and the number of steps. The rest follows from configuration and number: the rows that
were read, the learning rate, what is dropped, and every draw, for all are seeded by purpose and place
(:mod:`core.seeding`), and no step reads a generator that others share.
"""

import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from core.config import TrialConfig
from core.errors import FileError
from core.store import checkpoints
from core.store.artifacts import content_key, save_tensors
from core.store.checkpoints import File, RefusedError
from core.store.durable import commit, commit_folder, commit_json, commit_lines, read_lines
from core.store.texts import read_json
from core.store.told import refuse_told
from core.training.place import Place
from core.training.ranks import Group

logger = logging.getLogger(__name__)

LEAST_S: Final = 60.0
"""``auto``: seconds of a trial that a kill may always cost; nothing is written for less."""
LARGEST_SHARE: Final = 0.03
"""``auto``: share of a trial's time that writing may take, by the time that the last checkpoint took."""

_STATE, _HISTORY, _ADAPTER = "state.json", "history.jsonl", "adapter"
_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "numpy")


class EndedEarlyError(Exception):
    """A trial was asked to end, and did so between two steps: it can be gone on with.

    Args:
        step: Steps made.
    """

    def __init__(self, step: int) -> None:
        """Say when."""
        super().__init__(f"the trial was asked to end and did so after step {step}")
        self.step = step

    def __reduce__(self) -> tuple[Any, ...]:
        """It passes between processes."""
        return type(self), (self.step,)


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """What a trial does about having been interrupted, and about being interrupted now; the first rank's counts.

    Attributes:
        earlier: Folders of the trial's attempts before this one, in their order: it goes on from the newest good
            checkpoint of them. This attempt's own may be the last.
        is_asked: Set, from any thread, to have the trial make a checkpoint after the step that it is at, and end.
            It is looked at after each step, and when the trial is asked to go on after a probe. With ``None`` nobody
            asks, and the ranks need not tell each other.
    """

    earlier: Sequence[Path] = ()
    is_asked: threading.Event | None = None


@dataclass(frozen=True, kw_only=True)
class Reached:
    """Where a trial is, beside what the place holds of it.

    Attributes:
        step: Steps made.
        seconds: That they took.
        steps: What :meth:`~core.training.steps.Steps.state` gives.
        skipped: Steps since the last probe at which one was due and was left out.
        lines: Committed lines of the history.
    """

    step: int
    seconds: float
    steps: Mapping[str, float]
    skipped: Sequence[int]
    lines: Sequence[Mapping[str, Any]]


class Checkpoints:
    """Those of one trial, written and read by all of its ranks together."""

    def __init__(
        self,
        config: TrialConfig,
        place: Place,
        *,
        group: Group,
        folder: Path | None,
        interruption: Interruption,
        source: Mapping[str, str],
        verify: Callable[[], None],
    ) -> None:
        """Nothing is read or written yet.

        Args:
            config: The trial.
            place: Where it is trained.
            group: Its ranks.
            folder: Of this attempt; nothing is written if absent. The first rank's counts.
            interruption: Attempts to go on from, and how this one is asked to end.
            source: What the trial's course follows from beside configuration and code, by name.
            verify: Raises where the base weights have changed; called before a checkpoint is written, so that
                nobody goes on with what was trained on other weights.
        """
        self._every = config.selection.checkpoint_every
        self._place, self._group, self._is_asked = place, group, interruption.is_asked
        identity = {
            "configuration": _configuration(config),
            "version of the code": code_version(),
            **source,
            "number of ranks": str(group.size),
            "way of sharing out what is trained": place.layout,
        }
        of_first = (
            identity,
            folder,
            tuple(interruption.earlier),
            interruption.is_asked is not None,
        )
        self._identity: dict[str, str]
        self._folder: Path | None
        self._earlier: tuple[Path, ...]
        self._identity, self._folder, self._earlier, self._listens = group.agree(of_first)
        self._verify, self._since, self._took_s = verify, time.monotonic(), 0.0

    def newest(self) -> Reached | None:
        """Bring the place to the newest good checkpoint of the attempts before; ``None`` if there is none.

        One that is damaged or of another trial is passed over for the one before, and that is said.
        """
        if not self._earlier:
            return None
        for path in self._group.agree(checkpoints.found(self._earlier)):
            tensors, read, problem = self._verified(path)
            problems = [p for p in self._group.gathered(problem) if p is not None]
            if problems:
                self._say(f"checkpoint {path} is not gone on from: {problems[0]}")
                continue
            reached: Reached = self._group.agree(read)
            self._place.go_on_from(tensors, step=reached.step)
            self._take_over(path)
            self._say(f"goes on from {path}, after step {reached.step}")
            return reached
        self._take_over(None)
        self._say("begins at step 0: there is no checkpoint to go on from")
        return None

    def ends(self) -> bool:
        """Whether the trial is asked to end after this step; the same on every rank."""
        is_asked = self._is_asked is not None and self._is_asked.is_set()
        return self._listens and self._group.ends(is_asked)

    def is_due(self, step: int, *, at_probe: bool) -> bool:
        """Whether one is written after ``step``; the same on every rank, and nothing else depends on it."""
        if self._folder is None or self._every == "off":
            return False
        if self._every != "auto":
            return step % self._every == 0
        if not at_probe:
            return False
        elapsed = time.monotonic() - self._since
        pays = elapsed >= max(LEAST_S, self._took_s / LARGEST_SHARE)
        return bool(self._group.agree(pays))

    def write(self, reached: Callable[[], Reached], *, step: int) -> None:
        """Write one; where a disk refuses it, say so and go on, for the trial itself lacks nothing.

        Args:
            reached: Where the trial is; the first rank is asked.
            step: Steps made.

        Raises:
            IntegrityError: If the base weights changed.
            ToldError: On the first rank, if the attempt was told.
        """
        if self._folder is None:
            return
        if self._group.is_first:
            refuse_told(self._folder)
        began = time.monotonic()
        self._verify()
        found = self._group.gathered(self._part(self._folder, step))
        problems = [problem for _, problem in found if problem is not None]
        if self._group.is_first:
            files = {name: file for of_rank, _ in found for name, file in of_rank.items()}
            if not problems:
                problems = self._finished(self._folder, reached(), files)
            if problems:
                shutil.rmtree(checkpoints.draft_of(self._folder, step), ignore_errors=True)
                self._say(f"no checkpoint after step {step}: {problems[0]}")
        self._group.wait()
        self._since = time.monotonic()
        self._took_s = self._since - began

    def _part(self, folder: Path, step: int) -> tuple[dict[str, File], str | None]:
        """This rank's file, and what keeps it from being written."""
        path = checkpoints.draft_of(folder, step) / _part_name(self._group.rank)
        try:
            if self._group.is_first:
                checkpoints.new_draft(folder, step)
        except OSError as err:
            return {}, str(err)
        finally:
            self._group.wait()
        if self._place.is_whole and not self._group.is_first:
            return {}, None
        if not path.parent.is_dir():
            return (
                {},
                f"rank {self._group.rank} does not see {folder}; put it on storage that all ranks share",
            )
        tensors = self._place.held()
        try:
            commit(path, lambda new: save_tensors(tensors, new))
            return {path.name: File.of(path)}, None
        except OSError as err:
            return {}, str(err)

    def _finished(self, folder: Path, reached: Reached, files: dict[str, File]) -> list[str]:
        """Add what the first rank knows; returns what keeps it from being written, if anything."""
        draft = checkpoints.draft_of(folder, reached.step)
        state = {
            "step": reached.step,
            "seconds": reached.seconds,
            "steps": dict(reached.steps),
            "skipped": list(reached.skipped),
        }
        try:
            commit_json(draft / _STATE, state)
            commit_lines(draft / _HISTORY, reached.lines)
            _take_in_all(folder / _ADAPTER, draft / _ADAPTER)
            own = [path for path in draft.rglob("*") if path.is_file() and path.name not in files]
            files = files | {path.relative_to(draft).as_posix(): File.of(path) for path in own}
            checkpoints.finish(folder, reached.step, identity=self._identity, files=files)
            checkpoints.keep_newest([*(a for a in self._earlier if a != folder), folder])
        except OSError as err:
            return [str(err)]
        return []

    def _verified(self, path: Path) -> tuple[dict[str, Tensor], Reached | None, str | None]:
        """What this rank goes on with, the first one's account beside it, and why it does not go on."""
        name = _part_name(0 if self._place.is_whole else self._group.rank)
        try:
            files = checkpoints.verify(path, identity=self._identity)
            tensors = dict(load_file(checkpoints.verify_file(path, name, files[name])))
            if not self._group.is_first:
                return tensors, None, None
            for other in files.keys() - {_part_name(rank) for rank in range(self._group.size)}:
                checkpoints.verify_file(path, other, files[other])
            return tensors, _read(path), None
        except (RefusedError, FileError, SafetensorError, OSError) as err:
            return {}, None, str(err)

    def _take_over(self, path: Path | None) -> None:
        """Have this attempt's folder hold the best adapter of a checkpoint, or none."""
        if not self._group.is_first or self._folder is None:
            return
        adapter = self._folder / _ADAPTER
        if path is not None and (path / _ADAPTER).is_dir():
            commit_folder(adapter, lambda new: _take_in_all(path / _ADAPTER, new))
        else:
            shutil.rmtree(adapter, ignore_errors=True)

    def _say(self, text: str) -> None:
        if self._group.is_first:
            logger.warning(text)


@lru_cache
def code_version() -> str:
    """Hash of the code that trains, with the data that it ships, and of the versions of the libraries below it."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.jsonl")]):
        digest.update(path.relative_to(root).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    for name in _PACKAGES:
        digest.update(f"{name} {version(name)}".encode())
    return digest.hexdigest()


def _configuration(config: TrialConfig) -> str:
    """Hash of all that a trial is configured with, but for when checkpoints are written."""
    plain = config.model_dump(mode="json")
    del plain["selection"]["checkpoint_every"]
    return content_key(plain)


def _part_name(rank: int) -> str:
    return f"rank-{rank}.safetensors"


def _take_in_all(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file():
            checkpoints.take_in(path, target / path.relative_to(source))


def _read(path: Path) -> Reached:
    """What :meth:`Checkpoints._finished` wrote, which was verified."""
    state = read_json(path / _STATE)
    return Reached(
        step=state["step"],
        seconds=state["seconds"],
        steps={name: float(value) for name, value in state["steps"].items()},
        skipped=state["skipped"],
        lines=read_lines(path / _HISTORY),
    )
