"""All losses alike: against naive loops, blind to what does not count, whole batch equals micro-batches."""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.config.method import CeuConfig, ForgetLossId, MethodConfig, RetainLossId
from core.losses import (
    FORGET_LOSSES,
    IGNORED,
    RETAIN_LOSSES,
    ForgetLoss,
    Outputs,
    Residual,
    RetainLoss,
    adversarial_label_loss,
    ceu_loss,
    counted_tokens,
    dpo_loss,
    gradient_ascent_loss,
    inverted_hinge_loss,
    kl_loss,
    nll_loss,
    npo_loss,
    pdu_loss,
    random_label_loss,
    satimp_loss,
    sequence_nll,
    simnpo_loss,
    undial_loss,
    wga_loss,
)

Loss = Callable[[Tensor, Tensor], Tensor]

BETA = 0.3


def reference_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Reference logits that depend on a row's own labels alone, so that rows may change places."""
    v = torch.arange(logits.shape[-1])
    return 2.0 * torch.cos(labels.unsqueeze(-1) + 2.0 * v)


def other_of(logits: Tensor, labels: Tensor) -> Tensor:
    """The next token of the vocabulary in place of each labelled one."""
    return torch.where(labels == IGNORED, labels, (labels + 1) % logits.shape[-1])


def _undial(logits: Tensor, labels: Tensor) -> Tensor:
    return undial_loss(logits, reference_of(logits, labels), labels, beta=2.0)


def _kl(logits: Tensor, labels: Tensor) -> Tensor:
    return kl_loss(logits, reference_of(logits, labels), labels)


def _npo(logits: Tensor, labels: Tensor) -> Tensor:
    before = sequence_nll(reference_of(logits, labels), labels)
    return npo_loss(logits, labels, before, beta=BETA)


def _dpo(logits: Tensor, labels: Tensor) -> Tensor:
    """Half of the logits' gradient comes from the rows to forget, half from their alternatives."""
    reference, other = reference_of(logits, labels), other_of(logits, labels)
    before, before_other = sequence_nll(reference, labels), sequence_nll(reference, other)
    return dpo_loss(logits, labels, before, logits, other, before_other, beta=BETA)


TOKEN_LOSSES: Mapping[str, Loss] = {
    "ga": gradient_ascent_loss,
    "nll": nll_loss,
    "ihl": inverted_hinge_loss,
    "kl": _kl,
    "undial": _undial,
    "ceu": lambda x, y: ceu_loss(x, y, ignore_first_tokens=0),
    "pdu": pdu_loss,
    "wga": lambda x, y: wga_loss(x, y, beta=0.5),
    "satimp": lambda x, y: satimp_loss(x, y, beta1=0.5, beta2=2.0),
    "random_labels": lambda x, y: random_label_loss(x, y, other_of(x, y)),
    "adversarial_labels": lambda x, y: adversarial_label_loss(x, y, other_of(x, y)),
}
SEQUENCE_LOSSES: Mapping[str, Loss] = {
    "npo": _npo,
    "dpo": _dpo,
    "simnpo": lambda x, y: simnpo_loss(x, y, beta=BETA, delta=0.5),
}
LOSSES: Mapping[str, Loss] = {**TOKEN_LOSSES, **SEQUENCE_LOSSES}

STEEPNESS: Mapping[str, float] = {
    **dict.fromkeys(TOKEN_LOSSES, 2.0),  # the cross-entropy of a token moves by at most twice
    "ceu": 16.0,
    "pdu": 60.0,  # twice (max - mean), of logits up to 16, for max and mean each
    "npo": 60.0,  # slope 2 of a sum of 15 tokens, each moving by at most twice
    "dpo": 120.0,
    "simnpo": 4.0,
}
"""How far a loss can move, over the largest change of a logit, on the batch of the precision test."""

