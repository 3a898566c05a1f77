"""Increments of several adapters on one frozen layer, each for its own rows of a pass.

For the rows x of slot k the layer gives, as :mod:`core.training.adapter` does for one adapter,

    W x + s_k [(B0_k + dB_k) dA_k + dB_k A0_k] x

and one gradient for each slot. What is not finite in a slot's gradient stays in that slot: its gradient counts
as zero, and the slot is marked.

Shapes: N positions of a pass, K slots, R the largest rank; lower ranks are padded with zeros, whose gradient is
zero.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from core.training.adapter import InitialFactors

LARGEST_NORM = 1e15
"""Of a gradient that counts: squares of many such still add up in float32."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Positions of a pass that belong to one slot: from ``start`` to ``stop``, or to the end."""

    slot: int
    start: int
    stop: int | None

    @property
    def at(self) -> slice:
        """The positions."""
        return slice(self.start, self.stop)


class Division:
    """Which positions of the present pass belong to which slot; of none where no slot is read.

    Attributes:
        shares: Of each slot that is read.
        padded: Place of each position where all shares are padded to the longest, if they have to be.
        index: Slots that are read, ``(shares,)``, where they are computed together.
        scaling: Strength of each slot's adapter; ``scales`` are the same on the device, ``(K, 1, 1)``.
        marked: Slots of which a gradient was not finite, until somebody takes the marks away.
        together: Slots are computed in batched products, as a GPU wants it, not one after the other.
    """

    def __init__(self, n_slots: int, device: torch.device, *, together: bool) -> None:
        """No slot is read, and none is marked."""
        self.shares: tuple[Share, ...] = ()
        self.padded: Tensor | None = None
        self.index: Tensor | None = None
        self.scaling = [0.0] * n_slots
        self.scales = torch.zeros((n_slots, 1, 1), device=device)
        self.marked = torch.zeros(n_slots, dtype=torch.bool, device=device)
        self.together = together

    def set_scaling(self, slot: int, scaling: float) -> None:
        """Strength of a slot's adapter from now on."""
        self.scaling[slot] = scaling
        self.scales[slot] = scaling

    @contextmanager
    def among(self, lengths: Mapping[int, int]) -> Iterator[None]:
        """Within the context a pass has so many positions of each slot, one slot after the other."""
        shares, start = [], 0
        for slot, length in lengths.items():
            shares.append(Share(slot=slot, start=start, stop=start + length))
            start += length
        longest = max(lengths.values())
        padded = None
        if self.together and any(n != longest for n in lengths.values()):
            places = [torch.arange(n) + i * longest for i, n in enumerate(lengths.values())]
            padded = torch.cat(places).to(self.marked.device, non_blocking=True)
        with self._of(tuple(shares), padded):
            yield

    @contextmanager
    def alone(self, slot: int) -> Iterator[None]:
        """Within the context all positions of a pass are one slot's."""
        with self._of((Share(slot=slot, start=0, stop=None),), None):
            yield

    @contextmanager
    def _of(self, shares: tuple[Share, ...], padded: Tensor | None) -> Iterator[None]:
        before = self.shares, self.padded, self.index
        index = None
        if self.together:  # once for all layers
            index = torch.tensor([share.slot for share in shares])
            index = index.to(self.marked.device, non_blocking=True)
        self.shares, self.padded, self.index = shares, padded, index
        try:
            yield
        finally:
            self.shares, self.padded, self.index = before


