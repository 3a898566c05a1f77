"""The whole story of a trial, from a configuration to its best adapter.

Baselines first, then steps and probes. Before a probe is handed out, its history line and, if it is the
best so far, its adapter are on disk: whoever runs the trial may stop it at any probe and needs nothing
more from it. All ranks of a trial run this code and see the same probes. An attempt that goes on from a
checkpoint of an earlier one tells the probes up to there again, and then is what that one would have been.
"""

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from core.config import TrialConfig
from core.measuring.baselines import baseline_levels
from core.measuring.history import History
from core.measuring.probing import Measurement, Probing, probing
from core.measuring.reporting import Decision, Reporter
from core.measuring.selection import Probe, best_probe, counted_share
from core.metrics.probes import Levels
from core.model.source import public_name
from core.store import artifacts
from core.store.place import cache_root
from core.store.told import refuse_told
from core.training.adapter import load_adapter, scaled
from core.training.full_parameters import FullParameters, is_model_folder
from core.training.initialisation import initial_factors
from core.training.passes import MicroBatch
from core.training.place import Place, SharedPack, own_engine
from core.training.ranks import Group, join_alone
from core.training.resuming import Checkpoints, EndedEarlyError, Interruption
from core.training.steps import Steps
from core.training.warm import Warm


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What a finished trial leaves."""

    probes: tuple[Probe, ...]
    best: Probe | None
    decision: Decision


def run_trial(
    config: TrialConfig,
    reporter: Reporter,
    *,
    folder: Path | None = None,
    group: Group | None = None,
    warm: Warm | None = None,
    interruption: Interruption | None = None,
) -> TrialResult:
    """Run a trial to its end, or until ``reporter`` stops it.

    Args:
        config: The trial.
        reporter: Receives each probe and decides.
        folder: Where history, adapter and checkpoints are committed; nothing is written if absent. The
            first rank's counts; all of them write their part of a checkpoint there.
        group: Ranks of the trial; this process alone if absent.
        warm: What the process keeps from earlier work.
        interruption: Attempts to go on from, and how this one is asked to end.

    Raises:
        UserError: If model or data are not as the configuration says.
        EndedEarlyError: If it was asked to end.
    """
    seen: list[Probe] = []
    decision = Decision()
    trial = probes(config, folder=folder, group=group, warm=warm, interruption=interruption)
    try:
        for probe in trial:
            seen.append(probe)
            decision = reporter.report(probe)
            if decision.stops:
                break
    finally:
        trial.close()
    return TrialResult(
        probes=tuple(seen), best=best_probe(seen, config.selection), decision=decision
    )


def probes(
    config: TrialConfig,
    *,
    folder: Path | None = None,
    group: Group | None = None,
    warm: Warm | None = None,
    interruption: Interruption | None = None,
) -> Generator[Probe, None, None]:
    """The trial: yields a probe every ``selection.probe_every`` steps, but for those that it leaves out.

    Closing the iterator ends it.

    Args:
        config: The trial.
        folder: Where the first rank commits ``history.jsonl`` and ``adapter/`` before each probe, and all of
            them ``checkpoints/``; the first rank's counts.
        group: Ranks of the trial; this process alone if absent.
        warm: What the process keeps from earlier trials.
        interruption: Attempts to go on from, and how this one is asked to end.

    Raises:
        UserError: If model or data are not as the configuration says, or there is nothing to forget.
        IntegrityError: If the base weights changed.
        EndedEarlyError: If it was asked to end.
    """
    if group is None:
        group, _meeting = join_alone(config.engine)
    warm = warm or Warm()
    at = partial(own_engine, group=group)
    trial = turns(config, at=at, folder=folder, group=group, warm=warm, interruption=interruption)
    try:
        for turn in trial:
            if isinstance(turn, Probe):
                yield turn
            else:
                turn.place.step(turn.micro_batches)
    finally:
        trial.close()


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A trial waits for an optimiser step, which is made before it is asked to go on."""

    place: Place
    micro_batches: Iterable[MicroBatch]


MakePlace = Callable[[TrialConfig, Warm, Steps], Place]
"""Makes, or fills, the place that a trial is trained in."""


