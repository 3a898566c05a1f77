"""Door to ray: a trial as a warm Tune actor that owns its DeepSpeed ranks inside Tune's placement group."""

import gc
import logging
import os
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray
from ray import tune
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from core.config import EngineConfig, TrialConfig
from core.errors import UserError, first_line
from core.measuring.selection import Probe
from core.model.machine import oom_kills
from core.store.ballast import is_full
from core.text.redaction import Redacting, redacted
from tuning.config import ResourcesSpec
from tuning.failures import FAILURE_FILE, exhausted
from tuning.handing_out import HandedOut
from tuning.limits import Course, Limits, Part, Watch
from tuning.notice import Listener
from tuning.storage.home import Home, Workplace
from tuning.surroundings import SPIN

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 30.0

PROBE = "probe"
"""Key of a Tune result that holds the probe."""


class Rank:
    """One process of a trial. It stays warm: the target model and the data serve trial after trial."""

    def __init__(self) -> None:
        """Import what a trial needs; nothing is loaded yet."""
        from core.training.warm import Warm

        self._warm = Warm()
        self._trial: Any = None
        self._turn: Any = None
        self._is_asked = threading.Event()
        self._meeting: Any = None
        self._group: Any = None
        self._log: logging.FileHandler | None = None
        self._workplace: Workplace | None = None

    def open(self, size: int) -> tuple[str, int]:
        """Open the meeting point of ``size`` ranks on this rank's machine."""
        from core.training.ranks import Rendezvous

        self._meeting = Rendezvous(size, host=ray.util.get_node_ip_address())
        return self._meeting.host, self._meeting.port

    def take(self, handed_out: HandedOut) -> None:
        """Copy to this node what another one prepared."""
        handed_out.fetch()

    def join(self, rank: int, size: int, host: str, port: int, engine: EngineConfig) -> None:
        """Join the trial's other ranks; Ray shows this process only its own GPU."""
        from core.training.ranks import join

        local = 0 if os.environ.get("CUDA_VISIBLE_DEVICES") else rank
        self._group = join(rank, size, host, port, engine, local_rank=local)

    def begin(self, config: TrialConfig, home: Home) -> None:
        """Begin a trial, or go on from a checkpoint of earlier attempts; the one before must be closed."""
        from core.training.place import own_engine
        from core.training.resuming import Interruption
        from core.worker import turns

        folder, earlier = home.folder, tuple[Path, ...]()
        if self._group is not None and self._group.is_first:
            self._workplace = home.enter()
            folder, earlier = self._workplace.folder, self._workplace.earlier
        self._log_to(folder)
        logger.info("trial begins in process %d: %s", os.getpid(), folder)
        self._is_asked.clear()
        self._trial = turns(
            config,
            at=partial(own_engine, group=self._group),
            folder=folder,
            group=self._group,
            warm=self._warm,
            interruption=Interruption(earlier=earlier, is_asked=self._is_asked),
        )

    def end_early(self) -> None:
        """Have the trial make a checkpoint when it is asked to go on, and end."""
        self._is_asked.set()

    def node(self) -> str:
        """The machine that this process is on, as Ray calls it."""
        return str(ray.get_runtime_context().get_node_id())

    def advance(self) -> Probe | Literal["ended"] | None:
        """Bring the trial to its next probe, or to where it waits for a step: then there is none.

        One that was asked to end has a checkpoint, and has ended. What it left until then is kept before it is told.
        """
        with broken_is_kept(self._workplace):
            reached = self._reached()
            if self._workplace is not None:
                self._workplace.commit(is_told=reached is not None)
            return reached

    def _reached(self) -> Probe | Literal["ended"] | None:
        from core.training.resuming import EndedEarlyError

        try:
            turn = next(self._trial)
        except EndedEarlyError:
            return "ended"
        if not isinstance(turn, Probe):
            self._turn = turn
            return None
        logger.info("step %d after %.1f s", turn.step, turn.seconds)
        return turn

    def make_step(self) -> None:
        """Make the step that the trial waits for, if it does."""
        turn, self._turn = self._turn, None
        if turn is not None:
            with broken_is_kept(self._workplace):
                turn.place.step(turn.micro_batches)

    def call(self, function: Any, argument: Any) -> Any:
        """``function(warm, group, argument)``: work of a sweep that needs the model but is no trial."""
        return function(self._warm, self._group, argument)

    def close(self) -> None:
        """End the trial; frees its engine and adapter."""
        workplace, self._workplace = self._workplace, None
        try:
            self._close()
        finally:
            if workplace is not None:
                self._end_log()
                workplace.leave()

    def _close(self) -> None:
        if self._trial is not None:
            trial, self._trial, self._turn = self._trial, None, None
            trial.close()
            if (
                not gc.get_freeze_count()
            ):  # model and data stay: no need to look at them after each trial
                gc.collect()
                gc.freeze()
            logger.info("trial closed")

    def _log_to(self, folder: Path) -> None:
        """Send this process's log to the trial's ``log.txt``, the first rank's only."""
        self._end_log()
        if self._group is not None and self._group.is_first:
            self._log = log_of(folder)
            logging.getLogger().addHandler(self._log)
            logger.setLevel(logging.INFO)

    def _end_log(self) -> None:
        if self._log is not None:
            logging.getLogger().removeHandler(self._log)
            self._log.close()
            self._log = None


