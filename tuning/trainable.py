"""Door to ray: a trial as a warm Tune actor that owns its DeepSpeed ranks inside Tune's placement group."""

import gc
import logging
import os
import traceback
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from core.config import EngineConfig, TrialConfig
from core.errors import UserError, first_line
from core.measuring.selection import Probe
from core.model.machine import oom_kills
from core.store.durable import commit_json
from core.text.redaction import Redacting, redacted
from tuning.config import ResourcesSpec
from tuning.failures import FAILURE_FILE, exhausted
from tuning.handing_out import HandedOut
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
        self._meeting: Any = None
        self._group: Any = None
        self._log: logging.FileHandler | None = None

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

    def begin(self, config: TrialConfig, folder: Path) -> None:
        """Begin a trial; the one before must be closed."""
        from core.worker import probes

        self._log_to(folder)
        logger.info("trial begins in process %d: %s", os.getpid(), folder)
        self._trial = probes(config, folder=folder, group=self._group, warm=self._warm)

    def advance(self) -> Probe:
        """Train up to the next probe."""
        try:
            probe: Probe = next(self._trial)
        except BaseException:
            logger.exception("trial broke")
            raise
        logger.info("step %d after %.1f s", probe.step, probe.seconds)
        return probe

    def call(self, function: Any, argument: Any) -> Any:
        """``function(warm, group, argument)``: work of a sweep that needs the model but is no trial."""
        return function(self._warm, self._group, argument)

    def close(self) -> None:
        """End the trial; frees its engine and adapter."""
        if self._trial is not None:
            trial, self._trial = self._trial, None
            trial.close()
            if (
                not gc.get_freeze_count()
            ):  # model and data stay: no need to look at them after each trial
                gc.collect()
                gc.freeze()
            logger.info("trial closed")

    def _log_to(self, folder: Path) -> None:
        """Send this process's log to the trial's ``log.txt``, the first rank's only."""
        if self._log is not None:
            logging.getLogger().removeHandler(self._log)
            self._log.close()
        if self._group is not None and self._group.is_first:
            self._log = log_of(folder)
            logging.getLogger().addHandler(self._log)
            logger.setLevel(logging.INFO)


def log_of(folder: Path) -> logging.FileHandler:
    """Writes the ``log.txt`` of a trial's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
    handler.setFormatter(Redacting())
    return handler


class ProbedTrial(tune.Trainable):
    """Tune's view of a trial: each ``step`` is a probe. This process stays small: others compute, and commit."""

    def step(self) -> dict[str, Any]:
        """Have the trial come to its next probe."""
        try:
            probe = self._next_probe()
        except Exception as err:
            self._record_failure(err)
            raise
        return {PROBE: probe}

    def _next_probe(self) -> Probe:
        raise NotImplementedError

    def _record_failure(self, err: Exception) -> None:
        raise NotImplementedError

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing to save: the worker commits its history and adapter itself."""
        return {}

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load: an interrupted trial begins a new attempt."""


class UnlearningTrial(ProbedTrial):
    """A trial that owns its ranks."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first trial; ranks start with its first step."""
        self._ranks: list[Any] = []
        self._begun = False
        self._assign(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial with the ranks kept warm; with new ones after ZeRO 3 on a copy, which it leaks."""
        self._close()
        if self._config.partitions == "copy":
            self._kill_ranks()
        self._assign(new_config)
        return True

    def _next_probe(self) -> Probe:
        """Advance all ranks; the first rank's probe counts (they are equal)."""
        if not self._ranks:
            self._ranks = self._start_ranks()
        if not self._begun:
            self._on_all("begin", self._config, self._folder)
            self._begun = True
        probe: Probe = self._on_all("advance")[0]
        return probe

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
        self._folder = Path(config["folder"])
        self._begun = False
        self._kills_before = oom_kills()

    def _start_ranks(self) -> list[Any]:
        size = self._config.engine.ranks
        group = ray.util.get_current_placement_group()
        ranks = [start_rank(self._resources, group, bundle=i) for i in range(size)]
        if self._handed_out is not None:
            ray.get([rank.take.remote(self._handed_out) for rank in ranks])
        host, port = ray.get(ranks[0].open.remote(size))
        engine = self._config.engine
        ray.get([r.join.remote(i, size, host, port, engine) for i, r in enumerate(ranks)])
        return ranks

    def _on_all(self, method: str, *args: Any) -> list[Any]:
        return list(ray.get([getattr(rank, method).remote(*args) for rank in self._ranks]))

    def _record_failure(self, err: Exception) -> None:
        record_failure(self._folder, err, kernel_killed=oom_kills() > self._kills_before)


def record_failure(folder: Path, err: Exception, *, kernel_killed: bool) -> None:
    """Commit why an attempt broke, while its error is handled.

    Args:
        folder: The attempt's.
        err: As Ray gives it.
        kernel_killed: The kernel has killed a process for want of memory since the attempt began.
    """
    cause = getattr(err, "cause", None) or err
    kind = type(cause).__name__
    said = str(cause) if isinstance(cause, UserError) else first_line(cause)
    commit_json(
        folder / FAILURE_FILE,
        {
            "kind": kind,
            "message": redacted(said),
            "is_user_error": isinstance(cause, UserError),
            "exhausted": exhausted(kind, str(cause), kernel_killed=kernel_killed),
            "traceback": redacted(traceback.format_exc()),
        },
    )


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


def placement(resources: ResourcesSpec) -> tune.PlacementGroupFactory:
    """A trial's place: nothing for the small Tune actor, a bundle for each rank."""
    bundle = {"CPU": float(resources.cpus_per_rank)}
    if resources.n_gpus:
        bundle["GPU"] = resources.n_gpus
    return tune.PlacementGroupFactory([{}] + [bundle] * resources.ranks_per_trial, strategy="PACK")