each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def losses_for(labels: Tensor) -> Mapping[str, Loss]:
    """All losses; those on sequences only if each row has a counted token."""
    return LOSSES if bool(counted_tokens(labels).any(dim=1).all()) else TOKEN_LOSSES


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Logits and labels of any mask with at least one counted token; in half of them, one in each row."""
    n_rows, n_tokens, size = (
        draw(st.integers(1, 4)),
        draw(st.integers(2, 7)),
        draw(st.integers(2, 9)),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    scale = draw(st.sampled_from([0.1, 1.0, 10.0]))
    logits = scale * torch.randn(n_rows, n_tokens, size, generator=generator)
    labels = torch.randint(0, size, (n_rows, n_tokens), generator=generator)
    counted = draw(st.lists(st.booleans(), min_size=n_rows * n_tokens, max_size=n_rows * n_tokens))
    labels[~torch.tensor(counted).view_as(labels)] = IGNORED
    if draw(st.booleans()):
        labels[~counted_tokens(labels).any(dim=1), -1] = 0
    elif not counted_tokens(labels).any():
        labels[-1, -1] = 0
    return logits, labels


# Against naive loops


def softmax(z: Any) -> Any:
    weights = np.exp(z - z.max())
    return weights / weights.sum()


def log_softmax(z: Any) -> Any:
    return z - z.max() - math.log(np.exp(z - z.max()).sum())


def naive_token(name: str, z: Any, reference: Any, answer: int) -> float:
    """One term of a loss on tokens, in float64, from its definition."""
    p, log_p, n_vocabulary = softmax(z), log_softmax(z), len(z)
    others = [v for v in range(n_vocabulary) if v != answer]
    match name:
        case "ga":
            return float(log_p[answer])
        case "nll":
            return float(-log_p[answer])
        case "ihl":
            return float(1 + p[answer] - max(p[v] for v in others))
        case "wga":
            return float(p[answer] ** 0.5 * log_p[answer])
        case "satimp":
            return float(p[answer] ** 0.5 * sum(p[v] for v in others) ** 2 * log_p[answer])
        case "random_labels" | "adversarial_labels":
            return float(-log_p[(answer + 1) % n_vocabulary])
        case "pdu":
            return float((max(z) - sum(z) / n_vocabulary) ** 2)
        case "kl":
            log_q = log_softmax(reference)
            return float(sum(math.exp(b) * (b - a) for a, b in zip(log_p, log_q, strict=True)))
        case "undial":
            wanted = softmax(reference - 2.0 * np.eye(n_vocabulary)[answer])
            return float(-sum(wanted * log_p))
        case "ceu":
            rest = softmax(z[others])
            return float(-sum(q * log_p[v] for q, v in zip(rest, others, strict=True)))
    raise AssertionError(name)


def naive(name: str, logits: Tensor, labels: Tensor) -> float:
    """The definitions, one token at a time: a mean over tokens, or over rows of sums over tokens."""
    z = logits.double().numpy()
    reference = reference_of(logits, labels).double().numpy()
    terms: list[list[float]] = []
    for b, row in enumerate(labels.tolist()):
        where = [(t, row[t + 1]) for t in range(len(row) - 1) if row[t + 1] != IGNORED]

        def total(quantity: str, at: Any, b: int = b, where: Any = where) -> float:
            return sum(naive_token(quantity, at[b, t], reference[b, t], a) for t, a in where)

        match name:
            case "npo":
                margin = total("nll", z) - total("nll", reference)
            case "dpo":
                margin = total("nll", z) - total("nll", reference)
                margin -= total("random_labels", z) - total("random_labels", reference)
            case "simnpo":
                margin = total("nll", z) / len(where) - 0.5
            case _:
                terms.append([naive_token(name, z[b, t], reference[b, t], a) for t, a in where])
                continue
        terms.append([2 / BETA * float(np.logaddexp(0, -BETA * margin))])
    flat = [term for row_terms in terms for term in row_terms]
    return sum(flat) / len(flat)


@given(batch=batches())
@settings(deadline=None, max_examples=60)
def test_losses_equal_a_float64_loop_over_tokens(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    for name, loss in losses_for(labels).items():
        expected = naive(name, logits, labels)
        found = loss(logits, labels).item()
        assert found == pytest.approx(expected, rel=2e-5, abs=2e-5), name


@given(batch=batches(), n_first=st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_tokens_left_alone_are_counted_from_the_first_label_of_a_row(
    batch: tuple[Tensor, Tensor], n_first: int
) -> None:
    logits, labels = batch
    kept = labels.clone()
    for row in kept:
        row[(row != IGNORED).nonzero().flatten()[:n_first]] = IGNORED
    if counted_tokens(kept).any():
        found = ceu_loss(logits, labels, ignore_first_tokens=n_first).item()
        assert found == pytest.approx(naive("ceu", logits, kept), rel=2e-5, abs=2e-5)
    else:
        with pytest.raises(ValueError, match="no token counts"):
            ceu_loss(logits, labels, ignore_first_tokens=n_first)


# Blind to what does not count


@given(batch=batches(), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_the_order_of_rows_does_not_matter(batch: tuple[Tensor, Tensor], seed: int) -> None:
    logits, labels = batch
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for name, loss in losses_for(labels).items():
        found, expected = loss(logits[order], labels[order]), loss(logits, labels)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5), name


@given(batch=batches(), shift=st.floats(-20, 20))
@settings(deadline=None, max_examples=30)
def test_adding_a_constant_to_all_logits_of_a_position_changes_nothing(
    batch: tuple[Tensor, Tensor], shift: float
) -> None:
    logits, labels = batch
    moved = logits + shift * torch.arange(1, logits.shape[1] + 1).view(1, -1, 1)
    for name, loss in losses_for(labels).items():
        found, expected = loss(moved, labels).item(), loss(logits, labels).item()
        assert found == pytest.approx(expected, rel=1e-3, abs=2e-3), name


@given(batch=batches(), n_padding=st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_padding_changes_nothing_whatever_its_logits(
    batch: tuple[Tensor, Tensor], n_padding: int
) -> None:
    logits, labels = batch
    n_rows, _, size = logits.shape
    filler = torch.full((n_rows, n_padding, size), math.nan)
    filler[:, ::2] = 100.0 * torch.arange(size)
    padded = torch.cat([logits, filler], dim=1)
    ignored = torch.cat([labels, torch.full((n_rows, n_padding), IGNORED)], dim=1)
    for name, loss in losses_for(labels).items():
        assert loss(padded, ignored).item() == loss(logits, labels).item(), name


@given(batch=batches())
@settings(deadline=None, max_examples=30)
def test_the_gradient_is_exactly_zero_on_every_position_that_does_not_count(
    batch: tuple[Tensor, Tensor],
) -> None:
    logits, labels = batch
    silent = torch.ones_like(labels, dtype=torch.bool)
    silent[:, :-1] = ~counted_tokens(labels)
    for name, loss in losses_for(labels).items():
        x = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x, labels), x)
        assert torch.count_nonzero(gradient[silent]) == 0, name
        assert bool(torch.isfinite(gradient).all()), name


@given(batch=batches())
@settings(deadline=None, max_examples=20)
def test_the_gradient_sums_to_zero_over_the_vocabulary(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    for name, loss in losses_for(labels).items():
        x = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x, labels), x)
        size = float(gradient.abs().max())
        assert float(gradient.sum(-1).abs().max()) <= 1e-5 * max(size, 1.0), name


# What is averaged over what


def unequal_rows() -> tuple[Tensor, Tensor]:
    """Row 0 counts 8 tokens, row 1 counts 1."""
    generator = torch.Generator().manual_seed(0)
    logits = 3.0 * torch.randn(2, 9, 5, generator=generator)
    labels = torch.randint(0, 5, (2, 9), generator=generator)
    labels[1, 2:] = IGNORED
    return logits, labels


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_a_loss_on_tokens_averages_over_tokens_and_not_over_rows(name: str) -> None:
    logits, labels = unequal_rows()
    loss = TOKEN_LOSSES[name]
    long, short = loss(logits[:1], labels[:1]), loss(logits[1:], labels[1:])
    torch.testing.assert_close(loss(logits, labels), (8 * long + short) / 9)
    assert abs(float((long + short) / 2 - loss(logits, labels))) > 1e-3


@pytest.mark.parametrize("name", SEQUENCE_LOSSES)
def test_a_loss_on_sequences_averages_over_rows_and_not_over_tokens(name: str) -> None:
    logits, labels = unequal_rows()
    loss = SEQUENCE_LOSSES[name]
    long, short = loss(logits[:1], labels[:1]), loss(logits[1:], labels[1:])
    torch.testing.assert_close(loss(logits, labels), (long + short) / 2)
    assert abs(float((8 * long + short) / 9 - loss(logits, labels))) > 1e-3


# Precision


@each_loss
def test_bf16_logits_are_computed_in_float32(loss: Loss) -> None:
    (name,) = (n for n, other in LOSSES.items() if other is loss)
    generator = torch.Generator().manual_seed(0)
    logits = 4.0 * torch.randn(4, 16, 300, generator=generator).clamp(-4, 4)
    labels = torch.randint(0, 300, (4, 16), generator=generator)
    low = logits.bfloat16()
    found = loss(low, labels)
    assert found.dtype == torch.float32
    assert found.item() == loss(low.float(), labels).item()
    rounding = float((low.float() - logits).abs().max())
    assert rounding <= 2.0**-5  # half a step of bf16 below 16
    assert abs(float(found - loss(logits, labels))) <= STEEPNESS[name] * rounding


@each_loss
def test_the_input_is_left_as_it_was(loss: Loss) -> None:
    logits, labels = unequal_rows()
    x, y = logits.clone().requires_grad_(), labels.clone()
    loss(x, y).backward()
    assert torch.equal(x, logits)
    assert torch.equal(y, labels)


@pytest.mark.parametrize("name", LOSSES)
def test_the_backward_pass_keeps_no_more_than_a_distribution_for_each_model(name: str) -> None:
    """With V in the tens of thousands, each ``(N, V)`` kept is as large as the model's own logits."""
    logits = torch.randn(2, 9, 1000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(18).view(2, 9)
    whole = 16 * 1000  # N V
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.numel() >= whole:
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel() // whole
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = LOSSES[name](logits, labels)
    assert loss.requires_grad
    two_distributions = ("kl", "undial", "ceu", "dpo")
    assert sum(kept.values()) <= (2 if name in two_distributions else 1)


# Refusals


@each_loss
def test_shapes_that_disagree_are_refused(loss: Loss) -> None:
    with pytest.raises(ValueError, match="must agree, got "):
        loss(torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"must agree, got \(3, 5\) and "):
        loss(torch.zeros(3, 5), torch.zeros(3, dtype=torch.long))


@each_loss
def test_a_batch_without_a_counted_token_is_refused(loss: Loss) -> None:
    labels = torch.full((2, 3), IGNORED)
    labels[:, 0] = 1  # the first token is never predicted
    with pytest.raises(ValueError, match="no token counts: every label after the first is -100"):
        loss(torch.zeros(2, 3, 5), labels)


@pytest.mark.parametrize("name", SEQUENCE_LOSSES)
def test_a_row_without_a_counted_token_is_refused_by_losses_on_sequences(name: str) -> None:
    labels = torch.tensor([[1, 2], [1, IGNORED], [1, 2]])
    with pytest.raises(ValueError, match=r"every row needs a counted token, rows \[1\] "):
        SEQUENCE_LOSSES[name](torch.zeros(3, 2, 5), labels)


@pytest.mark.parametrize("name", [name for name in LOSSES if not name.endswith("_labels")])
@pytest.mark.parametrize("label", [5, -1])
def test_a_label_outside_the_vocabulary_is_refused(name: str, label: int) -> None:
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\) or be -100, got"):
        LOSSES[name](torch.zeros(1, 2, 5), torch.tensor([[0, label]]))


