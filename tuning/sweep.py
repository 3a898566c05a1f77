"""A sweep from its file to its finalists, and the resume of one: the whole story, top to bottom."""

import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from ray import tune

from core.errors import UserError
from core.store import upkeep
from core.store.ballast import Ballast
from core.store.confinement import refuse_links_out
from core.store.durable import commit_sealed_yaml
from tuning import records
from tuning.bridge import InterruptStopper, LedgerScheduler, LedgerSearcher
from tuning.concluding import reconcile
from tuning.config import SweepSpec
from tuning.database import new_place, noted_place
from tuning.dispatcher import Dispatcher
from tuning.driven_run import begun_run, opened_ledger, ready_for_ledger, taken_run
from tuning.driver import Signals, driver_log, held_run, kept_run, signals_taken
from tuning.events import EventLog, Silent, Warned, Watcher
from tuning.extending import asked_trials
from tuning.finalist_evaluation import evaluate_untouched
from tuning.finalists import finish
from tuning.handing_out import HandedOut, PreparedFiles, hand_out
from tuning.ledger import Ledger, create_study
from tuning.limits import Limits
from tuning.nodes import machines
from tuning.notice import Notice
from tuning.packing import (
    PackedTrial,
    end_packs,
    packed_placement,
    start_packs,
)
from tuning.plan import Launch, Plan, ray_for
from tuning.preparing import prepare
from tuning.run import Run, load_run
from tuning.sameness import model_folders, refuse_changed, refuse_existing, refuse_other_contents
from tuning.space import bind, corner_proposals
from tuning.storage.keeping import Keeper
from tuning.storage.nodes import refuse_nodes_apart
from tuning.storage.recovery import bring_if_absent
from tuning.trainable import UnlearningTrial, placement


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
        EndedError: If another driver took the run over, or the ledger's server does not come back.
    """
    launch, watcher, run_dir = launch or Launch(), watcher or Silent(), Path(run_dir)
    refuse_existing(spec, run_dir)
    place = new_place(launch.ledger, run_dir.name)
    upkeep.limit()  # refused before anything is done, as a cache that cannot be written
    with signals_taken() as signals, upkeep.held(), held_run(run_dir):
        try:
            ready_for_ledger(run_dir, place, watcher)
            with kept_run(run_dir, launch, watcher) as keeper, ray_for(spec, launch) as plan:
                signals.install()  # Ray put its own in their place
                plan.tell(watcher)
                refuse_nodes_apart(run_dir, keeper)
                spec, facts, prepared = prepare(
                    plan.spec, watcher, threads=plan.threads, early=plan.early
                )
                untouched = evaluate_untouched(spec, threads=plan.threads)
                noted = {} if place is None else place.plain()
                name = "" if file is None else str(file.resolve())
                facts = replace(facts, file=name, evaluation=untouched, ledger=noted)
                commit_sealed_yaml(
                    run_dir / records.SPEC_FILE, {"sweep": spec.plain(), **asdict(facts)}
                )
                create_study(run_dir, spec, place=place)
                with begun_run(run_dir, place) as lease, driver_log(run_dir):
                    ledger = opened_ledger(
                        run_dir, spec, lease, place=place, watcher=watcher, signals=signals
                    )
                    with closing(ledger):
                        _drive(spec, run_dir, ledger, plan, watcher, signals, prepared, keeper)
        finally:
            if not (run_dir / records.LEDGER_FILE).exists():
                shutil.rmtree(run_dir)  # ended before anything was tried: the name stays free
    return load_run(run_dir)  # after the lock: the run is no longer driven


def resume_sweep(
    run_dir: Path | str,
    *,
    trials: int | None = None,
    spec: SweepSpec | None = None,
    takeover: bool = False,
    retry: Sequence[int] = (),
    launch: Launch | None = None,
    watcher: Watcher | None = None,
) -> Run:
    """Go on with a run exactly where it stopped.

    Args:
        run_dir: The run folder.
        trials: New number of trials of the whole sweep; as before if absent.
        spec: The sweep file as it is now, to be compared with the run's; not compared if absent. A larger number of
            trials than the run aims at is taken from it.
        takeover: Go on also if another driver holds the run, here or on another host; it ends at its next write.
        retry: Failed trials to repeat, beside the trials that the sweep aims at.
        launch: How to meet Ray.
        watcher: Who is shown what happens.

    Raises:
        UserError: If there is no run, another driver holds it, or the sweep, model or data changed.
        Interrupted: If a signal ended it.
        EndedError: If another driver took the run over, or the ledger's server does not come back.
    """
    launch, watcher, run_dir = launch or Launch(), watcher or Silent(), Path(run_dir)
    bring_if_absent(run_dir, launch.storage)
    asked, run = trials, load_run(run_dir)
    refuse_links_out(run_dir)
    trials = _trials_to_reach(run, trials=asked, spec=spec)
    upkeep.limit()
    if launch.address is None:  # a cluster may have what this machine has not
        refuse_other_contents(run.facts.identity, model_folders(run.spec), run_dir)

    place = noted_place(run.facts.ledger, launch.ledger, where=str(run_dir))

    def say(text: str) -> None:
        watcher.show(Warned(text=text))

    def refuse_others(identity: Mapping[str, str]) -> None:
        refuse_other_contents(run.facts.identity, identity, run_dir)

    with (
        signals_taken() as signals,
        taken_run(run_dir, place, takeover=takeover, tell=say) as lease,
        upkeep.held(),
        kept_run(run_dir, launch, watcher, takeover=takeover) as keeper,
        ray_for(run.spec, launch) as plan,
    ):
        lease.take()  # of the ledger that is here now: the storage may have had a newer one
        run = load_run(run_dir)  # another driver may have brought it further meanwhile
        trials = _trials_to_reach(run, trials=asked, spec=spec)
        signals.install()  # Ray put its own in their place
        plan.tell(watcher)
        ready_for_ledger(run_dir, place, watcher)
        refuse_nodes_apart(run_dir, keeper)
        _, facts, prepared = prepare(
            run.spec, watcher, threads=plan.threads, early=plan.early, first=refuse_others
        )
        ledger = opened_ledger(
            run_dir, run.spec, lease, place=place, watcher=watcher, signals=signals
        )
        for name, now in facts.versions.items():
            before = run.facts.versions.get(name)
            if before not in (None, now):
                say(f"{name} was {before} when the run began, is {now} now")
        if trials is not None:
            ledger.set_note("target", trials)
        if retry:
            ledger.add_retries(retry, target=trials or run.target)
        with closing(ledger), driver_log(run_dir):
            _drive(run.spec, run_dir, ledger, plan, watcher, signals, prepared, keeper)
    return load_run(run_dir)


def _trials_to_reach(run: Run, *, trials: int | None, spec: SweepSpec | None) -> int | None:
    """What the run is to reach from now on, if that changes.

    Raises:
        UserError: If the sweep file changed, or the run has more trials already.
    """
    if spec is not None:
        refuse_changed(spec, run)
    trials = asked_trials(run, trials=trials, spec=spec)
    begun = sum(bool(t.params) for t in run.trials)
    if trials is not None and trials < begun:
        raise UserError(
            f"--trials: the run already has {begun} trials, got {trials}; give a larger number"
        )
    return trials


def _drive(
    spec: SweepSpec,
    run_dir: Path,
    ledger: Ledger,
    plan: "Plan",
    watcher: Watcher,
    signals: "Signals",
    prepared: PreparedFiles,
    keeper: Keeper,
) -> None:
    """Bring the ledger to its target, measure finalists, write samples, and record how it ended."""
    log = EventLog(run_dir / records.EVENTS_FILE, watcher)
    began, before = time.monotonic(), ledger.driver_facts()
    ballast = Ballast(run_dir)
    target = before.target or spec.budget.trials
    points = ledger.n_points()
    if points is not None and points < target:
        target, wanted = points, target
        log.emit(Warned(text=exhausted(points, wanted)))
    ledger.set_note("target", target)
    ledger.set_note("ended", None)
    ledger.set_note("session_began", time.time())
    keeper.promise(records.SPEC_FILE)
    handed_out, _shelf = hand_out(prepared) if plan.is_far else (None, None)
    try:
        reconcile(spec, run_dir, ledger, log, keeper=keeper)
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
            ballast=ballast,
            machines=machines,
            grace_s=plan.grace_s,
            keeper=keeper,
        )
        if not dispatcher.is_done:
            with signals.handed_to(dispatcher):
                _execute(spec, plan, dispatcher, handed_out)
                dispatcher.acknowledge_all()
            dispatcher.raise_error()
            signals.raise_received()
        finish(
            spec,
            run_dir,
            ledger,
            log,
            keeper=keeper,
            handed_out=handed_out,
            at_a_time=plan.running.workers * spec.resources.ranks_per_trial,
        )
        run = load_run(run_dir)
        ledger.set_note("ended", _ending(run))
    finally:
        ballast.drop()
        elapsed_s = (before.elapsed_s or 0.0) + time.monotonic() - began
        ledger.set_note("elapsed_s", round(elapsed_s, 1))
        keeper.promise()
    keeper.secure()


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
    spec: SweepSpec, plan: "Plan", dispatcher: Dispatcher, handed_out: HandedOut | None
) -> None:
    """Let Ray Tune run what the dispatcher hands out; its own state is scratch."""
    with (
        tempfile.TemporaryDirectory(prefix="unlearn-tune-") as scratch,
        _packs(spec, plan) as packs,
        _noticed() as notice,
    ):

        def is_over() -> bool:
            """At every turn of Tune's loop."""
            notice.update(to_everybody=dispatcher.winds_down)
            return dispatcher.is_over()

        trainable: type[tune.Trainable] = PackedTrial if packs else UnlearningTrial
        resources = plan.spec.resources
        place = packed_placement if packs else partial(placement, resources)
        tuner = tune.Tuner(
            tune.with_resources(trainable, place()),
            tune_config=tune.TuneConfig(
                search_alg=LedgerSearcher(
                    dispatcher,
                    resources,
                    handed_out,
                    limits=Limits.of(spec.budget),
                    notice=notice.key,
                    packs=packs,
                ),
                scheduler=LedgerScheduler(dispatcher, place, leaving=notice.leaving),
                num_samples=-1,  # the searcher says when it is over
                max_concurrent_trials=plan.running.trials,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,
                stop=InterruptStopper(is_over),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),  # the dispatcher tries again
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # nothing to save
            ),
        )
        tuner.fit()


@contextmanager
def _noticed() -> Iterator[Notice]:
    """A notice to running trials, which is withdrawn after the context."""
    notice = Notice()
    try:
        yield notice
    finally:
        notice.withdraw()


@contextmanager
def _packs(spec: SweepSpec, plan: "Plan") -> Iterator[Collection[str]]:
    """Names of the packs that trials share within the context; none where each has ranks of its own."""
    running = plan.running
    if running.slots == 1:
        yield ()
        return
    like = [bind(spec, proposal, where="sweep") for proposal in corner_proposals(spec)]
    packs = start_packs(
        like,
        n_packs=running.workers,
        n_slots=running.slots,
        resources=plan.spec.resources,
        limits=Limits.of(spec.budget),
    )
    try:
        yield packs.keys()
    finally:
        end_packs(packs)
