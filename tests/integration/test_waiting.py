"""Ranks wait for a rank that works for all as long as it lives, and no collective waits with them."""

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from two_ranks import spawned

import core.training.initialisation
from core.config import TrialConfig
from core.measuring.history import History
from core.store import artifacts
from core.store.durable import commit, commit_json
from core.store.place import CACHE_VARIABLE
from core.training.ranks import Group, Patience, Rendezvous, join
from core.training.steps import Steps
from core.training.warm import Warm
from core.worker import probes

pytestmark = pytest.mark.integration

DEADLINE = timedelta(seconds=4)
DELAY_S = 6.0

TrialMaker = Callable[..., TrialConfig]


def slow(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which now takes longer than a collective may last."""

    def call(*args: Any, **kwargs: Any) -> Any:
        time.sleep(DELAY_S)
        return function(*args, **kwargs)

    return call


# A trial whose first rank is slow wherever it works for the others


def run_slow_trial(rank: int, host: str, port: int, trial: str, folder: str) -> None:
    """One of two ranks, with nothing in the cache."""
    config = TrialConfig.model_validate_json(trial)
    if rank == 0:
        names = vars(core.training.initialisation)
        names["importance_sums"] = slow(names["importance_sums"])
        History.commit = slow(History.commit)  # type: ignore[method-assign]
    else:
        Steps.prepare = slow(Steps.prepare)  # type: ignore[method-assign]
    group = join(rank, 2, host, port, config.engine, timeout=DEADLINE)
    found = [dict(p.metrics) for p in probes(config, group=group, warm=Warm())]
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def test_a_trial_s_ranks_outlast_a_first_rank_that_works_longer_than_a_collective_may(
    make_trial: TrialMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    changes = {"method.adapter_init": "fila", "selection.max_steps": 1, "selection.constraints": []}
    two = make_trial({**changes, "engine.ranks": 2})
    began = time.monotonic()
    spawned(run_slow_trial, two.model_dump_json(), str(tmp_path))
    assert time.monotonic() - began > 3 * DELAY_S  # Fisher, terms, a commit
    seen = [json.loads((tmp_path / f"{rank}.json").read_text("utf-8")) for rank in (0, 1)]
    assert seen[0] == seen[1]
    alone = [dict(p.metrics) for p in probes(make_trial(changes), warm=Warm())]
    assert len(alone) == 1
    for found, expected in zip(seen[0], alone, strict=True):
        assert found == pytest.approx(expected, rel=0, abs=1e-5)


# A cache for each machine


def run_with_own_cache(rank: int, host: str, port: int, trial: str, folder: str) -> None:
    """One of two ranks whose caches lie apart, as on two machines; says which terms it measured itself."""
    os.environ[CACHE_VARIABLE] = str(Path(folder, f"cache-{rank}"))
    measured: list[str] = []

    def watched(write: Callable[..., None]) -> Callable[..., None]:
        def write_and_note(path: Path, value: Any) -> None:
            measured.append(path.relative_to(os.environ[CACHE_VARIABLE]).parts[0])
            write(path, value)

        return write_and_note

    vars(artifacts).update(commit=watched(commit), commit_json=watched(commit_json))
    config = TrialConfig.model_validate_json(trial)
    group = join(rank, 2, host, port, config.engine)
    found = [dict(p.metrics) for p in probes(config, group=group, warm=Warm())]
    Path(folder, f"{rank}.json").write_text(json.dumps([measured, found]), encoding="utf-8")


@pytest.mark.parametrize("stage", [1, 3])
def test_the_first_rank_fills_the_cache_of_every_machine(
    make_trial: TrialMaker, tmp_path: Path, stage: int
) -> None:
    changes = {"method.forget_loss": "npo", "method.adapter_init": "svd", "engine.ranks": 2}
    trial = make_trial({**changes, "engine.zero_stage": stage, "selection.max_steps": 1})
    spawned(run_with_own_cache, trial.model_dump_json(), str(tmp_path))
    (first, found), (second, same) = (
        json.loads((tmp_path / f"{rank}.json").read_text("utf-8")) for rank in (0, 1)
    )
    assert {"baselines", "reference", "factors"} <= set(first)
    assert second == [], "nothing is measured twice"
    assert found == same
    files = [
        {
            path.relative_to(root): path.read_bytes()
            for path in root.rglob("*.*")
            if path.is_file() and path.suffix != ".lock" and path.parent.name != ".in-use"
        }
        for root in (tmp_path / "cache-0", tmp_path / "cache-1")
    ]
    assert files[0] == files[1] != {}


# A collective has its deadline, and so has silence


def come_late_to_a_collective(rank: int, host: str, port: int, trial: str, folder: str) -> None:
    """The second rank waits in a collective while the first is away."""
    config = TrialConfig.model_validate_json(trial)
    group = join(rank, 2, host, port, config.engine, timeout=DEADLINE)
    bare = Group(rank=rank, size=2)  # which has no patience
    if rank == 0:
        time.sleep(DELAY_S)
    else:
        try:
            bare.agree(None)
        except RuntimeError as err:
            Path(folder, "refused").write_text(str(err), encoding="utf-8")
    group.wait()
    os._exit(
        0
    )  # gloo's threads may abort a process that ends as usual after a collective was broken


def test_without_patience_the_deadline_strikes(make_trial: TrialMaker, tmp_path: Path) -> None:
    trial = make_trial({"engine.ranks": 2}).model_dump_json()
    spawned(come_late_to_a_collective, trial, str(tmp_path))
    assert "imed out" in (tmp_path / "refused").read_text("utf-8")


def test_a_rank_that_shows_no_sign_of_life_is_not_waited_for() -> None:
    meeting = Rendezvous(2)
    silence = timedelta(seconds=1)
    here = Patience(0, 2, meeting.host, meeting.port, silence=silence)
    with pytest.raises(RuntimeError, match="rank 1 has shown no sign of life for 1 s"):
        here.wait()