# By id


def whole_batch() -> tuple[Outputs, Outputs]:
    """Rows to forget and alternatives, with all that any loss needs; lengths differ, two rows have no prompt."""
    generator = torch.Generator().manual_seed(5)

    def rows(lengths: list[tuple[int, int]]) -> Outputs:
        shape = (len(lengths), max(end for _, end in lengths))
        labels = torch.randint(0, 11, shape, generator=generator)
        for b, (start, end) in enumerate(lengths):
            labels[b, :start] = labels[b, end:] = IGNORED

        def random(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator)

        reference = random(*shape, 11)
        layers = [
            Residual(added_BTO=random(*shape, o), base_BTO=random(*shape, o), direction_O=random(o))
            for o in (3, 7)
        ]
        return Outputs(
            logits_BTV=2.0 * random(*shape, 11),
            labels_BT=labels,
            reference_nll_B=sequence_nll(reference, labels),
            reference_logits_BTV=reference,
            hidden_BTD=random(*shape, 6),
            reference_hidden_BTD=random(*shape, 6),
            control_D=random(6),
            residuals=layers,
            other_labels_BT=labels.where(labels == IGNORED, (labels + 3) % 11),
        )

    return rows([(0, 9), (2, 6), (3, 6), (0, 4), (1, 8)]), rows(
        [(2, 5), (2, 9), (3, 6), (1, 4), (1, 7)]
    )


