"""What one node prepared reaches a rank whose node has another cache, and the rank computes none of it again."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from core.config import TrialConfig
from core.store import artifacts
from core.store.place import CACHE_VARIABLE, cache_root
from core.training.ranks import join_alone
from core.training.warm import Warm
from core.worker import share_work
from tuning.config import ResourcesSpec
from tuning.handing_out import PreparedFiles, hand_out
from tuning.trainable import start_rank

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """This process's cache, and that of Ray's workers."""
    here, there = tmp_path / "here", tmp_path / "there"
    monkeypatch.setenv(CACHE_VARIABLE, str(there))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["tests", *(p for p in sys.path if p)]))
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
    )
    monkeypatch.setenv(CACHE_VARIABLE, str(here))
    yield here, there
    ray.shutdown()


def missing(warm: Any, group: Any, trial: TrialConfig) -> bool:
    """Whether a rank would have to compute something of the shared work."""
    try:
        with artifacts.only_looked_for():
            share_work(trial, warm=warm, group=group)
    except artifacts.NotMadeError:
        return True
    return False


def test_a_rank_with_an_empty_cache_gets_what_another_node_prepared(
    caches: tuple[Path, Path], make_trial: Any
) -> None:
    here, there = caches
    trial = make_trial({"method.adapter_init": "fila", "method.retain_loss": "kl"})
    group, _meeting = join_alone(trial.engine)
    with artifacts.noted() as files:
        share_work(trial, warm=Warm(), group=group)
    assert cache_root() == here
    kinds = {name.partition("/")[0] for name in files}
    assert kinds == {"baselines", "factors", "importance", "reference"}
    handed_out, _shelf = hand_out(PreparedFiles.here(files))
    rank = start_rank(ResourcesSpec())
    host, port = ray.get(rank.open.remote(1))
    ray.get(rank.join.remote(0, 1, host, port, trial.engine))
    assert ray.get(rank.call.remote(missing, trial))
    ray.get(rank.take.remote(handed_out))
    assert not ray.get(rank.call.remote(missing, trial))
    for name in handed_out.names:
        assert (there / name).read_bytes() == (here / name).read_bytes()
