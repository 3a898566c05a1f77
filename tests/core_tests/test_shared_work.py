"""Which trials share work: equal keys for equal work, and no fewer than are needed."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from core.config import TrialConfig
from core.training.shared_work import (
    DECOMPOSED_RANK,
    decomposed_rank,
    one_for_each_work,
    shared_work,
)

TrialMaker = Callable[..., TrialConfig]

FILA: Mapping[str, Any] = {"method.adapter_init": "fila"}
KL: Mapping[str, Any] = {"method.retain_loss": "kl"}


@pytest.mark.parametrize(
    ("usual", "changes"),
    [
        pytest.param({}, {"optimizer.learning_rate": 1e-5}, id="learning-rate"),
        pytest.param({}, {"method.retain_weight": 3.0}, id="retain-weight"),
        pytest.param({}, {"method.forget_loss": "ga"}, id="a-loss-with-the-same-needs"),
        pytest.param({}, {"seed": 7}, id="seed"),
        pytest.param(KL, {"seed": 7}, id="order-of-retain-rows-whose-terms-are-kept-by-row"),
        pytest.param({}, {"batch.probe_batch_size": 3}, id="rows-of-a-probe-s-pass"),
        pytest.param({}, {"fisher.exponent": 1.0}, id="fisher-without-weights"),
        pytest.param(FILA, {"adapter.scaling": 4.0}, id="scaling-of-fila"),
        pytest.param(FILA, {"adapter.rank": 32}, id="rank-within-one-decomposition"),
        pytest.param({}, {"method.rmu.layer": 1}, id="block-that-nothing-reads"),
        pytest.param({}, {"method.alternatives": "idk"}, id="alternatives-that-nothing-reads"),
    ],
)
def test_what_changes_no_shared_work_has_the_same_key(
    make_trial: TrialMaker, usual: Mapping[str, Any], changes: Mapping[str, Any]
) -> None:
    assert shared_work(make_trial(usual)) == shared_work(make_trial({**usual, **changes}))


@pytest.mark.parametrize(
    ("usual", "changes"),
    [
        pytest.param({}, FILA, id="initialisation"),
        pytest.param({}, {"adapter.targets": "mlp"}, id="targets"),
        pytest.param({}, {"adapter.layers": [0]}, id="layers"),
        pytest.param({}, {"adapter.kind": "full"}, id="kind"),
        pytest.param(FILA, {"fisher.exponent": 1.0}, id="fisher-exponent"),
        pytest.param(FILA, {"adapter.rank": 33}, id="rank-beyond-the-decomposition"),
        pytest.param(
            {"method.adapter_init": "vila"}, {"adapter.scaling": 4.0}, id="scaling-of-vila"
        ),
        pytest.param({}, {"method.forget_loss": "npo"}, id="need-of-the-forget-loss"),
        pytest.param({}, KL, id="need-of-the-retain-loss"),
        pytest.param({}, {"method.forget_loss": "idk_nll"}, id="rows-of-the-forget-loss"),
        pytest.param({}, {"method.forget_loss": "ceu"}, id="tokens-left-alone"),
        pytest.param({}, {"method.retain_source": "general"}, id="rows-of-the-retain-loss"),
        pytest.param({}, {"method.retain_loss": "none"}, id="no-retain-loss"),
        pytest.param({}, {"batch.global_batch_size": 2}, id="rows-of-a-step"),
        pytest.param(
            {"method.forget_loss": "rmu", "method.retain_loss": "activation"},
            {"method.rmu.layer": 1},
            id="block",
        ),
    ],
)
def test_what_changes_shared_work_changes_the_key(
    make_trial: TrialMaker, usual: Mapping[str, Any], changes: Mapping[str, Any]
) -> None:
    assert shared_work(make_trial(usual)) != shared_work(make_trial({**usual, **changes}))


@pytest.mark.parametrize(
    ("rank", "decomposed"),
    [(1, 32), (31, 32), (32, 32), (33, 64), (64, 64), (65, 128), (1000, 1024)],
)
def test_ranks_up_to_32_share_a_decomposition_and_larger_ones_a_power_of_two(
    rank: int, decomposed: int
) -> None:
    assert DECOMPOSED_RANK == 32
    assert decomposed_rank(rank) == decomposed


def test_of_trials_with_equal_work_the_one_of_the_largest_rank_is_prepared(
    make_trial: TrialMaker,
) -> None:
    ranks = [make_trial({"adapter.rank": rank}) for rank in (4, 16, 8)]
    other = make_trial({"adapter.rank": 2, **FILA})
    assert one_for_each_work([*ranks, other]) == [ranks[1], other]