def turns(
    config: TrialConfig,
    *,
    at: MakePlace,
    folder: Path | None,
    group: Group,
    warm: Warm,
    interruption: Interruption | None = None,
) -> Generator[Turn | Probe, None, None]:
    """The trial as :func:`probes` has it, which leaves it to others when its steps are made.

    Args:
        config: The trial.
        at: Gives the place that it is trained in.
        folder: Where its ranks commit.
        group: Ranks of the trial.
        warm: What the process keeps.
        interruption: As :func:`probes` has it.

    Yields:
        Each step to make, and each probe. All ranks yield the same.
    """
    started = time.monotonic()
    known = _known(config, warm, group)
    measure = probing(config, known, group, part="probe")
    steps = Steps(config, known.model(config), known.data(config))
    steps.prepare()
    group.wait()  # for whoever still did what is shared, before all load or attach together
    history = History(
        config.selection,
        measure.before,
        folder if group.is_first else None,
        extent=measure.extent,
        started=started,
        warmup_steps=config.optimizer.warmup_steps,
    )
    place: Place | None = None
    is_verified = False
    try:
        place = at(config, warm, steps)
        trained = place.trained
        kept = Checkpoints(
            config,
            place,
            group=group,
            folder=folder,
            interruption=interruption or Interruption(),
            source=known.fingerprint(config) | {"weights": warm.checksum},
            verify=warm.verify,
        )
        reached = kept.newest()
        if reached is None:
            history.begin(initial_rms=trained.initial_rms(), base_checksum=warm.checksum)
        else:
            steps.go_on_from(reached.steps, step=reached.step)
            history.go_on_from(reached)
            yield from history.probes
        for step in range(
            1 if reached is None else reached.step + 1, config.selection.max_steps + 1
        ):
            yield Turn(place=place, micro_batches=steps.next_step(group))
            steps.after_step(group)
            if step == 1:
                steps.refuse_unmoved(trained.unmoved(place.full_value))
            is_last = step == config.selection.max_steps
            is_probed = is_last or not (
                step % config.selection.probe_every or history.leaves_out(step)
            )
            if is_probed:
                probe = _probed(
                    config, step, place, measure, history, steps=steps, group=group, folder=folder
                )
                if probe.stopped_by is not None:
                    warm.verify()  # before anybody is told
                    is_verified = True
                group.wait()  # for the first rank, which writes
                yield probe
                if probe.stopped_by is not None:
                    return
            ends = kept.ends()
            if ends or kept.is_due(step, at_probe=is_probed):
                kept.write(partial(history.reached, step, steps.state()), step=step)
            if ends:
                raise EndedEarlyError(step)
    finally:
        if place is not None:
            place.leave()
        if not is_verified:
            warm.verify()


def _probed(
    config: TrialConfig,
    step: int,
    place: Place,
    measure: Probing,
    history: History,
    *,
    steps: Steps,
    group: Group,
    folder: Path | None,
) -> Probe:
    """Take the probe of ``step``, and commit it: first its adapter, if it is the best so far, then its line."""
    trained, is_last = place.trained, step == config.selection.max_steps
    with place.alone() as network:
        found = measure.during_trial(
            network,
            trained.scaled,
            is_last=is_last,
            limits=history.values_that_decide(),
            decides=partial(history.decides, step),
        )
    found = replace(found, metrics=dict(found.metrics) | steps.state())
    probe = history.judge(step, group.agree(found), is_last=is_last)
    if config.lands and history.may_land:
        with place.alone() as network:
            landed = measure.on_target(network, trained.scaled, history.probes)
        if landed is not None:
            probe = history.land(group.agree(landed))
    if folder is not None and group.is_first:
        refuse_told(folder)
    if history.best is not None and history.is_best(probe):
        tensors = trained.exported(place.full_value)  # every rank takes part
        if folder is not None and group.is_first:
            factor = counted_share(history.best.metrics)
            base = public_name(config.model)
            trained.save(folder / "adapter", tensors, base=base, factor=factor)
    history.commit(probe)
    return probe


