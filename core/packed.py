"""Trials side by side in one process: each as it would run alone, with their optimiser steps made together."""

from collections.abc import Collection, Generator, Mapping, Sequence
from pathlib import Path

from core.config import TrialConfig
from core.measuring.selection import Probe
from core.model.layers import resolve_targets
from core.model.loading import LoadedModel
from core.training.pack import Pack, Shape
from core.training.place import slot_of
from core.training.ranks import Group
from core.training.warm import Warm
from core.worker import Turn, turns

Outcome = Probe | Exception
"""What a trial has come to: its next probe, or what broke it."""


class PackedTrials:
    """K slots of one frozen model, each for one trial after the other."""

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
        self._like, self._n_slots = tuple(like), n_slots
        self._group, self._warm = group, warm
        self._pack: Pack | None = None
        self._trials: dict[int, Generator[Turn | Probe, None, None]] = {}

    def begin(self, slot: int, config: TrialConfig, folder: Path | None) -> None:
        """Begin a trial in a slot that is free; the work begins with its first turn."""
        assert slot not in self._trials
        self._trials[slot] = turns(
            config,
            at=lambda trial, warm, steps: slot_of(
                trial, warm, steps, pack=self._packed(trial), number=slot, group=self._group
            ),
            folder=folder,
            group=self._group,
            warm=self._warm,
        )

    def turn(self, slots: Collection[int]) -> Mapping[int, Outcome]:
        """Bring trials forward by one step together; one that is due for a probe takes it instead.

        Args:
            slots: Trials that wait; the others stay where they are. All ranks are called with the same.

        Returns:
            What some of them have come to. A trial that broke is over, and its slot is free.
        """
        found: dict[int, Outcome] = {}
        waiting = {}
        for slot in sorted(slots):
            try:
                turn = next(self._trials[slot])
            except Exception as err:
                if self._group.size > 1:
                    raise  # other ranks may be waiting for this one
                del self._trials[slot]
                found[slot] = err
                continue
            if isinstance(turn, Probe):
                found[slot] = turn
            else:
                waiting[slot] = turn.micro_batches
        if waiting:
            assert self._pack is not None  # a trial that waits for a step fills a slot
            self._pack.step(waiting)
        return found

    def end(self, slot: int) -> None:
        """End the trial of a slot, which is free then."""
        trial = self._trials.pop(slot, None)
        if trial is not None:
            trial.close()

    def close(self) -> None:
        """End all trials, and give the network back as it was."""
        for slot in list(self._trials):
            self.end(slot)
        if self._pack is not None:
            self._pack.close()
            self._pack = None

    def _packed(self, config: TrialConfig) -> Pack:
        """The pack, made when the first trial comes to train."""
        if self._pack is None:
            known = self._warm.outlined if config.partitions == "base" else self._warm
            model = known.model(config)
            self._pack = Pack(
                self._warm.network(config),
                shape_for(self._like, model, n_slots=self._n_slots),
                engine=config.engine,
                group=self._group,
                dtype=model.dtype,
            )
        return self._pack


def shape_for(trials: Sequence[TrialConfig], model: LoadedModel, *, n_slots: int) -> Shape:
    """The layers that any of the trials adapts, and their largest rank.

    Raises:
        ModelError: If no layer matches the targets, a block does not exist, or a rank does not fit.
    """
    names: dict[str, None] = {}
    for trial in trials:
        adapter = trial.adapter
        found = resolve_targets(
            model.network, adapter.targets, rank=adapter.rank, layers=adapter.layers
        )
        names |= dict.fromkeys(found)
    return Shape(layers=tuple(names), rank=max(t.adapter.rank for t in trials), n_slots=n_slots)
