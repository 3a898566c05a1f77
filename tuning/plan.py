"""Door to ray: a Ray of the sweep's own or a cluster, and what of the sweep runs on it at the same time."""

import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from core.errors import UserError, foreign, in_a_line
from tuning.admission import refuse_open_cluster
from tuning.apart import a_rank, early_rank, their_own_errors
from tuning.config import SweepSpec
from tuning.events import EventLog, Warned, Watcher
from tuning.every_node import rooms
from tuning.likeness import refuse_unlike
from tuning.packing import (
    LEAST_GAIN,
    LEAST_GAIN_ON_SHARED_GPU,
    SIZES,
    choose,
    time_sizes,
)
from tuning.resources import (
    DRIVER_GIB,
    LEFT_FILE,
    Cluster,
    Needs,
    Running,
    asked_slots,
    at_the_same_time,
    concurrent_trials,
    lacking,
    largest_trials,
    rank_needs,
    read_largest,
    with_gpus,
)
from tuning.surroundings import (
    OBJECT_STORE_BYTES,
    lacks_token,
    loopback_problem,
    make_token_private,
    own_token,
    ray_folder,
    shell_problem,
)

_KNOCK_TIMEOUT_S = 5.0
_QUIET: Mapping[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
"""How Ray is told to keep its log to itself."""
_A_GLANCE = 0.01
"""Share of a GPU that a look at it takes."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a driver meets Ray, the database of the ledger, and where its run is kept.

    Attributes:
        address: Address of an existing cluster; a Ray of its own on this machine if absent.
        grace_s: How long running trials may take to come to their next probe when a signal ends the sweep.
        ledger: URL of a PostgreSQL database, for a new run, or of a run's to log in anew; if absent, that of the
            environment (:data:`tuning.surroundings.LEDGER_VARIABLE`), else a file of the run folder.
        storage: Address of a storage that holds a copy of the run: a bucket, or a folder that all nodes mount. If
            absent, the one that the run folder names, or none.
        allows_insecure: Whether the cluster may be one that lets in who has no token.
    """

    address: str | None = None
    grace_s: float = 0.0
    ledger: str | None = None
    storage: str | None = None
    allows_insecure: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep runs on.

    Attributes:
        spec: The sweep, with ``resources.gpus_per_rank`` resolved.
        running: Trials at the same time, and what they run on.
        needs: What a rank needs of memory, where that is known.
        cluster: What there is.
        is_far: Whether it is a cluster, which may grow, and whose nodes may each have a cache of their own.
        grace_s: How long running trials may take to come to their next probe when a signal ends the sweep.
        early: The rank that was asked what is needed, to prepare the sweep; ``None`` if another process was.
    """

    spec: SweepSpec
    running: Running
    needs: Needs | None
    cluster: Cluster
    is_far: bool
    grace_s: float
    early: Any | None = None

    @property
    def threads(self) -> int:
        """CPU cores of one machine that all trials together take."""
        resources = self.spec.resources
        if self.is_far:  # on how many machines is not known
            return resources.cpus_per_rank
        n_ranks = self.running.workers * resources.ranks_per_trial
        return min(int(self.cluster.cpus), n_ranks * resources.cpus_per_rank)

    @property
    def needs_in_words(self) -> str:
        """What a rank needs, for messages; empty where that is not known."""
        if self.needs is None:
            return ""
        machine = f"{self.needs.of_machine(self.spec.resources):.2f} GiB of the machine's memory"
        gpu = f" and {self.needs.on_gpu:.2f} GiB of a GPU" if self.spec.resources.n_gpus else ""
        return f"a rank of the largest trial is estimated to need {machine}{gpu}"

    @property
    def room_gib(self) -> float | None:
        """Memory that a rank may take where it computes; ``None`` where that is not known."""
        resources = self.spec.resources
        if resources.n_gpus:
            return self.cluster.gpu_memory_gib
        if self.cluster.memory_gib is None:
            return None
        n_ranks = self.running.workers * resources.ranks_per_trial
        return (self.cluster.memory_gib - DRIVER_GIB) / n_ranks

    def packed(self, spec: SweepSpec, log: EventLog) -> "Plan":
        """The plan with ``engine.packing: auto`` resolved: steps of a trial are timed at several sizes."""
        resources, alone = self.spec.resources, self.running
        sizes = [n for n in SIZES if n <= math.ceil(spec.budget.trials / alone.workers)]
        if spec.trial_engine().packing != "auto" or len(sizes) < 2:
            return self
        trial = max(largest_trials(spec), key=lambda t: t.adapter.rank)
        with a_rank(spec) as call:
            seconds = call(time_sizes, (trial, sizes, self.room_gib))
        is_shared = 0 < resources.n_gpus < 1 and alone.workers > self.cluster.gpus
        choice = choose(seconds, least_gain=LEAST_GAIN_ON_SHARED_GPU if is_shared else LEAST_GAIN)
        log.emit(Warned(text=f"engine.packing: {choice.slots}, because {choice.because}"))
        if choice.slots == 1:
            return self
        packed = spec
        if is_shared:  # a pack has a GPU for itself
            whole = resources.model_copy(update={"gpus_per_rank": 1.0})
            packed = spec.model_copy(update={"resources": whole})
        running = at_the_same_time(
            packed, self.cluster, self.needs, slots=choice.slots, may_grow=self.is_far
        )
        return replace(self, spec=packed, running=running)

    def tell(self, watcher: Watcher) -> None:
        """Say what was chosen, where the machine and not the file said so; and what a trial would wait for."""
        lack = lacking(self.spec.resources, self.cluster) if self.is_far else None
        if lack is not None:
            watcher.show(Warned(text=f"no trial begins before nodes join that have room: {lack}"))
        trials, because = self.running.trials, self.running.because
        if self.running.slots > 1 or (
            trials < self.spec.budget.trials and because != "resources.max_concurrent"
        ):
            watcher.show(Warned(text=f"{trials} trials at a time: {because}"))


@contextmanager
def ray_for(spec: SweepSpec, launch: Launch) -> Iterator[Plan]:
    """A Ray to run on, and what runs on it.

    Raises:
        UserError: If this process has a Ray already, the cluster does not answer, or not even one trial fits.
    """
    if ray.is_initialized():
        raise UserError(
            "this process has a Ray already, and a sweep makes or joins its own; call ray.shutdown() first, and "
            "give the address of a cluster that is to be used"
        )
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # ours also takes SIGTERM
    os.environ["TUNE_FORCE_TRIAL_CLEANUP_S"] = "60"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = str(
        10**9
    )  # snapshots of all trials; nobody reads them
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    is_far = launch.address is not None
    with ExitStack() as settled:
        if launch.address is None:
            settled.callback(_read_token_anew)
            settled.enter_context(own_token())
            _read_token_anew()
        settled.callback(ray.shutdown)
        cluster = _start_ray(spec) if launch.address is None else _join_ray(launch)
        if is_far:
            refuse_unlike(spec)
        looks = spec.resources.max_concurrent == "auto" or spec.resources.gpus_per_rank == "auto"
        on_cpu = not is_far and not cluster.gpus
        early = early_rank(spec, cpus=int(cluster.cpus)) if looks and on_cpu else None
        needs, gpu_memory_gib = (
            _looked_at(spec, cluster, is_far=is_far, early=early) if looks else (None, None)
        )
        if cluster.gpu_memory_gib is None:
            cluster = replace(cluster, gpu_memory_gib=gpu_memory_gib)
        spec = with_gpus(spec, cluster, needs)
        running = at_the_same_time(spec, cluster, needs, slots=asked_slots(spec), may_grow=is_far)
        yield Plan(
            spec=spec,
            running=running,
            needs=needs,
            cluster=cluster,
            is_far=is_far,
            grace_s=launch.grace_s,
            early=early,
        )


def _start_ray(spec: SweepSpec) -> Cluster:
    """Start a Ray of this sweep's own on this machine, whatever other Ray there is.

    Raises:
        UserError: If not even one trial fits, or Ray would wait for ever.
    """
    cluster = Cluster.this_machine()
    concurrent_trials(with_gpus(spec, cluster, None).resources, cluster)  # refuses before Ray
    problem = loopback_problem() or shell_problem()
    if problem is not None:
        raise UserError(f"this machine: {problem}")
    with foreign(not_started):
        ray.init(
            address="local",
            num_cpus=int(cluster.cpus),
            num_gpus=int(cluster.gpus),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(ray_folder()),
            **_QUIET,
        )
    return cluster


def _read_token_anew() -> None:
    """Have this process's Ray look again at whether there is a token, and which: it keeps what it saw first.

    Where it must show one and there is none, a thread of it that still ends would end the process.
    """
    from ray._raylet import (  # type: ignore[attr-defined]  # of compiled code, without types
        AuthenticationTokenLoader,
        Config,
    )

    if lacks_token():
        return
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _join_ray(launch: Launch) -> Cluster:
    """Join a cluster that is there already.

    Raises:
        UserError: If it does not answer, or lets in who has no token and is not said to be allowed to.
    """
    address = str(launch.address)
    make_token_private()
    _read_token_anew()
    with foreign(partial(_no_answer, address)):
        _knock(address)
        if not launch.allows_insecure and ":" in address:
            refuse_open_cluster(address)
        ray.init(address=address, runtime_env=_code(), **_QUIET)
        if not launch.allows_insecure and ":" not in address:  # Ray knew where it is
            refuse_open_cluster(ray.get_runtime_context().gcs_address)
    return _largest_cluster()


def not_started(err: Exception) -> UserError:
    """What is said where Ray does not start; what half began is ended."""
    ray.shutdown()  # what half began
    return UserError(
        f"Ray does not start on this machine: {in_a_line(err)}; `unlearn-tune doctor` looks at what it needs, and "
        "Ray's own words are in session_latest/logs of its temporary folder (/tmp/ray)"
    )


def _no_answer(address: str, err: Exception) -> UserError:
    return UserError(
        f"--address {address}: the cluster does not answer: {in_a_line(err)}; check the address, that `ray status` "
        "works there, and that the authentication token is the cluster's"
    )


def _largest_cluster() -> Cluster:
    """The cluster at its largest: as its autoscaler or its file says, else as it is."""
    from ray._private.state import state

    now = ray.cluster_resources()
    most: Mapping[str, float] | None = state.get_max_resources_from_cluster_config()
    called = "the cluster at its largest, by Ray's autoscaler"
    if not most:
        most = read_largest(LEFT_FILE)
        called = f"the cluster at its largest, by {LEFT_FILE}"
    if not most:
        return Cluster.from_ray(now, rooms=rooms())
    largest = {n: max(float(most.get(n, 0)), now.get(n, 0.0)) for n in ("CPU", "GPU")}
    return Cluster.from_ray(largest, called=called)


def _looked_at(
    spec: SweepSpec, cluster: Cluster, *, is_far: bool, early: Any | None
) -> tuple[Needs | None, float | None]:
    """What a rank needs, and the memory of a GPU, so that ``auto`` can be resolved.

    Torch stays out of this process: ``early`` is asked, or one that ends afterwards.
    """
    if early is not None:
        with their_own_errors():
            found: tuple[Needs | None, float | None] = ray.get(
                early.call.remote(_look_on_rank, spec)
            )
        return found
    on_gpu_node = is_far and cluster.gpus > 0 and spec.engine.get("device") != "cpu"
    glance = _A_GLANCE if on_gpu_node else 0
    task = ray.remote(max_calls=1, num_cpus=1, num_gpus=glance)(_look)  # the process ends with it
    with their_own_errors():
        found = ray.get(task.remote(spec))
    return found


def _look_on_rank(warm: Any, group: Any, spec: SweepSpec) -> tuple[Needs | None, float | None]:
    """Runs on a rank."""
    return _look(spec)


def _look(spec: SweepSpec) -> tuple[Needs | None, float | None]:
    """Runs where ranks run."""
    return rank_needs(spec, slots=asked_slots(spec)), Cluster.this_machine().gpu_memory_gib


def _knock(address: str) -> None:
    """Fail at once where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_KNOCK_TIMEOUT_S).close()


def _code() -> dict[str, Any]:
    """Our packages, shipped to the cluster's workers and put first on their path."""
    import core
    import tuning

    return {"py_modules": [str(Path(p.__file__).parent) for p in (core, tuning) if p.__file__]}
