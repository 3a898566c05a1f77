"""Ranks of one trial never share a GPU: NCCL would fail after all have started."""

import pytest
from small_sweep import problems, spec_of

from core.config import EngineConfig
from core.errors import UserError
from core.launch import refuse_shared_gpu


@pytest.mark.parametrize(
    ("ranks", "device", "n_gpus"),
    [(2, "auto", 0), (2, "cpu", 1), (1, "cuda", 1), (2, "cuda", 2), (2, "auto", 4)],
)
def test_ranks_with_a_gpu_each_or_none_are_fine(ranks: int, device: str, n_gpus: int) -> None:
    engine = EngineConfig.model_validate({"ranks": ranks, "device": device})
    refuse_shared_gpu(engine, n_gpus=n_gpus)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_two_ranks_on_one_gpu_are_refused(device: str) -> None:
    engine = EngineConfig.model_validate({"ranks": 2, "device": device})
    with pytest.raises(UserError, match=r"engine\.ranks: .* got 2 ranks for 1 GPUs; lower"):
        refuse_shared_gpu(engine, n_gpus=1)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_sweep_of_several_ranks_takes_whole_gpus(share: float) -> None:
    (found,) = problems({"resources.ranks_per_trial": 2, "resources.gpus_per_rank": share})
    assert found.startswith("resources: gpus_per_rank: no two ranks of a trial may share a GPU")
    assert f"got gpus_per_rank={share:g} with ranks_per_trial=2" in found


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_whole_gpus_or_none_are_valid(share: float) -> None:
    spec = spec_of({"resources.ranks_per_trial": 2, "resources.gpus_per_rank": share})
    assert spec.resources.gpus_per_rank == share
