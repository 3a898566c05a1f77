"""A sweep from its file to its finalists, and the resume of one: the whole story, top to bottom."""

import logging
import math
import os
import platform
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import ray
from ray import tune

from core.config import ModelConfig, TrialConfig
from core.errors import UserError, foreign, in_a_line
from core.measuring.scale import RetainScale, ScaleMetric, limit_warnings
from core.model.source import CONTENT, model_identity
from core.store import upkeep
from core.store.durable import commit_yaml
from core.store.locks import try_lock
from core.store.place import below_home
from core.training.shared_work import one_for_each_work
from tuning import records
from tuning.apart import a_rank, their_own_errors
from tuning.bridge import (
    Dispatcher,
    InterruptStopper,
    LedgerScheduler,
    LedgerSearcher,
    reconcile,
)
from tuning.config import SweepSpec, specification_changes
from tuning.data_words import data_warnings
from tuning.events import EventLog, Prepared, Silent, Warned, Watcher
from tuning.extending import asked_trials
from tuning.finalists import finish
from tuning.handing_out import HandedOut, PreparedFiles, hand_out
from tuning.ledger import Ledger
from tuning.packing import (
    LEAST_GAIN,
    LEAST_GAIN_ON_SHARED_GPU,
    SIZES,
    PackedTrial,
    choose,
    packed_placement,
    start_packs,
    time_sizes,
)
from tuning.resources import (
    DRIVER_GIB,
    Cluster,
    Needs,
    Running,
    asked_slots,
    at_the_same_time,
    concurrent_trials,
    largest_trials,
    rank_needs,
    read_largest,
    with_gpus,
)
from tuning.run import Run, load_run
from tuning.shared_folder import QUESTION, refuse_unshared
from tuning.space import bind, corner_proposals
from tuning.surroundings import (
    OBJECT_STORE_BYTES,
    loopback_problem,
    own_token,
    ray_folder,
    shell_problem,
)
from tuning.trainable import UnlearningTrial, placement
from tuning.validate import late_guard