class PackedLayer(nn.Module):
    """What K slots add to one layer.

    Attributes:
        taps: Where each pass leaves what is added and the layer's own output; nowhere if ``None``.
    """

    def __init__(
        self, shape: tuple[int, int], rank: int, division: Division, *, dtype: torch.dtype
    ) -> None:
        """Begin with nothing in any slot.

        Args:
            shape: Outputs and inputs of the layer.
            rank: Largest rank.
            division: The pack's.
            dtype: Of the increments and the frozen factors.
        """
        super().__init__()
        n_out, n_in = shape
        n_slots, device = len(division.scaling), division.marked.device
        self._division, self._rank = division, rank
        self.taps: list[tuple[Tensor, Tensor]] | None = None
        for slot in range(n_slots):
            for side, size in (("a", (rank, n_in)), ("b", (n_out, rank))):
                zeros = torch.zeros(size, dtype=dtype, device=device)
                self.register_parameter(f"{side}{slot}", nn.Parameter(zeros))
        self._a0 = torch.zeros((n_slots, rank, n_in), dtype=dtype, device=device)
        self._b0 = torch.zeros((n_slots, n_out, rank), dtype=dtype, device=device)
        self._ranks = [0] * n_slots
        self._has_b0 = [False] * n_slots

    def increments(self, slot: int) -> tuple[nn.Parameter, nn.Parameter]:
        """DA ``(R, inputs)`` and dB ``(outputs, R)`` of a slot."""
        return self.get_parameter(f"a{slot}"), self.get_parameter(f"b{slot}")

    def fill(self, slot: int, factors: InitialFactors | None) -> None:
        """Take the frozen factors of a slot; ``None`` where its adapter leaves this layer alone."""
        self._a0[slot].zero_()
        self._b0[slot].zero_()
        self._ranks[slot], self._has_b0[slot] = 0, False
        if factors is None:
            return
        rank = self._ranks[slot] = len(factors.a)
        self._a0[slot, :rank] = factors.a
        if factors.b is not None:
            self._b0[slot, :, :rank] = factors.b
            self._has_b0[slot] = True

    def factors(self, slot: int) -> InitialFactors | None:
        """The frozen factors of a slot, as they count; ``None`` where its adapter leaves this layer alone."""
        rank = self._ranks[slot]
        if rank == 0:
            return None
        b = self._b0[slot, :, :rank] if self._has_b0[slot] else None
        return InitialFactors(a=self._a0[slot, :rank], b=b)

    def forward(self, x: Tensor, base: Tensor) -> Tensor:
        """``base`` ``(..., outputs)``, the layer's own output for ``x``, with what the slots add to it."""
        if self.taps is None:
            return self._added_to(base, x)
        added = self._added_to(torch.zeros_like(base), x)
        self.taps.append((added, base.detach()))
        return base + added

    def hook(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Forward hook of the frozen layer; does nothing where no slot is read."""
        return cast(Tensor, self(inputs[0], output)) if self._division.shares else None

    def _added_to(self, base: Tensor, x: Tensor) -> Tensor:
        shares = self._division.shares
        increments = [p for share in shares for p in self.increments(share.slot)]
        function = _Together if self._division.together else _InTurn
        flat: Tensor = function.apply(  # type: ignore[no-untyped-call]
            base.flatten(0, -2), x.flatten(0, -2), self._known(), *increments
        )
        return flat.view_as(base)

    def _known(self) -> "_Known":
        shares, division = self._division.shares, self._division
        return _Known(
            shares=shares,
            padded=division.padded,
            index=division.index,
            scales=division.scales,
            scaling=[division.scaling[share.slot] for share in shares],
            ranks=[self._ranks[share.slot] for share in shares],
            has_b0=[self._has_b0[share.slot] for share in shares],
            a0=self._a0,
            b0=self._b0,
            marked=division.marked,
        )


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What a pass of a layer knows beside its inputs; by share, but for ``scales``, ``a0``, ``b0``, ``marked``."""

    shares: Sequence[Share]
    padded: Tensor | None
    index: Tensor | None
    scales: Tensor
    scaling: Sequence[float]
    ranks: Sequence[int]
    has_b0: Sequence[bool]
    a0: Tensor
    b0: Tensor
    marked: Tensor


class _InTurn(torch.autograd.Function):
    """One slot after the other, each with its own rank."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, x: Tensor, known: _Known, *increments: Tensor) -> Tensor:
        out, inner = torch.empty_like(base), []
        for i, share in enumerate(known.shares):
            a, b, a0, b0 = _cropped(known, i, increments)
            if a is None:
                out[share.at] = base[share.at]
                continue
            wide, b_wide = _narrow_side(x[share.at], a, a0, b, b0)
            torch.addmm(base[share.at], wide, b_wide.mT, alpha=known.scaling[i], out=out[share.at])
            inner.append(wide)
        ctx.known = known
        ctx.save_for_backward(x, *increments, *inner)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        known: _Known = ctx.known
        x, *rest = ctx.saved_tensors
        increments, inner = rest[: 2 * len(known.shares)], iter(rest[2 * len(known.shares) :])
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        found: list[Tensor | None] = []
        for i, share in enumerate(known.shares):
            a, b, a0, b0 = _cropped(known, i, increments)
            if a is None:
                found += [None, None]
                continue
            made = _gradients(
                grad[share.at], x[share.at], next(inner), known.scaling[i], a, b, a0, b0
            )
            if grad_x is not None:
                torch.mm(*made.x, out=grad_x[share.at])
            kept = _sound([made.a, made.b], known.marked[share.slot])
            found += [
                _as_large_as(g, p) for g, p in zip(kept, increments[2 * i : 2 * i + 2], strict=True)
            ]
        return grad, grad_x, None, *found


class _Together(torch.autograd.Function):
    """All slots in batched products, padded to the longest share and the largest rank."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, x: Tensor, known: _Known, *increments: Tensor) -> Tensor:
        x_k, base_k = _by_slot(x, known), _by_slot(base, known)
        a, b, a0, b0, scaling = _stacked(known, increments)
        wide, b_wide = _narrow_side(x_k, a, a0, b, b0)
        out = torch.baddbmm(base_k, _times(wide, scaling), b_wide.mT)
        ctx.known = known
        ctx.save_for_backward(x, *increments, wide)
        return _in_line(out, known)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        known: _Known = ctx.known
        x, *increments, wide = ctx.saved_tensors
        a, b, a0, b0, scaling = _stacked(known, increments)
        made = _gradients(_by_slot(grad, known), _by_slot(x, known), wide, scaling, a, b, a0, b0)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = _in_line(torch.bmm(*made.x), known)
        assert known.index is not None
        marked = known.marked[known.index]
        kept = _sound([made.a, made.b], marked)
        known.marked[known.index] = marked
        found = [g for pair in zip(*(k.unbind() for k in kept), strict=True) for g in pair]
        return grad, grad_x, None, *found


@dataclass(frozen=True, kw_only=True)
class _Gradients:
    """Of one slot, or of all stacked; ``x`` as the two factors of its product."""

    a: Tensor
    b: Tensor
    x: tuple[Tensor, Tensor]


def _narrow_side(
    x: Tensor, a: Tensor, a0: Tensor, b: Tensor, b0: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``[dA x + A0 x, dA x]`` ``(N, 2R)``, and ``[dB, B0]`` ``(outputs, 2R)``; halves of them where B0 = 0."""
    moved = x @ a.mT
    both = moved + x @ a0.mT  # not (dA + A0) x: bf16 would lose a small dA
    if b0 is None:
        return both, b
    return torch.cat([both, moved], dim=-1), torch.cat([b, b0], dim=-1)


def _gradients(
    grad: Tensor,
    x: Tensor,
    wide: Tensor,
    scaling: float | Tensor,
    a: Tensor,
    b: Tensor,
    a0: Tensor,
    b0: Tensor | None,
) -> _Gradients:
    """Gradients of what :func:`_narrow_side` computes, from ``grad`` ``(N, outputs)`` of the layer's output."""
    rank = a.shape[-2]
    total = _times(grad @ b, scaling)
    both = total if b0 is None else total + _times(grad @ b0, scaling)
    return _Gradients(
        a=both.mT @ x,
        b=grad.mT @ _times(wide[..., :rank], scaling),
        x=(torch.cat([both, total], dim=-1), torch.cat([a, a0], dim=-2)),
    )


def _times(value: Tensor, scaling: float | Tensor) -> Tensor:
    """The product in the type of ``value``: a strength is not rounded to bf16 first."""
    return (value * scaling).to(value.dtype)


def _cropped(
    known: _Known, i: int, increments: Sequence[Tensor]
) -> tuple[Any, Tensor, Tensor, Tensor | None]:
    """dA, dB, A0 and B0 of a share at its slot's own rank; no dA where there is no adapter."""
    slot, rank = known.shares[i].slot, known.ranks[i]
    a, b = increments[2 * i], increments[2 * i + 1]
    b0 = known.b0[slot, :, :rank] if known.has_b0[i] else None
    return (a[:rank] if rank else None), b[:, :rank], known.a0[slot, :rank], b0


def _stacked(
    known: _Known, increments: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """dA, dB, A0, B0 and scaling of all shares, the share first."""
    index = known.index
    assert index is not None
    is_whole = [share.slot for share in known.shares] == list(range(len(known.a0)))

    def of_shares(by_slot: Tensor) -> Tensor:
        return by_slot if is_whole else by_slot.index_select(0, index)

    b0 = of_shares(known.b0) if any(known.has_b0) else None
    a, b = torch.stack(list(increments[::2])), torch.stack(list(increments[1::2]))
    return a, b, of_shares(known.a0), b0, of_shares(known.scales)


def _by_slot(flat: Tensor, known: _Known) -> Tensor:
    """``(N, D)`` as ``(K, longest, D)``, with zeros where a share is shorter."""
    n_shares = len(known.shares)
    if known.padded is None:
        return flat.reshape(n_shares, -1, flat.shape[-1])
    longest = max(int(share.stop or 0) - share.start for share in known.shares)
    wide = flat.new_zeros((n_shares * longest, flat.shape[-1]))
    return wide.index_copy_(0, known.padded, flat).view(n_shares, longest, -1)


def _in_line(by_slot: Tensor, known: _Known) -> Tensor:
    """The reverse of :func:`_by_slot`."""
    flat = by_slot.flatten(0, 1)
    return flat if known.padded is None else flat.index_select(0, known.padded)


def _sound(grads: Sequence[Tensor], marked: Tensor) -> list[Tensor]:
    """The gradients, or zeros where one of a slot's is not finite or absurdly large, which marks the slot.

    Args:
        grads: ``(R, inputs)`` and ``(outputs, R)`` of a slot, or both with the slots first.
        marked: Of the slot, or ``(slots,)``; written to.
    """
    a, b = (torch.linalg.vector_norm(g, dim=(-2, -1), dtype=torch.float32) for g in grads)
    is_unsound = ~(a + b < LARGEST_NORM)  # NaN is not smaller
    marked |= is_unsound
    unsound = is_unsound[..., None, None]
    return [grad.masked_fill_(unsound, 0.0) for grad in grads]


def _as_large_as(grad: Tensor, parameter: Tensor) -> Tensor:
    """A gradient with zeros where the parameter is padded."""
    if grad.shape == parameter.shape:
        return grad
    padded = torch.zeros_like(parameter)
    padded[tuple(slice(size) for size in grad.shape)] = grad
    return padded