def part(outputs: Outputs, rows: slice) -> Outputs:
    """Some rows of a batch, as a micro-batch would hold them."""
    cut: dict[str, Any] = {}
    for field in fields(Outputs):
        value = getattr(outputs, field.name)
        if field.name == "residuals":
            cut[field.name] = [
                replace(r, added_BTO=r.added_BTO[rows], base_BTO=r.base_BTO[rows]) for r in value
            ]
        elif field.name != "control_D":
            cut[field.name] = value[rows]
    return replace(outputs, **cut)


def count(loss: ForgetLoss | RetainLoss, rows: Outputs, method: MethodConfig) -> int:
    """What the engine weights a micro-batch with."""
    if loss.reduction == "sequence":
        return len(rows.labels_BT)
    left_alone = loss.left_alone(method) if isinstance(loss, ForgetLoss) else 0
    n_counted = 0
    for row in rows.labels_BT.tolist():
        labelled = [t for t, label in enumerate(row) if label != IGNORED][left_alone:]
        n_counted += sum(t > 0 for t in labelled)
    return n_counted


SPLITS = [
    pytest.param([slice(0, 5)], id="whole"),
    pytest.param([slice(0, 2), slice(2, 5)], id="2+3"),
    pytest.param([slice(b, b + 1) for b in range(5)], id="one-by-one"),
]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("loss_id", get_args(ForgetLossId))
def test_micro_batches_weighted_by_their_counts_give_the_whole_batch_on_the_forget_side(
    loss_id: ForgetLossId, split: list[slice]
) -> None:
    method = MethodConfig(forget_loss=loss_id, ceu=CeuConfig(ignore_first_tokens=2))
    loss = FORGET_LOSSES[loss_id]
    forget, alternative = whole_batch()
    expected = loss.compute(forget, alternative, method)
    found, total = torch.tensor(0.0), 0
    for rows in split:
        mine, other = part(forget, rows), part(alternative, rows)
        n = count(loss, other if loss.reads == "alternative" else mine, method)
        found, total = found + n * loss.compute(mine, other, method), total + n
    torch.testing.assert_close(found / total, expected)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("loss_id", [i for i in get_args(RetainLossId) if i != "none"])