_PACKAGES = ("unlearn-tune", "torch", "ray", "optuna", "deepspeed", "peft", "transformers")
_KNOCK_TIMEOUT_S = 5.0
_CLUSTER_FILE = below_home("ray_bootstrap_config.yaml")
"""Where ``ray up`` leaves the cluster file on the head."""
_QUIET: Mapping[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
"""How Ray is told to keep its log to itself."""
_A_GLANCE = 0.01
"""Share of a GPU that a look at it takes."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BEFORE_LEDGER = {records.LOCK_FILE, records.SPEC_FILE}
_HALVES = (*(f".{name}." for name in (records.SPEC_FILE, records.LEDGER_FILE)), QUESTION)
"""How the names begin that a kill leaves of files that were being committed, or asked for on other nodes."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal ended the driver; the run can be resumed.

    Args:
        signal_number: The signal.
    """

    def __init__(self, signal_number: int) -> None:
        """Keep the number: the exit status is 128 + it."""
        super().__init__(signal_number)
        self.signal_number = signal_number


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a driver meets Ray.

    Attributes:
        address: Address of an existing cluster; a Ray of its own on this machine if absent.
    """

    address: str | None = None


def run_sweep(
    spec: SweepSpec,
    run_dir: Path | str,
    *,
    file: Path | None = None,
    launch: Launch | None = None,
    watcher: Watcher | None = None,
) -> Run:
    """Run a sweep in a new run folder.

    Args:
        spec: The sweep.
        run_dir: The run folder.
        file: The sweep file that ``spec`` was read from, to be recorded.
        launch: How to meet Ray.
        watcher: Who is shown what happens.

    Raises:
        UserError: If the run exists, or model, data or resources are not as the file says.
        Interrupted: If a signal ended it.
    """
    launch, watcher, run_dir = launch or Launch(), watcher or Silent(), Path(run_dir)
    refuse_existing(spec, run_dir)
    upkeep.limit()  # refused before anything is done, as a cache that cannot be written
    with _signals() as signals, upkeep.held(), _lock(run_dir):
        try:
            with _ray(spec, launch) as plan:
                signals.install()  # Ray put its own in their place
                plan.tell(watcher)
                refuse_unshared(run_dir)
                spec, facts, prepared = _prepare(plan.spec, watcher, threads=plan.threads)
                facts = replace(facts, file="" if file is None else str(file.resolve()))
                commit_yaml(run_dir / records.SPEC_FILE, {"sweep": spec.plain(), **asdict(facts)})
                ledger = Ledger(run_dir, spec, create=True)
                with _driver_log(run_dir):
                    _drive(spec, run_dir, ledger, plan, watcher, signals, prepared)
        finally:
            if not (run_dir / records.LEDGER_FILE).exists():
                shutil.rmtree(run_dir)  # ended before anything was tried: the name stays free
    return load_run(run_dir)  # after the lock: the run is no longer driven


def resume_sweep(
    run_dir: Path | str,
    *,
    trials: int | None = None,
    spec: SweepSpec | None = None,
    launch: Launch | None = None,
    watcher: Watcher | None = None,
) -> Run:
    """Go on with a run exactly where it stopped.

    Args:
        run_dir: The run folder.
        trials: New number of trials of the whole sweep; as before if absent.
        spec: The sweep file as it is now, to be compared with the run's; not compared if absent. A larger number of
            trials than the run aims at is taken from it.
        launch: How to meet Ray.
        watcher: Who is shown what happens.

    Raises:
        UserError: If there is no run, another driver holds it, or the sweep, model or data changed.
        Interrupted: If a signal ended it.
    """
    launch, watcher, run_dir = launch or Launch(), watcher or Silent(), Path(run_dir)
    run = load_run(run_dir)
    if spec is not None:
        refuse_changed(spec, run)
    trials = asked_trials(run, trials=trials, spec=spec)
    begun = sum(bool(t.params) for t in run.trials)
    if trials is not None and trials < begun:
        raise UserError(
            f"--trials: the run already has {begun} trials, got {trials}; give a larger number"
        )
    upkeep.limit()
    if launch.address is None:  # a cluster may have what this machine has not
        refuse_other_contents(run.facts.identity, model_folders(run.spec), run_dir)

    def refuse_others(identity: Mapping[str, str]) -> None:
        refuse_other_contents(run.facts.identity, identity, run_dir)

    with (
        _signals() as signals,
        _lock(run_dir),
        upkeep.held(),
        _ray(run.spec, launch) as plan,
    ):
        signals.install()  # Ray put its own in their place
        plan.tell(watcher)
        refuse_unshared(run_dir)
        _, facts, prepared = _prepare(run.spec, watcher, threads=plan.threads, first=refuse_others)
        ledger = Ledger(run_dir, run.spec, create=False)
        for name, now in facts.versions.items():
            before = run.facts.versions.get(name)
            if before not in (None, now):
                watcher.show(Warned(text=f"{name} was {before} when the run began, is {now} now"))
        if trials is not None:
            ledger.set_note("target", trials)
        with _driver_log(run_dir):
            _drive(run.spec, run_dir, ledger, plan, watcher, signals, prepared)
    return load_run(run_dir)


def model_folders(spec: SweepSpec) -> dict[str, str]:
    """What names the models that lie in folders of this machine, without torch."""
    model = bind(spec, next(corner_proposals(spec)), where="sweep").model
    sources = {"model": model.source, "model.retain_only": model.retain_only}
    return {
        name: model_identity(ModelConfig(source=source))
        for name, source in sources.items()
        if source is not None and Path(source).is_dir()
    }


def refuse_other_contents(before: Mapping[str, str], now: Mapping[str, str], run_dir: Path) -> None:
    """Refuse to go on with another model or other rows than those of a run.

    Raises:
        UserError: With what changed; or that the run names a model folder by the hash of its files, as
            releases did that counted bytes which compute nothing.
    """
    changed = [k for k, v in now.items() if before.get(k, v) != v]
    by_files = [
        k for k in changed if before[k].startswith("sha256:") and now[k].startswith(CONTENT)
    ]
    if changed and changed == by_files:
        raise UserError(
            f"{run_dir}: an earlier release began this run and named {' and '.join(by_files)} by the bytes of "
            "all files; this one names it by what computes (weights, tokenizer, templates), and cannot tell "
            "whether it is the same; go on with the release that began it, or start a new run"
        )
    if changed:
        raise UserError(
            f"{run_dir}: {', '.join(changed)} changed since the run began; restore the old contents "
            "(for prompts, data.prompt_format too), or start a new run"
        )


def refuse_existing(spec: SweepSpec, run_dir: Path) -> None:
    """Refuse to start where a run is, and say what differs and how to go on.

    Raises:
        UserError: If the folder exists.
    """
    if not run_dir.exists():
        return
    found = {p.name for p in run_dir.iterdir() if not p.name.startswith(_HALVES)}
    if found <= _BEFORE_LEDGER and not records.is_driven(run_dir):
        return  # its driver was killed before anything was tried
    message = f"{run_dir} exists already; go on with `unlearn-tune resume {run_dir}`, or give another --name"
    if (run_dir / records.LEDGER_FILE).is_file():
        changes = _changes(spec, load_run(run_dir))
        if changes:
            message += "\nThe sweep file differs from the run's:\n" + "\n".join(changes)
    raise UserError(message)


def refuse_changed(spec: SweepSpec, run: Run) -> None:
    """Refuse a sweep file that no longer is the run's.

    Raises:
        UserError: With the difference.
    """
    changes = _changes(spec, run)
    if changes:
        raise UserError(
            f"{run.path}: the sweep file changed since the run began; undo the change, or start a new run "
            "with --name:\n" + "\n".join(changes)
        )


def _changes(spec: SweepSpec, run: Run) -> list[str]:
    for metric in run.spec.trial_selection().limited_metrics:
        if metric in get_args(ScaleMetric):  # resolved when the run began
            spec = spec.with_auto_as(metric)
    before, now = run.spec.binding(), spec.binding()
    now["engine"] = {**now["engine"]}
    for key in ("dtype", "device"):  # resolved when the run began
        if now["engine"].get(key, "auto") == "auto" and key in before["engine"]:
            now["engine"][key] = before["engine"][key]
    return specification_changes(before, now)


def _drive(
    spec: SweepSpec,
    run_dir: Path,
    ledger: Ledger,
    plan: "_Plan",
    watcher: Watcher,
    signals: "_Signals",
    prepared: PreparedFiles,
) -> None:
    """Bring the ledger to its target, measure finalists, write samples, and record how it ended."""
    log = EventLog(run_dir / records.EVENTS_FILE, watcher)
    began, before = time.monotonic(), ledger.driver_facts()
    target = before.target or spec.budget.trials
    points = ledger.n_points()
    if points is not None and points < target:
        target, wanted = points, target
        log.emit(Warned(text=exhausted(points, wanted)))
    ledger.set_note("target", target)
    ledger.set_note("ended", None)
    ledger.set_note("session_began", time.time())
    handed_out, _shelf = hand_out(prepared) if plan.is_far else (None, None)
    try:
        reconcile(spec, run_dir, ledger, log)
        if ledger.n_begun() < target or ledger.running():
            plan = plan.packed(spec, log)
        ledger.set_note("concurrent", plan.running.trials)
        dispatcher = Dispatcher(
            spec,
            run_dir,
            ledger,
            log,
            target=target,
            concurrent=plan.running.trials,
            needs=plan.needs_in_words,
        )
        if not dispatcher.is_done:
            with signals.handed_to(dispatcher):
                _execute(spec, plan, dispatcher, handed_out)
            signals.raise_received()
        finish(
            spec,
            run_dir,
            ledger,
            log,
            handed_out=handed_out,
            at_a_time=plan.running.workers * spec.resources.ranks_per_trial,
        )
        run = load_run(run_dir)
        ledger.set_note("ended", _ending(run))
    finally:
        elapsed_s = (before.elapsed_s or 0.0) + time.monotonic() - began
        ledger.set_note("elapsed_s", round(elapsed_s, 1))


def exhausted(points: int, wanted: int) -> str:
    """What is said when a space has fewer points than trials are wanted."""
    return (
        f"the sweep ends after {points} trials, not {wanted}: then every configuration of its space was tried once; "
        "to repeat them, search `seed`, too"
    )


def _ending(run: Run) -> records.Ending:
    if any(t.feasible and t.state == "COMPLETE" for t in run.trials):
        return "done"
    return "failed" if all(t.state == "FAIL" for t in run.trials) else "no_feasible"


def _execute(
    spec: SweepSpec, plan: "_Plan", dispatcher: Dispatcher, handed_out: HandedOut | None
) -> None:
    """Let Ray Tune run what the dispatcher hands out; its own state is scratch."""
    with (
        tempfile.TemporaryDirectory(prefix="unlearn-tune-") as scratch,
        _packs(spec, plan) as packs,
    ):
        trainable: type[tune.Trainable] = PackedTrial if packs else UnlearningTrial
        resources = plan.spec.resources
        place = packed_placement() if packs else placement(resources)
        tuner = tune.Tuner(
            tune.with_resources(trainable, place),
            tune_config=tune.TuneConfig(
                search_alg=LedgerSearcher(dispatcher, resources, handed_out, packs=packs),
                scheduler=LedgerScheduler(dispatcher),
                num_samples=-1,  # the searcher says when it is over
                max_concurrent_trials=plan.running.trials,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,
                stop=InterruptStopper(lambda: dispatcher.is_interrupted),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),  # the dispatcher tries again
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # nothing to save
            ),
        )
        tuner.fit()


