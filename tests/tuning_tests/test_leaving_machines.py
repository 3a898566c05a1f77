"""While machines are leaving, Tune's trials share no processes: a warm one may be on such a machine."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import pytest
from ray.tune.experiment import Trial

from tuning.bridge import LedgerScheduler
from tuning.config import ResourcesSpec
from tuning.dispatcher import Dispatcher
from tuning.failures import Machines
from tuning.packing import packed_placement
from tuning.trainable import placement

OWN = partial(placement, ResourcesSpec(gpus_per_rank=0.0))
NOBODY = cast(Dispatcher, None)  # adding a trial asks it nothing


@pytest.mark.parametrize("place", [OWN, packed_placement])
def test_a_trial_has_a_place_of_its_own_while_machines_are_leaving(place: Any) -> None:
    leaving: set[str] = set()
    scheduler = LedgerScheduler(NOBODY, place, leaving=lambda: leaving)

    def place_of_next() -> Any:
        trial = Trial("trial", stub=True)
        trial.update_resources(place())
        scheduler.on_trial_add(None, trial)
        return trial.placement_group_factory

    assert place_of_next() == place_of_next() == place()
    leaving.add("spot")
    first, second = place_of_next(), place_of_next()
    assert len({first, second, place()}) == 3
    assert first.required_resources == place().required_resources
    leaving.clear()
    assert place_of_next() == place()


def test_machines_that_are_gone_or_going_are_lost() -> None:
    before = Machines(living=frozenset({"head", "spot", "old"}), leaving=frozenset({"old"}))
    assert before.lost(before) == ["old"]
    assert before.lost(Machines(living=frozenset({"head"}))) == ["old", "spot"]
    new = Machines(living=frozenset({"head", "spot", "new"}), leaving=frozenset({"spot"}))
    assert before.lost(new) == ["old", "spot"]
