"""RMU's losses on activations, and losses on what an adapter adds."""

import math
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.losses import (
    IGNORED,
    Residual,
    activation_loss,
    residual_forget_loss,
    residual_retain_loss,
    rmu_loss,
)

Loss = Callable[[Tensor, Tensor], Tensor]


def row_reference(values: Tensor) -> Tensor:
    """Reference activations that do not depend on the row or the place."""
    return torch.linspace(-1.0, 1.0, values.shape[-1]).expand_as(values)


def one_layer(added: Tensor, direction: Tensor) -> Residual:
    return Residual(added_BTO=added, base_BTO=2.0 * row_reference(added), direction_O=direction)


def ones(values: Tensor) -> Tensor:
    return torch.ones(values.shape[-1])


LOSSES: Mapping[str, Loss] = {
    "rmu": lambda h, y: rmu_loss(h, 3.0 * ones(h), y != IGNORED),
    "activation": lambda h, y: activation_loss(h, row_reference(h), y != IGNORED),
    "residual_forget": lambda h, y: residual_forget_loss([one_layer(h, ones(h))], y, shift=0.5),
    "residual_retain": lambda h, y: residual_retain_loss([one_layer(h, ones(h))], y),
}

each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Activations and labels, with a counted token after the first in each row."""
    n_rows, n_tokens = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    width = draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    values = 3.0 * torch.randn(n_rows, n_tokens, width, generator=generator)
    mask = torch.rand(n_rows, n_tokens, generator=generator) < 0.5
    mask[:, -1] = True
    return values, torch.where(mask, 7, IGNORED)


# By hand


def test_steering_is_the_squared_distance_to_the_control_vector() -> None:
    hidden = torch.tensor([[[1.0, 2.0], [9.0, 9.0], [3.0, 0.0]]])
    mask = torch.tensor([[True, False, True]])
    control = torch.tensor([1.0, 0.0])
    assert rmu_loss(hidden, control, mask).item() == pytest.approx(((0 + 4) / 2 + (4 + 0) / 2) / 2)
    there = control.expand(1, 3, 2)
    assert rmu_loss(there, control, mask).item() == 0.0


def test_each_row_is_divided_by_its_own_length_only() -> None:
    hidden = torch.ones(2, 3, 4)
    hidden[1] = 2.0
    mask = torch.tensor([[True, True, True], [False, False, True]])
    assert rmu_loss(hidden, torch.zeros(4), mask).item() == pytest.approx((1 + 4) / 2)
    sums, lengths = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 1.0])
    by_every_length = float(sums.mean() * (1 / lengths).mean())  # what the released code computes
    assert by_every_length == pytest.approx(7 / 3)


def test_keeping_activations_is_their_mean_squared_change() -> None:
    reference = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, False, True], [False, False, True]])
    assert activation_loss(reference, reference, mask).item() == 0.0
    assert activation_loss(reference + 0.5, reference, mask).item() == pytest.approx(0.25)


def test_adding_nothing_costs_nothing_to_retain_and_shift_squared_to_forget() -> None:
    labels = torch.tensor([[IGNORED, 1, 2]])
    base = torch.randn(1, 3, 6, generator=torch.Generator().manual_seed(0))
    layer = Residual(added_BTO=torch.zeros(1, 3, 6), base_BTO=base, direction_O=torch.ones(6))
    assert residual_retain_loss([layer], labels).item() == 0.0
    assert residual_forget_loss([layer], labels, shift=3.0).item() == pytest.approx(9.0)


def test_a_residual_is_measured_by_the_scale_of_its_layer() -> None:
    labels = torch.tensor([[IGNORED, 1, 2]])
    signs = torch.tensor([1.0, -1.0])
    for size in (0.01, 1.0, 100.0):
        base = torch.full((1, 3, 2), 2.0 * size)
        base[0, 0] = 1e6 * size  # the first token does not count
        layer = Residual(added_BTO=(size * signs).expand(1, 3, 2), base_BTO=base, direction_O=signs)
        assert residual_retain_loss([layer], labels).item() == pytest.approx(0.25)
        assert residual_forget_loss([layer], labels, shift=0.5).item() == pytest.approx(
            0.0, abs=1e-12
        )
        assert residual_forget_loss([layer], labels, shift=1.5).item() == pytest.approx(1.0)


def test_layers_count_alike_whatever_their_number_of_outputs() -> None:
    labels = torch.tensor([[IGNORED, 1]])

    def layer(n_outputs: int, size: float) -> Residual:
        shape = (1, 2, n_outputs)
        return Residual(
            added_BTO=torch.full(shape, size),
            base_BTO=torch.ones(shape),
            direction_O=torch.ones(n_outputs),
        )

    found = residual_retain_loss([layer(2, 1.0), layer(50, 3.0)], labels)
    assert found.item() == pytest.approx((1.0 + 9.0) / 2)


def test_the_scale_is_that_of_the_row() -> None:
    labels = torch.tensor([[IGNORED, 1], [IGNORED, 1]])
    base = torch.ones(2, 2, 3)
    base[1] = 10.0
    layer = Residual(added_BTO=torch.ones(2, 2, 3), base_BTO=base, direction_O=torch.ones(3))
    assert residual_retain_loss([layer], labels).item() == pytest.approx((1.0 + 0.01) / 2)


def test_tokens_of_the_whole_batch_count_alike_and_rows_without_any_are_passed_over() -> None:
    labels = torch.tensor([[IGNORED, 1, 2, 3], [4, IGNORED, IGNORED, IGNORED], [IGNORED] * 3 + [5]])
    added = torch.ones(3, 4, 2)
    added[2] = 3.0
    layer = Residual(added_BTO=added, base_BTO=torch.ones(3, 4, 2), direction_O=torch.ones(2))
    assert residual_retain_loss([layer], labels).item() == pytest.approx((3 * 1.0 + 9.0) / 4)


def test_a_silent_layer_divides_by_no_zero() -> None:
    labels = torch.tensor([[IGNORED, 1]])
    silent = Residual(
        added_BTO=torch.zeros(1, 2, 3, requires_grad=True),
        base_BTO=torch.zeros(1, 2, 3),
        direction_O=torch.ones(3),
    )
    loss = residual_forget_loss([silent], labels, shift=1.0)
    (gradient,) = torch.autograd.grad(loss, silent.added_BTO)
    assert loss.item() == pytest.approx(1.0)
    assert bool(torch.isfinite(gradient).all())


def test_no_gradient_flows_into_references_and_targets() -> None:
    hidden = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    fixed = torch.ones(1, 3, 4, requires_grad=True)
    vector = torch.ones(4, requires_grad=True)
    mask, labels = torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.long)
    layer = Residual(added_BTO=hidden, base_BTO=fixed, direction_O=vector)
    for loss in (
        rmu_loss(hidden, vector, mask),
        activation_loss(hidden, fixed, mask),
        residual_forget_loss([layer], labels, shift=2.0),
        residual_retain_loss([layer], labels),
    ):
        loss.backward()
    assert fixed.grad is None
    assert vector.grad is None
    assert hidden.grad is not None


# Against naive loops, and blind to what does not count


def naive(name: str, values: Sequence[Sequence[Sequence[float]]], labels: Tensor) -> float:
    """The definitions, one number at a time."""
    rows: list[list[float]] = []
    width = len(values[0][0])
    base = [2.0 * (-1.0 + 2.0 * i / (width - 1)) for i in range(width)]
    scale = math.sqrt(sum(x * x for x in base) / width)
    for b, row in enumerate(labels.tolist()):
        terms = []
        for t, label in enumerate(row):
            if label == IGNORED or (name.startswith("residual") and t == 0):
                continue
            if name == "rmu":
                difference = [x - 3.0 for x in values[b][t]]
            elif name == "activation":
                difference = [x - y / 2 for x, y in zip(values[b][t], base, strict=True)]
            else:
                target = 0.5 if name == "residual_forget" else 0.0
                difference = [x / scale - target for x in values[b][t]]
            terms.append(sum(d * d for d in difference) / width)
        rows.append(terms)
    if name.startswith("residual"):
        flat = [term for terms in rows for term in terms]
        return sum(flat) / len(flat)
    return sum(sum(terms) / len(terms) for terms in rows) / len(rows)


@given(batch=batches())
@settings(deadline=None, max_examples=40)
def test_losses_equal_a_loop_over_numbers(batch: tuple[Tensor, Tensor]) -> None:
    values, labels = batch
    for name, loss in LOSSES.items():
        expected = naive(name, values.tolist(), labels)
        assert loss(values, labels).item() == pytest.approx(expected, rel=1e-5, abs=1e-6), name


@given(batch=batches(), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_the_order_of_rows_does_not_matter(batch: tuple[Tensor, Tensor], seed: int) -> None:
    values, labels = batch
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for name, loss in LOSSES.items():
        found, expected = loss(values[order], labels[order]), loss(values, labels)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6), name


@given(batch=batches(), n_padding=st.integers(1, 3))
@settings(deadline=None, max_examples=20)
def test_padding_changes_nothing_whatever_its_activations(
    batch: tuple[Tensor, Tensor], n_padding: int
) -> None:
    values, labels = batch
    filler = torch.full((len(values), n_padding, values.shape[-1]), math.nan)
    padded = torch.cat([values, filler], dim=1)
    ignored = torch.cat([labels, torch.full((len(labels), n_padding), IGNORED)], dim=1)
    for name, loss in LOSSES.items():
        assert loss(padded, ignored).item() == loss(values, labels).item(), name


@given(batch=batches())
@settings(deadline=None, max_examples=20)
def test_the_gradient_is_exactly_zero_where_nothing_counts(batch: tuple[Tensor, Tensor]) -> None:
    values, labels = batch
    for name, loss in LOSSES.items():
        silent = labels == IGNORED
        if name.startswith("residual"):
            silent[:, 0] = True  # nothing predicts the first token
        x = values.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x, labels), x)
        assert torch.count_nonzero(gradient[silent]) == 0, name
        assert torch.count_nonzero(gradient[~silent]) > 0, name


@each_loss
def test_bf16_activations_are_computed_in_float32(loss: Loss) -> None:
    values = 3.0 * torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[IGNORED, 1, 1, 1, 1], [IGNORED, IGNORED, 1, 1, IGNORED]])
    low = values.bfloat16()
    found = loss(low, labels)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss(values, labels).item(), rel=2.0**-7)


# Refusals


@pytest.mark.parametrize("name", ["rmu", "activation"])
def test_a_row_without_a_counted_token_is_refused(name: str) -> None:
    labels = torch.tensor([[1, 1], [IGNORED, IGNORED]])
    with pytest.raises(ValueError, match=r"every row needs a counted token, rows \[1\] "):
        LOSSES[name](torch.zeros(2, 2, 3), labels)


@pytest.mark.parametrize("name", ["residual_forget", "residual_retain"])
def test_residuals_without_a_counted_token_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no token counts: no residual is compared"):
        LOSSES[name](torch.zeros(1, 2, 3), torch.tensor([[1, IGNORED]]))


@each_loss
def test_shapes_that_disagree_are_refused(loss: Loss) -> None:
    message = r"values \(B, T, D\) and mask \(B, T\) must agree, got \(1, 3, 4\) and \(1, 2\)"
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(1, 3, 4), torch.ones(1, 2, dtype=torch.long))


def test_a_control_vector_of_another_width_is_refused() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"must have the width 4 of hidden, got \(1,\)"):
        rmu_loss(torch.zeros(1, 2, 4), torch.zeros(1), mask)


def test_a_reference_of_another_shape_is_refused() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"must agree, got \(1, 2, 4\) and \(1, 2, 1\)"):
        activation_loss(torch.zeros(1, 2, 4), torch.zeros(1, 2, 1), mask)


def test_a_direction_or_residual_of_another_width_is_refused() -> None:
    labels = torch.ones(1, 2, dtype=torch.long)
    narrow = Residual(
        added_BTO=torch.zeros(1, 2, 4), base_BTO=torch.zeros(1, 2, 4), direction_O=torch.zeros(1)
    )
    message = r"must have one width, got 4, 4 and \(1,\)"
    with pytest.raises(ValueError, match=message):
        residual_forget_loss([narrow], labels, shift=1.0)


def test_no_layer_at_all_is_refused() -> None:
    labels = torch.ones(1, 2, dtype=torch.long)
    with pytest.raises(ValueError, match="residuals of at least one layer are needed, got none"):
        residual_retain_loss([], labels)
