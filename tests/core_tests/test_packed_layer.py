"""A packed layer computes for the rows of each slot what that slot's adapter alone would, forwards and backwards."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from core.training.adapter import InitialFactors
from core.training.packed_layer import Division, PackedLayer

N_IN, N_OUT, LARGEST = 7, 5, 4
RANKS = {0: 2, 1: 4, 2: None, 3: 1}
"""Rank of each slot's adapter on the layer; the third leaves it alone."""
SCALING = [2.0, 0.5, 1.0, 3.0]

each_way = pytest.mark.parametrize("together", [False, True], ids=["in-turn", "together"])


def drawn(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def packed(*, together: bool) -> tuple[Division, PackedLayer]:
    """Four slots with increments away from zero; the first two have factors B0, the others B0 = 0."""
    division = Division(len(RANKS), torch.device("cpu"), together=together)
    for slot, scaling in enumerate(SCALING):
        division.set_scaling(slot, scaling)
    layer = PackedLayer((N_OUT, N_IN), LARGEST, division, dtype=torch.float32)
    for slot, rank in RANKS.items():
        if rank is None:
            continue
        b = drawn(N_OUT, rank, seed=20 + slot) if slot < 2 else None
        layer.fill(slot, InitialFactors(a=drawn(rank, N_IN, seed=10 + slot), b=b))
        moved_a, moved_b = layer.increments(slot)
        moved_a.data[:rank] = drawn(rank, N_IN, seed=30 + slot)
        moved_b.data[:, :rank] = drawn(N_OUT, rank, seed=40 + slot)
    return division, layer


def expected(layer: PackedLayer, slot: int, x: Tensor, base: Tensor) -> Tensor:
    """``W x + s [(B0 + dB)(A0 + dA) - B0 A0] x``, written out."""
    factors, (moved_a, moved_b) = layer.factors(slot), layer.increments(slot)
    if factors is None:
        return base
    rank = len(factors.a)
    b0 = torch.zeros(N_OUT, rank) if factors.b is None else factors.b
    product = (b0 + moved_b[:, :rank]) @ (factors.a + moved_a[:rank]) - b0 @ factors.a
    return base + SCALING[slot] * x @ product.T


Gradients = Mapping[str, Tensor | None]


def gradients(layer: PackedLayer, x: Tensor, base: Tensor, out: Tensor) -> Gradients:
    layer.zero_grad()
    x.grad = base.grad = None
    (out * drawn(*out.shape, seed=50)).sum().backward()
    found = dict(layer.named_parameters()) | {"x": x, "base": base}
    return {name: None if p.grad is None else p.grad.clone() for name, p in found.items()}


@each_way
@pytest.mark.parametrize(
    "lengths",
    [
        pytest.param({0: 3, 1: 3, 2: 3, 3: 3}, id="equal-shares"),
        pytest.param({0: 4, 1: 1, 2: 2, 3: 6}, id="unequal-shares"),
        pytest.param({1: 5, 3: 2}, id="some-slots"),
        pytest.param({3: 2}, id="one-slot"),
    ],
)
def test_each_slot_gets_its_own_output_and_gradient(
    lengths: dict[int, int], *, together: bool
) -> None:
    division, layer = packed(together=together)
    n = sum(lengths.values())
    x, base = (
        drawn(1, n, N_IN, seed=1).requires_grad_(),
        drawn(1, n, N_OUT, seed=2).requires_grad_(),
    )
    with division.among(lengths):
        out = layer(x, base)
        found = gradients(layer, x, base, out)
    ends = torch.tensor([0, *lengths.values()]).cumsum(0).tolist()
    written_out = torch.cat(
        [
            expected(layer, slot, x[:, start:stop], base[:, start:stop])
            for slot, (start, stop) in zip(lengths, pairwise(ends), strict=True)
        ],
        dim=1,
    )
    torch.testing.assert_close(out, written_out)
    wanted = gradients(layer, x, base, written_out)
    for name, grad in wanted.items():
        if grad is not None:
            torch.testing.assert_close(found[name], grad, msg=name)


@each_way
def test_a_gradient_that_is_one_number_spread_out_is_taken(*, together: bool) -> None:
    division, layer = packed(together=together)
    x = drawn(4, N_IN, seed=1)
    with division.among({0: 2, 1: 2}):
        layer(x, drawn(4, N_OUT, seed=2)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.increments(0))


@each_way
def test_padding_of_a_lower_rank_gets_no_gradient(*, together: bool) -> None:
    division, layer = packed(together=together)
    x = drawn(4, N_IN, seed=1)
    with division.among({0: 2, 1: 2}):
        layer(x, drawn(4, N_OUT, seed=2)).square().sum().backward()
    grad_a, grad_b = (p.grad for p in layer.increments(0))
    assert grad_a is not None
    assert grad_b is not None
    assert grad_a[:2].any()
    assert not grad_a[2:].any()
    assert not grad_b[:, 2:].any()


@each_way
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e30])
def test_what_is_not_finite_in_one_slot_stays_there(broken: float, *, together: bool) -> None:
    division, layer = packed(together=together)
    x, base = drawn(6, N_IN, seed=1), drawn(6, N_OUT, seed=2)
    sound, layers = [], []
    for value in (1.0, broken):
        weights = torch.ones(6, N_OUT)
        weights[2:4] = value
        with division.among({0: 2, 1: 2, 3: 2}):
            layer.zero_grad()
            (layer(x, base) * weights).sum().backward()
        sound.append({s: [p.grad for p in layer.increments(s)] for s in (0, 3)})
        layers.append([p.grad for p in layer.increments(1)])
    assert division.marked.tolist() == [False, True, False, False]
    torch.testing.assert_close(sound[1], sound[0])
    assert all(g is not None and not g.any() for g in layers[1])


@each_way
def test_taps_take_what_is_added_apart_from_the_layers_own_output(*, together: bool) -> None:
    division, layer = packed(together=together)
    x, base = drawn(4, N_IN, seed=1), drawn(4, N_OUT, seed=2).requires_grad_()
    layer.taps = []
    with division.among({0: 1, 3: 3}):
        out = layer(x, base)
    ((added, own),) = layer.taps
    torch.testing.assert_close(own + added, out)
    torch.testing.assert_close(own, base.detach())
    assert added.requires_grad
    assert not own.requires_grad


def test_where_no_slot_is_read_the_layer_is_left_alone() -> None:
    division, layer = packed(together=False)
    frozen = nn.Linear(N_IN, N_OUT)
    frozen.register_forward_hook(layer.hook)
    x = drawn(3, N_IN, seed=1)
    untouched = nn.functional.linear(x, frozen.weight, frozen.bias)
    assert torch.equal(frozen(x), untouched)
    with division.alone(1):
        torch.testing.assert_close(frozen(x), expected(layer, 1, x, untouched))
    assert torch.equal(frozen(x), untouched)