@contextmanager
def broken_is_kept(workplace: Workplace | None) -> Iterator[None]:
    """Within the context a trial that breaks says so in its log, and what it left is kept, the first rank's only."""
    try:
        yield
    except BaseException:
        logger.exception("trial broke")
        if workplace is not None:
            workplace.commit_last()
        raise


def log_of(folder: Path) -> logging.FileHandler:
    """Writes the ``log.txt`` of a trial's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
    handler.setFormatter(Redacting())
    return handler


class ProbedTrial(tune.Trainable):
    """Tune's view of a trial: each ``step`` is a probe. This process stays small: others compute, and commit.

    A result without a probe says that the trial was asked to end, and can be gone on with.
    """

    def step(self) -> dict[str, Any]:
        """Have the trial come to its next probe."""
        try:
            probe = self._next_probe()
        except Exception as err:
            self._record_failure(err)
            raise
        return {PROBE: probe}

    def _next_probe(self) -> Probe | None:
        raise NotImplementedError

    def _record_failure(self, err: Exception) -> None:
        raise NotImplementedError

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing to save: the worker commits its history, adapter and checkpoints itself."""
        return {}

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load: an interrupted trial begins a new attempt, which looks for checkpoints itself."""


class UnlearningTrial(ProbedTrial):
    """A trial that owns its ranks, and watches whether they go on."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first trial; ranks start with its first step."""
        self._ranks: list[Any] = []
        self._nodes: list[str] = []
        self._begun = False
        self._assign(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial with the ranks kept warm; with new ones after ZeRO 3 on a copy, which it leaks."""
        self._close()
        if self._config.partitions == "copy":
            self._kill_ranks()
        self._assign(new_config)
        return True

    def _next_probe(self) -> Probe | None:
        """Have all ranks make steps until there is one; the first rank's counts (they are equal)."""
        if not self._ranks:
            self._start_ranks()
        if not self._begun:
            self._within(
                [rank.begin.remote(self._config, self._home) for rank in self._ranks], "load"
            )
            self._begun = True
        probe: Probe | Literal["ended"] | None = None
        while probe is None:
            probe = self._turn()
        if probe == "ended":
            return None
        self._course.probed(probe.step)
        return probe

    def _turn(self) -> Probe | Literal["ended"] | None:
        """A probe, or a step of all ranks; or the end, if the driver asked for it."""
        if self._listener.is_meant(self._nodes):
            self._within([rank.end_early.remote() for rank in self._ranks], "pause")
        came = [rank.advance.remote() for rank in self._ranks]
        stepped = [rank.make_step.remote() for rank in self._ranks]  # in the order of the calls
        probe: Probe | Literal["ended"] | None = self._within(came, self._course.next_part)[0]
        if probe is None:
            self._within(stepped, "step")
            self._course.stepped()
        return probe

    def _within(self, calls: list[Any], part: Part) -> list[Any]:
        """What the ranks return, in the time that it may take; all are killed where it takes longer.

        Raises:
            TrialTimeoutError: If the attempt takes too long.
            HungRankError: If the ranks make no step.
        """
        began = time.monotonic()
        try:
            found = list(ray.get(calls, timeout=self._watch.timeout_s(part)))
        except ray.exceptions.GetTimeoutError:
            _, silent = ray.wait(calls, num_returns=len(calls), timeout=0.0)
            ranks = [rank for rank, call in enumerate(calls) if call in silent]
            self._kill_ranks()
            raise self._watch.expired(part, silent=ranks, size=len(calls)) from None
        self._watch.took(part, time.monotonic() - began)
        return found

    def cleanup(self) -> None:
        """End the trial, which verifies the base weights, and the ranks' processes."""
        self._close(timeout_s=_CLOSE_TIMEOUT_S)
        self._kill_ranks()

    def _close(self, timeout_s: float | None = None) -> None:
        """End the trial on all ranks; a rank that died or hangs has nothing left to say."""
        try:
            ray.get([rank.close.remote() for rank in self._ranks], timeout=timeout_s)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            self._kill_ranks()
        except ray.exceptions.RayTaskError as err:
            self._record_failure(err)
            self._kill_ranks()

    def _kill_ranks(self) -> None:
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []

    def _assign(self, config: dict[str, Any]) -> None:
        self._config: TrialConfig = config["trial"]
        self._resources: ResourcesSpec = config["resources"]
        self._handed_out: HandedOut | None = config["handed_out"]
        self._home: Home = config["home"]
        limits: Limits = config["limits"]
        self._watch = Watch(limits)
        self._listener = Listener(config["notice"])
        self._course = Course(self._config.selection, is_resumed=bool(self._home.earlier))
        self._begun = False
        self._kills_before = oom_kills()

    def _start_ranks(self) -> None:
        self._nodes = []  # those of ranks before these
        size, engine = self._config.engine.ranks, self._config.engine
        group = ray.util.get_current_placement_group()
        ranks = self._ranks = [start_rank(self._resources, group, bundle=i) for i in range(size)]
        if self._handed_out is not None:
            self._within([rank.take.remote(self._handed_out) for rank in ranks], "load")
        self._nodes = self._within([rank.node.remote() for rank in ranks], "load")
        ((host, port),) = self._within([ranks[0].open.remote(size)], "load")
        joined = [r.join.remote(i, size, host, port, engine) for i, r in enumerate(ranks)]
        self._within(joined, "load")

    def _record_failure(self, err: Exception) -> None:
        killed = oom_kills() > self._kills_before
        record_failure(self._home, err, kernel_killed=killed, nodes=self._nodes)


def record_failure(
    home: Home, err: Exception, *, kernel_killed: bool, nodes: Sequence[str] = ()
) -> None:
    """Commit why an attempt broke, while its error is handled.

    Args:
        home: The attempt's.
        err: As Ray gives it.
        kernel_killed: The kernel has killed a process for want of memory since the attempt began.
        nodes: The machines that its ranks are on, if it had any.
    """
    cause = getattr(err, "cause", None) or err
    kind, place = type(cause).__name__, getattr(cause, "filename", None)
    said = str(cause) if isinstance(cause, UserError) else first_line(cause)
    record = {
        "kind": kind,
        "message": redacted(said),
        "is_user_error": isinstance(cause, UserError),
        "exhausted": exhausted(kind, str(cause), kernel_killed=kernel_killed),
        "place": None if place is None else str(place),
        "nodes": list(nodes),
        "traceback": redacted(traceback.format_exc()),
    }
    try:
        home.leave_word(FAILURE_FILE, record)
    except OSError as full:
        if not is_full(full):
            raise
        logger.exception("no room to say why")  # the driver, which has some, looks why


def start_rank(
    resources: ResourcesSpec,
    group: PlacementGroup | None = None,
    *,
    bundle: int = 0,
    kind: type = Rank,
) -> Any:
    """Start a rank's process with its share of cores and GPUs, in a bundle of a placement group."""
    threads = str(resources.cpus_per_rank)
    hidden = {} if resources.n_gpus else {"CUDA_VISIBLE_DEVICES": ""}  # Ray shows all by default
    options: dict[str, Any] = {
        "num_cpus": resources.cpus_per_rank,
        "num_gpus": resources.n_gpus,
        "runtime_env": {
            "env_vars": {
                "OMP_NUM_THREADS": threads,  # before torch starts: two busy pools stall each other
                "MKL_NUM_THREADS": threads,
                "GOMP_SPINCOUNT": SPIN,
                "PYTHONUTF8": "1",  # libraries read their own files by the locale
                "TOKENIZERS_PARALLELISM": "false",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "TRANSFORMERS_VERBOSITY": "error",
                **hidden,
            }
        },
    }
    if group is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
            placement_group=group,
            placement_group_bundle_index=bundle,
            placement_group_capture_child_tasks=True,
        )
    return ray.remote(kind).options(**options).remote()


def bundles(resources: ResourcesSpec) -> list[dict[str, float]]:
    """What each rank of a trial occupies."""
    bundle = {"CPU": float(resources.cpus_per_rank)}
    if resources.n_gpus:
        bundle["GPU"] = resources.n_gpus
    return [dict(bundle) for _ in range(resources.ranks_per_trial)]


def placement(resources: ResourcesSpec, *, name: str = "") -> tune.PlacementGroupFactory:
    """A trial's place: nothing for the small Tune actor, a bundle for each rank.

    Args:
        resources: What a rank occupies.
        name: Trials whose places have equal names may have the same process, one after the other.
    """
    strategy = resources.placement.upper()
    return tune.PlacementGroupFactory([{}, *bundles(resources)], strategy=strategy, name=name)