def test_micro_batches_weighted_by_their_counts_give_the_whole_batch_on_the_retain_side(
    loss_id: RetainLossId, split: list[slice]
) -> None:
    method = MethodConfig(forget_loss="ga", retain_loss=loss_id)
    loss = RETAIN_LOSSES[loss_id]
    assert loss is not None
    retain, _ = whole_batch()
    found, total = torch.tensor(0.0), 0
    for rows in split:
        n = count(loss, part(retain, rows), method)
        found, total = found + n * loss.compute(part(retain, rows), method), total + n
    torch.testing.assert_close(found / total, loss.compute(retain, method))


def test_every_id_has_its_loss_in_order_and_no_other() -> None:
    assert tuple(FORGET_LOSSES) == get_args(ForgetLossId)
    assert tuple(RETAIN_LOSSES) == get_args(RetainLossId)
    assert RETAIN_LOSSES["none"] is None


FIELDS: Mapping[str, tuple[str, ...]] = {
    "reference_nll": ("reference_nll_B",),
    "reference_logits": ("reference_logits_BTV",),
    "reference_hidden": ("reference_hidden_BTD",),
    "hidden": ("hidden_BTD", "control_D"),
    "residuals": ("residuals",),
    "random_labels": ("other_labels_BT",),
    "adversarial_labels": ("other_labels_BT",),
}
"""What the worker fills in for each need."""