@contextmanager
def _packs(spec: SweepSpec, plan: "_Plan") -> Iterator[Collection[str]]:
    """Names of the packs that trials share within the context; none where each has ranks of its own."""
    running = plan.running
    if running.slots == 1:
        yield ()
        return
    like = [bind(spec, proposal, where="sweep") for proposal in corner_proposals(spec)]
    packs = start_packs(
        like, n_packs=running.workers, n_slots=running.slots, resources=plan.spec.resources
    )
    try:
        yield packs.keys()
    finally:
        for pack in packs.values():
            ray.kill(pack)


def _prepare(
    spec: SweepSpec,
    watcher: Watcher,
    *,
    threads: int,
    first: Callable[[Mapping[str, str]], None] | None = None,
) -> tuple[SweepSpec, records.RunFacts, PreparedFiles]:
    """Do what all trials share, once, in a process of its own; resolve what depends on the hardware.

    Args:
        spec: The sweep.
        watcher: Who is shown what happens.
        threads: CPU cores that it may take.
        first: Looks at what names model and data, before the weights are loaded; may raise.
    """
    began = time.monotonic()
    trials = [bind(spec, proposal, where="sweep") for proposal in corner_proposals(spec)]
    with a_rank(spec, threads=threads) as call:
        if first is not None:
            first(call(_outlined_identity, trials[0]))
        facts, hardware, notices, prepared = call(_prepare_all, one_for_each_work(trials))
    scale = RetainScale.of(facts.baseline, facts.report_baseline)
    chosen = spec.with_auto_as(scale.metric)
    selection = chosen.trial_selection()
    warned = [late_guard(selection), *limit_warnings(selection, facts.baseline)]
    facts = replace(
        facts,
        scale=scale.why if spec.has_auto else "",
        warnings=[warning for warning in warned if warning],
    )
    watcher.show(
        Prepared(
            baseline=dict(facts.baseline),
            seconds=time.monotonic() - began,
            limited=selection.limited_metrics,
            scale=facts.scale,
        )
    )
    for text in (*facts.warnings, *notices, *data_warnings(facts.data_counts)):
        watcher.show(Warned(text=text))
    versions = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    facts = replace(facts, versions=versions, created=records.now())
    return chosen.model_copy(update={"engine": dict(spec.engine) | hardware}), facts, prepared