class SideBySide:
    """Trials in the slots of one pack: each as it would run alone, with their optimiser steps made together."""

    def __init__(
        self, like: Sequence[TrialConfig], *, n_slots: int, group: Group, warm: Warm
    ) -> None:
        """Nothing is loaded yet.

        Args:
            like: Trials that say which layers and which rank the slots must have room for.
            n_slots: Trials at the same time.
            group: Ranks; all of them are called in the same order.
            warm: What the process keeps.
        """
        self._pack = SharedPack(like, n_slots=n_slots, group=group)
        self._group, self._warm = group, warm
        self._trials: dict[int, Generator[Turn | Probe, None, None]] = {}
        self._waiting: dict[int, Iterable[MicroBatch]] = {}

    def begin(
        self,
        slot: int,
        config: TrialConfig,
        *,
        folder: Path | None = None,
        interruption: Interruption | None = None,
    ) -> None:
        """Begin a trial in a slot that is free; see :func:`probes`."""
        assert slot not in self._trials
        self._trials[slot] = turns(
            config,
            at=partial(self._pack.place, number=slot),
            folder=folder,
            group=self._group,
            warm=self._warm,
            interruption=interruption,
        )

    def go_on(self, slot: int) -> Probe | None:
        """Bring a trial to its next probe, or to where it waits for a step: then there is none.

        Raises:
            UserError: As :func:`probes`; the trial is over.
            EndedEarlyError: As :func:`probes`; the trial is over.
        """
        turn = next(self._trials[slot])
        if isinstance(turn, Probe):
            return turn
        self._waiting[slot] = turn.micro_batches
        return None

    def step(self) -> None:
        """Make the steps that trials wait for, together."""
        waiting, self._waiting = self._waiting, {}
        if waiting:
            self._pack.step(waiting)

    def end(self, slot: int) -> None:
        """End the trial of a slot, which is free then."""
        self._waiting.pop(slot, None)
        trial = self._trials.pop(slot, None)
        if trial is not None:
            trial.close()

    def close(self) -> None:
        """End all trials, and give the network back as it was."""
        for slot in list(self._trials):
            self.end(slot)
        self._pack.close()


def _known(config: TrialConfig, warm: Warm, group: Group) -> Warm:
    """What the trial looks at, once its shared work is done: by the first rank, for the others it is copied.

    Under ZeRO 3 no rank keeps the whole target model: they look at its outline, and what is not in the cache
    is computed on a whole model that is let go of again.
    """
    alone, known = Group(rank=0, size=1), warm
    with artifacts.noted() as files:
        if config.partitions == "base":
            known = warm.outlined
        if group.is_first and known is not warm:
            try:
                with artifacts.only_looked_for():
                    share_work(config, warm=known, group=alone)
            except artifacts.NotMadeError:
                share_work(config, warm=Warm(), group=alone)
        elif group.is_first and group.size > 1:
            share_work(config, warm=warm, group=alone)
    group.hand_out(files, cache_root())
    return known


def share_work(
    config: TrialConfig, *, warm: Warm, group: Group, others: Sequence[TrialConfig] = ()
) -> Levels:
    """Do the work that trials share: baselines, terms of the reference model, Fisher, decomposition.

    Args:
        config: The trial.
        warm: What the process keeps.
        group: A group of this process alone.
        others: Trials whose work is done, too: what one measurement gives for several is measured once.

    Returns:
        Baseline levels of the probe split.

    Raises:
        UserError: If model or data are not as the configuration says, or there is nothing to forget.
    """
    baseline = baseline_levels(config, warm, group, part="probe")
    baseline_levels(config, warm, group, part="report")
    Steps(config, warm.model(config), warm.data(config)).prepare()
    if config.adapter.kind == "lora":
        initial_factors(config, warm.model(config), warm.data(config), others=others)
    return baseline


def report_measurement(
    config: TrialConfig, adapter: Path, *, warm: Warm, group: Group
) -> Measurement:
    """A saved adapter, or model, on the reporting split; adapters through stock PEFT.

    Args:
        config: The trial that made the adapter.
        adapter: Its folder.
        warm: What the process keeps.
        group: A group of this process alone.

    Returns:
        A probe's metrics, ``forget_closure_at_utility`` with its ``calibration_factor``, and intervals.
        The forget rows and those of the target are the probe's; retain and general rows are others. Where
        equal utility was the objective, what is saved is the scaled model already, and is measured as it is.
    """
    model = warm.model(config)
    measure = probing(config, warm, group, part="report")
    if is_model_folder(adapter):
        full = FullParameters.loaded(model, adapter)
        return measure.when_finished(full.model, full.scaled)
    adapted = load_adapter(model.network, adapter)
    try:
        return measure.when_finished(adapted, lambda factor: scaled(adapted, factor))
    finally:
        adapted.unload()  # type: ignore[operator]  # a PeftModel