def only(outputs: Outputs, needs: frozenset[Any]) -> Outputs:
    """Nothing but logits, labels and what ``needs`` names."""
    given = {name: getattr(outputs, name) for need in needs for name in FIELDS[need]}
    return Outputs(logits_BTV=outputs.logits_BTV, labels_BT=outputs.labels_BT, **given)


@pytest.mark.parametrize("loss_id", get_args(ForgetLossId))
def test_a_forget_loss_is_computed_from_what_it_declares_and_from_no_less(
    loss_id: ForgetLossId,
) -> None:
    method, loss = MethodConfig(forget_loss=loss_id), FORGET_LOSSES[loss_id]
    forget, alternative = whole_batch()
    given_forget = only(forget, loss.needs) if loss.reads != "alternative" else None
    given_other = only(alternative, loss.needs) if loss.reads != "forget" else None
    torch.testing.assert_close(
        loss.compute(given_forget, given_other, method), loss.compute(forget, alternative, method)
    )
    for need in loss.needs:
        fewer = loss.needs - {need}
        with pytest.raises((AssertionError, ValueError), match="^$|residuals of at least one"):
            loss.compute(only(forget, fewer), only(alternative, fewer), method)
    if loss.reads in ("forget", "both"):
        with pytest.raises(AssertionError, match="^$"):
            loss.compute(None, given_other, method)
    if loss.reads in ("alternative", "both"):
        with pytest.raises(AssertionError, match="^$"):
            loss.compute(given_forget, None, method)


@pytest.mark.parametrize("loss_id", [i for i in get_args(RetainLossId) if i != "none"])
def test_a_retain_loss_is_computed_from_what_it_declares_and_from_no_less(
    loss_id: RetainLossId,
) -> None:
    method, loss = MethodConfig(forget_loss="ga", retain_loss=loss_id), RETAIN_LOSSES[loss_id]
    assert loss is not None
    retain, _ = whole_batch()
    torch.testing.assert_close(
        loss.compute(only(retain, loss.needs), method), loss.compute(retain, method)
    )
    for need in loss.needs:
        with pytest.raises((AssertionError, ValueError), match="^$|residuals of at least one"):
            loss.compute(only(retain, loss.needs - {need}), method)


@pytest.mark.parametrize(
    ("loss_id", "section", "value"),
    [
        ("npo", "npo", {"beta": 0.7}),
        ("simnpo", "simnpo", {"beta": 0.7}),
        ("simnpo", "simnpo", {"delta": 1.5}),
        ("dpo", "dpo", {"beta": 0.7}),
        ("undial", "undial", {"beta": 3.0}),
        ("wga", "wga", {"beta": 2.0}),
        ("satimp", "satimp", {"beta1": 1.0}),
        ("satimp", "satimp", {"beta2": 3.0}),
        ("ceu", "ceu", {"ignore_first_tokens": 2}),
        ("residual", "residual", {"shift": 3.0}),
    ],
)
def test_each_hyperparameter_reaches_its_loss_and_only_that(
    loss_id: ForgetLossId, section: str, value: Mapping[str, float]
) -> None:
    forget, alternative = whole_batch()
    for other_id, loss in FORGET_LOSSES.items():
        usual = MethodConfig.model_validate({"forget_loss": other_id})
        changed = MethodConfig.model_validate({"forget_loss": other_id, section: value})
        before = loss.compute(forget, alternative, usual).item()
        after = loss.compute(forget, alternative, changed).item()
        assert (before != after) == (other_id == loss_id), other_id