def _outlined_identity(warm: Any, group: Any, trial: TrialConfig) -> dict[str, str]:
    """Runs on a rank: what names model and data, by the outline of the model, without its weights."""
    return _identity(warm.outlined, trial)


def _identity(warm: Any, trial: TrialConfig) -> dict[str, str]:
    from core.model.loading import retain_only_identity

    identity = {"model": warm.model(trial).identity}
    identity |= {f"data.{part}": value for part, value in warm.data(trial).identity.items()}
    other = retain_only_identity(trial.model)
    return identity if other is None else identity | {"model.retain_only": other}


def _prepare_all(
    warm: Any, group: Any, trials: list[TrialConfig]
) -> tuple[records.RunFacts, dict[str, str], list[str], PreparedFiles]:
    """Runs on a rank: shared work of all trials.

    Returns:
        What is recorded of it, the engine's precision and device, notices, and the files that it left.
    """
    from core.measuring.baselines import baseline_levels
    from core.store import artifacts
    from core.worker import share_work

    with artifacts.noted() as files:
        for trial in trials:
            share_work(trial, warm=warm, group=group, others=trials)
    model, data = warm.model(trials[0]), warm.data(trials[0])
    baselines = {}
    for part in ("probe", "report"):
        levels = baseline_levels(trials[0], warm, group, part=part)
        baselines[part] = {f"{k}_nll": v.nll for k, v in levels.items()} | {
            f"{k}_accuracy": v.accuracy for k, v in levels.items()
        }
    facts = records.RunFacts(
        identity=_identity(warm, trials[0]),
        rows={part: len(rows) for part, rows in data.parts.items()},
        data_counts=data.counts,
        baseline=baselines["probe"],
        report_baseline=baselines["report"],
    )
    dtype = "bf16" if "bfloat16" in str(model.dtype) else "fp32"
    hardware = {"dtype": dtype, "device": model.device.type}
    return facts, hardware, warm.notices(trials[0]), PreparedFiles.here(files)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What a sweep runs on.

    Attributes:
        spec: The sweep, with ``resources.gpus_per_rank`` resolved.
        running: Trials at the same time, and what they run on.
        needs: What a rank needs of memory, where that is known.
        cluster: What there is.
        is_far: Whether it is a cluster, which may grow, and whose nodes may each have a cache of their own.
    """

    spec: SweepSpec
    running: Running
    needs: Needs | None
    cluster: Cluster
    is_far: bool

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

    def packed(self, spec: SweepSpec, log: EventLog) -> "_Plan":
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
        """Say what was chosen, where the machine and not the file said so."""
        trials, because = self.running.trials, self.running.because
        if self.running.slots > 1 or (
            trials < self.spec.budget.trials and because != "resources.max_concurrent"
        ):
            watcher.show(Warned(text=f"{trials} trials at a time: {because}"))


@contextmanager
def _ray(spec: SweepSpec, launch: Launch) -> Iterator[_Plan]:
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
            settled.enter_context(own_token())
        settled.callback(ray.shutdown)
        cluster = _start_ray(spec) if launch.address is None else _join_ray(launch.address)
        needs, gpu_memory_gib = _looked_at(spec, cluster, is_far=is_far)
        if cluster.gpu_memory_gib is None:
            cluster = replace(cluster, gpu_memory_gib=gpu_memory_gib)
        spec = with_gpus(spec, cluster, needs)
        running = at_the_same_time(spec, cluster, needs, slots=asked_slots(spec), may_grow=is_far)
        yield _Plan(spec=spec, running=running, needs=needs, cluster=cluster, is_far=is_far)


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


def _join_ray(address: str) -> Cluster:
    """Join the cluster at an address."""
    with foreign(partial(_no_answer, address)):
        _knock(address)
        ray.init(address=address, runtime_env=_code(), **_QUIET)
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
        most = read_largest(_CLUSTER_FILE)
        called = f"the cluster at its largest, by {_CLUSTER_FILE}"
    if not most:
        return Cluster.from_ray(now)
    largest = {n: max(float(most.get(n, 0)), now.get(n, 0.0)) for n in ("CPU", "GPU")}
    return Cluster.from_ray(largest, called=called)


def _looked_at(
    spec: SweepSpec, cluster: Cluster, *, is_far: bool
) -> tuple[Needs | None, float | None]:
    """What a rank needs, and the memory of a GPU, from a process that ends afterwards: torch stays out of this one.

    It is looked for only where ``auto`` has to be resolved.
    """
    resources = spec.resources
    if resources.max_concurrent != "auto" and resources.gpus_per_rank != "auto":
        return None, None
    on_gpu_node = is_far and cluster.gpus > 0 and spec.engine.get("device") != "cpu"
    glance = _A_GLANCE if on_gpu_node else 0
    task = ray.remote(max_calls=1, num_cpus=1, num_gpus=glance)(_look)  # the process ends with it
    with their_own_errors():
        found: tuple[Needs | None, float | None] = ray.get(task.remote(spec))
    return found


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


@contextmanager
def _lock(run_dir: Path) -> Iterator[None]:
    """Hold the run, whose folder is made; one driver at a time.

    Raises:
        UserError: If another driver holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / records.LOCK_FILE).open("a+") as file:
        if not try_lock(file):
            file.seek(0)
            raise UserError(
                f"{run_dir}: another driver holds this run ({file.read().strip()}); wait for it, or stop it"
            )
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {platform.node()} since {records.now()}\n")
        file.flush()
        yield


