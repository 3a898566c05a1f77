"""Slots of a pack know nothing of each other: what diverges, waits or is padded in one stays there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from random_models import loaded, token_rows
from torch import Tensor

from core.config import AdapterConfig, EngineConfig, OptimizerConfig
from core.losses import nll_loss
from core.model.layers import linear_shape, resolve_targets
from core.model.loading import LoadedModel, forward_of
from core.training.adapter import InitialFactors
from core.training.pack import Pack, Shape
from core.training.passes import Forwarded, MicroBatch, Part
from core.training.ranks import join_alone

pytestmark = pytest.mark.integration

RANKS = (2, 6, 4)
N_STEPS = 3

Share = Callable[[Sequence[Forwarded]], Tensor]

each_stage = pytest.mark.parametrize("stage", [0, 1, 2, 3])


def factors(model: LoadedModel, rank: int, *, first: float = 0.3) -> dict[str, InitialFactors]:
    generator = torch.Generator().manual_seed(rank)
    made = {}
    for name in resolve_targets(model.network, "all", rank=1):
        n_out, n_in = linear_shape(model.network.get_submodule(name))
        a, b = (torch.randn(size, generator=generator) for size in ((rank, n_in), (n_out, rank)))
        made[name] = InitialFactors(a=first * a, b=0.3 * b)
    return made


@contextmanager
def a_pack(
    *,
    stage: int = 1,
    dtype: torch.dtype = torch.float32,
    decay: float = 0.0,
    broken: bool = False,
    together: bool = False,
) -> Iterator[tuple[Pack, LoadedModel]]:
    """Three slots of different rank on a tiny model; the factors of the second are not finite if ``broken``."""
    model = loaded(dtype=dtype)
    engine = EngineConfig(zero_stage=stage, device="cpu", dtype="fp32")
    group, _ = join_alone(engine)
    layers = tuple(resolve_targets(model.network, "all", rank=1))
    shape = Shape(layers=layers, rank=max(RANKS), n_slots=len(RANKS))
    pack = Pack(model.network, shape, engine=engine, group=group, dtype=dtype)
    pack.division.together = together
    try:
        for slot, rank in zip(pack.slots, RANKS, strict=True):
            first = torch.inf if broken and slot.number == 1 else 0.3
            slot.fill(
                factors(model, rank, first=first),
                AdapterConfig(rank=rank, scaling=0.5),
                OptimizerConfig(learning_rate=1e-2, weight_decay=decay),
                max_steps=N_STEPS,
            )
        yield pack, model
    finally:
        pack.close()


def cross_entropy(forwarded: Sequence[Forwarded]) -> Tensor:
    return nll_loss(forwarded[0].logits_NV, forwarded[0].labels_BT)


def not_finite(forwarded: Sequence[Forwarded]) -> Tensor:
    return cross_entropy(forwarded) * torch.nan


def only_its_gradient_is_not_finite(forwarded: Sequence[Forwarded]) -> Tensor:
    loss = cross_entropy(forwarded)
    return loss + (loss - loss.detach()).sqrt()  # 0, of infinite slope


def batches(slot: int, share: Share = cross_entropy) -> list[MicroBatch]:
    return [MicroBatch(parts=[Part(rows=token_rows(slot, (5, 9, 7)[slot:]))], share=share)]


def values(pack: Pack, slot: int) -> list[Tensor]:
    found = pack.slots[slot].increments(pack.full_value)
    return [t.clone() for _, *increments in found for t in increments]


def trained(
    steps: Sequence[Sequence[int]], shares: dict[int, Share] | None = None, **how: Any
) -> dict[int, list[Tensor]]:
    """Increments of each slot after steps of some of them."""
    with a_pack(**how) as (pack, _):
        for slots in steps:
            pack.step({s: batches(s, (shares or {}).get(s, cross_entropy)) for s in slots})
        return {slot: values(pack, slot) for slot in range(len(RANKS))}


@each_stage
@pytest.mark.parametrize("share", [not_finite, only_its_gradient_is_not_finite])
def test_a_step_that_is_not_finite_changes_nothing_of_its_slot_and_nothing_of_others(
    stage: int, share: Share
) -> None:
    everybody = [(0, 1, 2)] * N_STEPS
    found = trained(everybody, {1: share}, stage=stage)
    expected = trained([(0, 2)] * N_STEPS, stage=stage)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not any(t.any() for t in found[1])
    assert all(t.any() for t in found[0])


def test_a_model_that_is_not_finite_for_one_slot_is_so_for_no_other() -> None:
    found = trained([(0, 1, 2)] * N_STEPS, broken=True)
    expected = trained([(0, 2)] * N_STEPS)
    for slot in (0, 2):
        torch.testing.assert_close(found[slot], expected[slot], rtol=0, atol=1e-6)
    with a_pack(broken=True) as (pack, _):
        pack.step({s: batches(s) for s in range(3)})
        logits = []
        for own in pack.slots:
            with own.alone() as network:
                logits.append(forward_of(network)(torch.tensor([[1, 2, 3]]), torch.ones(1, 3)))
    assert [bool(found.isfinite().all()) for found in logits] == [True, False, True]


@each_stage
def test_a_slot_that_does_not_wait_for_a_step_stays_as_it_is(stage: int) -> None:
    found = trained([(0, 1, 2), (1,), (0, 1), (0,)], stage=stage)
    expected = trained([(0,), (0,), (0,)], stage=stage)[0]
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[2], trained([(2,)], stage=stage)[2], rtol=0, atol=1e-6)


def test_slots_computed_together_as_on_a_gpu_train_as_slots_in_turn() -> None:
    steps = [(0, 1, 2), (1, 2), (0, 1, 2)]
    torch.testing.assert_close(
        trained(steps, {1: not_finite}, together=True),
        trained(steps, {1: not_finite}),
        rtol=0,
        atol=1e-6,
    )


@each_stage
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_padding_of_lower_ranks_stays_exactly_zero(stage: int, dtype: torch.dtype) -> None:
    with a_pack(stage=stage, dtype=dtype, decay=0.5) as (pack, _):
        for _ in range(N_STEPS):
            pack.step({s: batches(s) for s in range(3)})
        for slot, rank in enumerate(RANKS):
            for layer in pack.layers.values():
                a, b = (pack.full_value(p) for p in layer.increments(slot))
                assert a[:rank].any() or b[:, :rank].any()
                assert not a[rank:].any()
                assert not b[:, rank:].any()


def test_a_packed_network_is_its_own_reference_and_is_itself_again_when_the_pack_is_gone() -> None:
    ids, mask = torch.tensor([[1, 2, 3, 4]]), torch.ones(1, 4)
    untouched = loaded()
    names = [name for name, _ in untouched.network.named_modules()]
    expected = forward_of(untouched.network)(ids, mask)
    with a_pack() as (pack, model):
        pack.step({s: batches(s) for s in range(3)})
        assert torch.equal(forward_of(model.network)(ids, mask), expected)
        with pack.slots[0].alone() as network, pack.slots[0].scaled(0.0):
            torch.testing.assert_close(forward_of(network)(ids, mask), expected)
        with pack.slots[0].alone() as network:
            assert not torch.allclose(forward_of(network)(ids, mask), expected)
    assert torch.equal(forward_of(model.network)(ids, mask), expected)
    assert [name for name, _ in model.network.named_modules()] == names
