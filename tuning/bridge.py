"""Door to ray and optuna together: Tune asks the ledger what to run, and the ledger says when to stop.

Tune only executes. Its searcher hands out what the ledger wants run (interrupted trials first, then new
ones); its scheduler reports each probe to the ledger and obeys the pruner. Neither keeps state that a
crash could lose.
"""

from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ray.tune import PlacementGroupFactory, Stopper
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tuning.dispatcher import Dispatcher
from tuning.handing_out import HandedOut
from tuning.limits import Limits
from tuning.packing import PACK
from tuning.trainable import PROBE

NUMBER = "number"


class LedgerSearcher(Searcher):
    """Tune's question "what next?", answered by the dispatcher."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        resources: Any,
        handed_out: HandedOut | None = None,
        *,
        limits: Limits,
        notice: str,
        packs: Collection[str] = (),
    ) -> None:
        """Answer from a dispatcher.

        Args:
            dispatcher: Knows what is to run.
            resources: What a trial occupies.
            handed_out: What ranks get to their nodes.
            limits: How long attempts may take.
            notice: Where trials look whether they are to end.
            packs: Over which trials are spread, if any.
        """
        super().__init__()
        self._dispatcher, self._resources = dispatcher, resources
        self._handed_out, self._limits, self._notice = handed_out, limits, notice
        self._numbers: dict[str, int] = {}
        self._packs, self._in_pack = tuple(packs), dict[str, str]()

    def suggest(  # type: ignore[override]  # the base class's type forgets FINISHED
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        """The next assignment, ``None`` while only running trials are left, or the end."""
        assignment = self._dispatcher.next()
        if assignment is None:
            return Searcher.FINISHED if self._dispatcher.is_done else None
        self._numbers[trial_id] = assignment.number
        config = {
            NUMBER: assignment.number,
            "trial": assignment.trial,
            "home": assignment.home,
            "resources": self._resources,
            "handed_out": self._handed_out,
            "limits": self._limits,
            "notice": self._notice,
        }
        if self._packs:
            filled = Counter(self._in_pack.values())
            self._in_pack[trial_id] = min(self._packs, key=lambda name: filled[name])
            config[PACK] = self._in_pack[trial_id]
        return config

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial ended, or its attempt broke."""
        number = self._numbers.pop(trial_id)
        self._in_pack.pop(trial_id, None)
        if error:
            self._dispatcher.broke(number)
        else:
            self._dispatcher.finish(number)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the ledger is the truth."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class LedgerScheduler(FIFOScheduler):
    """Reports each probe to the ledger and obeys it."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        place: Callable[..., PlacementGroupFactory],
        *,
        leaving: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """Report to a dispatcher.

        Args:
            dispatcher: Judges probes.
            place: Makes what a trial occupies, with a ``name`` of its own.
            leaving: Says which machines are about to be taken away.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._dispatcher, self._place, self._leaving = dispatcher, place, leaving

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """While machines are leaving, give a trial a place of its own, which Ray makes on another one.

        Tune hands the process of a trial that ended to the next one that asks for an equal place; there it may be
        on such a machine.
        """
        super().on_trial_add(tune_controller, trial)
        if self._leaving():
            trial.update_resources(self._place(name=trial.trial_id))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Stop when the pruner says so, or the trial ended by its own rules."""
        probe = result[PROBE]
        ends = probe is None or self._dispatcher.take(trial.config[NUMBER], probe)
        decision: str = TrialScheduler.STOP if ends else TrialScheduler.CONTINUE
        return decision


class InterruptStopper(Stopper):
    """Ends Tune's loop when a signal asked for it."""

    def __init__(self, is_asked: Callable[[], bool]) -> None:
        """Ask ``is_asked`` at every turn."""
        self._is_asked = is_asked

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Single trials are the scheduler's business."""
        return False

    def stop_all(self) -> bool:
        """Whether to end."""
        return self._is_asked()