@contextmanager
def _driver_log(run_dir: Path) -> Iterator[None]:
    """Keep the warnings and errors of the driver's process, Ray's included, in ``driver.log``."""
    handler = logging.FileHandler(run_dir / "driver.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in (None, "ray")]  # Ray's does not propagate
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


class _Signals:
    """SIGINT and SIGTERM while a driver lives.

    While trials run, the first signal ends the sweep at the next turn, and a second one ends the process.
    At any other time a signal ends what is being done.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._dispatcher: Dispatcher | None = None

    def install(self) -> None:
        """Take SIGINT and SIGTERM."""
        for number in _SIGNALS:
            signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self._dispatcher is None:
            raise Interrupted(number)
        if self._received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._received.append(number)
        self._dispatcher.is_interrupted = True

    @contextmanager
    def handed_to(self, dispatcher: Dispatcher) -> Iterator[None]:
        """Within the context a signal stops ``dispatcher``."""
        self._dispatcher = dispatcher
        try:
            yield
        finally:
            self._dispatcher = None

    def raise_received(self) -> None:
        """Raise what came while trials ran.

        Raises:
            Interrupted: If a signal came.
        """
        if self._received:
            raise Interrupted(self._received[0])


@contextmanager
def _signals() -> Iterator[_Signals]:
    signals = _Signals()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    signals.install()
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
