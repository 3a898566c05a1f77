"""Losses: by hand, against naive loops, against published code, and blind to what does not count."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.losses import (
    FORGET_LOSSES,
    IGNORED,
    RETAIN_LOSSES,
    align,
    counted_tokens,
    gradient_ascent_loss,
    inverted_hinge_loss,
    kl_loss,
    nll_loss,
    token_nll,
)

GOLDEN = Path(__file__).parents[1] / "golden"

Loss = Callable[[Tensor, Tensor], Tensor]


def kl_to_uniform_reference(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    return kl_loss(logits_BTV, torch.zeros_like(logits_BTV), labels_BT)


LOSSES: Mapping[str, Loss] = {
    "ga": gradient_ascent_loss,
    "ihl": inverted_hinge_loss,
    "nll": nll_loss,
    "kl": kl_to_uniform_reference,
}

each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def log_probs(probs: list[float]) -> Tensor:
    """Logits ``(1, 2, V)`` whose first position predicts with ``probs``."""
    logits = torch.zeros(1, 2, len(probs))
    logits[0, 0] = torch.tensor(probs).clamp_min(1e-30).log()
    return logits


def one_step(probs: list[float], *, answer: int) -> tuple[Tensor, Tensor]:
    return log_probs(probs), torch.tensor([[IGNORED, answer]])


# By hand


@pytest.mark.parametrize(
    ("probs", "expected"),
    [
        pytest.param([1.0, 0.0, 0.0], 2.0, id="certain-of-answer"),
        pytest.param([0.5, 0.5, 0.0], 1.0, id="ties-with-rival"),
        pytest.param([0.0, 1.0, 0.0], 0.0, id="certain-of-rival"),
        pytest.param([0.2, 0.7, 0.1], 0.5, id="only-the-strongest-rival-counts"),
        pytest.param([0.6, 0.3, 0.1], 1.3, id="ahead-of-rival"),
    ],
)
def test_the_hinge_is_one_plus_answer_minus_rival(probs: list[float], expected: float) -> None:
    assert inverted_hinge_loss(*one_step(probs, answer=0)).item() == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize(
    ("probs", "nll"),
    [
        pytest.param([1.0, 0.0], 0.0, id="certain"),
        pytest.param([0.5, 0.5], math.log(2), id="coin"),
        pytest.param([0.25] * 4, math.log(4), id="uniform"),
    ],
)
def test_ascent_is_minus_the_cross_entropy(probs: list[float], nll: float) -> None:
    assert nll_loss(*one_step(probs, answer=0)).item() == pytest.approx(nll, abs=1e-6)
    assert gradient_ascent_loss(*one_step(probs, answer=0)).item() == pytest.approx(-nll, abs=1e-6)


def test_kl_is_from_the_reference_to_the_model() -> None:
    now, labels = one_step([0.5, 0.5], answer=0)
    reference = log_probs([0.75, 0.25])
    forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    backward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert kl_loss(now, reference, labels).item() == pytest.approx(forward, abs=1e-6)
    assert kl_loss(reference, now, labels).item() == pytest.approx(backward, abs=1e-6)


def test_kl_of_a_model_with_itself_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.randint(0, 7, (2, 5), generator=torch.Generator().manual_seed(1))
    loss = kl_loss(logits, logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(0.0, abs=1e-7)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-7)


def test_no_gradient_flows_into_the_reference() -> None:
    now, labels = one_step([0.5, 0.5], answer=0)
    reference = log_probs([0.75, 0.25]).requires_grad_()
    kl_loss(now.requires_grad_(), reference, labels).backward()
    assert reference.grad is None


def test_the_hinge_pushes_answer_and_strongest_rival_only_through_the_softmax() -> None:
    logits, labels = one_step([0.6, 0.3, 0.1], answer=0)
    logits.requires_grad_()
    inverted_hinge_loss(logits, labels).backward()
    assert logits.grad is not None
    p = torch.tensor([0.6, 0.3, 0.1])
    by_hand = p * (
        torch.tensor([1.0, -1.0, 0.0]) - (0.6 - 0.3)
    )  # softmax Jacobian times (1, -1, 0)
    torch.testing.assert_close(logits.grad[0, 0], by_hand)


def test_logits_predict_the_next_token() -> None:
    logits = torch.full((1, 3, 4), -30.0)
    logits[0, 0, 2] = logits[0, 1, 3] = 30.0  # position 0 predicts token 2, position 1 token 3
    labels = torch.tensor([[0, 2, 3]])
    assert nll_loss(logits, labels).item() == pytest.approx(0.0, abs=1e-6)
    paired, targets = align(logits, labels)
    assert targets.tolist() == [2, 3]
    torch.testing.assert_close(paired, logits[0, :2])


# Against naive loops


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, reference logits and labels of any mask with at least one counted token."""
    n_rows, n_tokens, size = (
        draw(st.integers(1, 4)),
        draw(st.integers(2, 7)),
        draw(st.integers(2, 9)),
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    scale = draw(st.sampled_from([0.1, 1.0, 10.0]))
    logits, reference = scale * torch.randn(2, n_rows, n_tokens, size, generator=generator)
    labels = torch.randint(0, size, (n_rows, n_tokens), generator=generator)
    counted = draw(st.lists(st.booleans(), min_size=n_rows * n_tokens, max_size=n_rows * n_tokens))
    labels[~torch.tensor(counted).view_as(labels)] = IGNORED
    if not counted_tokens(labels).any():
        labels[-1, -1] = 0
    return logits, reference, labels


def naive(name: str, logits: Tensor, reference: Tensor, labels: Tensor) -> float:
    """The definitions in float64, one token at a time."""
    terms = []
    x, y, target = logits.double().numpy(), reference.double().numpy(), labels.numpy()
    for b in range(target.shape[0]):
        for t in range(target.shape[1] - 1):
            answer = int(target[b, t + 1])
            if answer == IGNORED:
                continue
            p = np.exp(x[b, t] - x[b, t].max())
            p /= p.sum()
            q = np.exp(y[b, t] - y[b, t].max())
            q /= q.sum()
            if name == "ga":
                terms.append(math.log(p[answer]))
            elif name == "nll":
                terms.append(-math.log(p[answer]))
            elif name == "ihl":
                terms.append(1 + p[answer] - max(v for i, v in enumerate(p) if i != answer))
            else:
                terms.append(sum(q[v] * math.log(q[v] / p[v]) for v in range(len(p)) if q[v] > 0))
    return sum(terms) / len(terms)


@given(batch=batches())
@settings(deadline=None, max_examples=60)
def test_losses_equal_a_float64_loop_over_tokens(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, reference, labels = batch
    for name, found in {
        "ga": gradient_ascent_loss(logits, labels),
        "ihl": inverted_hinge_loss(logits, labels),
        "nll": nll_loss(logits, labels),
        "kl": kl_loss(logits, reference, labels),
    }.items():
        expected = naive(name, logits, reference, labels)
        assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-5), name


@given(batch=batches(), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_the_order_of_rows_does_not_matter(batch: tuple[Tensor, Tensor, Tensor], seed: int) -> None:
    logits, _, labels = batch
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for loss in LOSSES.values():
        torch.testing.assert_close(
            loss(logits[order], labels[order]), loss(logits, labels), rtol=1e-5, atol=1e-5
        )


@given(batch=batches(), shift=st.floats(-50, 50))
@settings(deadline=None, max_examples=30)
def test_adding_a_constant_to_all_logits_of_a_position_changes_nothing(
    batch: tuple[Tensor, Tensor, Tensor], shift: float
) -> None:
    logits, _, labels = batch
    moved = logits + shift * torch.arange(1, logits.shape[1] + 1).view(1, -1, 1)
    for loss in LOSSES.values():
        torch.testing.assert_close(loss(moved, labels), loss(logits, labels), rtol=1e-3, atol=1e-3)


@given(batch=batches(), n_padding=st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_padding_changes_nothing_whatever_its_logits(
    batch: tuple[Tensor, Tensor, Tensor], n_padding: int
) -> None:
    logits, _, labels = batch
    n_rows, _, size = logits.shape
    filler = 100.0 * torch.randn(
        n_rows, n_padding, size, generator=torch.Generator().manual_seed(0)
    )
    padded = torch.cat([logits, filler], dim=1)
    ignored = torch.cat([labels, torch.full((n_rows, n_padding), IGNORED)], dim=1)
    for loss in LOSSES.values():
        torch.testing.assert_close(loss(padded, ignored), loss(logits, labels), rtol=0, atol=0)


@given(batch=batches())
@settings(deadline=None, max_examples=30)
def test_the_gradient_is_exactly_zero_on_every_position_that_does_not_count(
    batch: tuple[Tensor, Tensor, Tensor],
) -> None:
    logits, _, labels = batch
    silent = torch.ones_like(labels, dtype=torch.bool)
    silent[:, :-1] = ~counted_tokens(labels)
    for name, loss in LOSSES.items():
        x = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x, labels), x)
        assert torch.count_nonzero(gradient[silent]) == 0, name
        assert bool(torch.isfinite(gradient).all()), name


@each_loss
def test_the_mean_is_over_tokens_and_not_over_rows(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3.0 * torch.randn(2, 9, 5, generator=generator)
    labels = torch.randint(0, 5, (2, 9), generator=generator)
    labels[1, 2:] = IGNORED  # row 0 counts 8 tokens, row 1 counts 1
    long, short = loss(logits[:1], labels[:1]), loss(logits[1:], labels[1:])
    torch.testing.assert_close(loss(logits, labels), (8 * long + short) / 9)
    assert abs(float((long + short) / 2 - loss(logits, labels))) > 1e-3


# Precision


@each_loss
def test_bf16_logits_are_computed_in_float32(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4.0 * torch.randn(4, 16, 300, generator=generator)
    labels = torch.randint(0, 300, (4, 16), generator=generator)
    low = logits.bfloat16()
    found = loss(low, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(low.float(), labels), rtol=0, atol=0)
    rounding = 2.0**-8 * float(logits.abs().max())  # largest error of a logit
    assert abs(float(found - loss(logits, labels))) <= 2 * rounding


# Refusals


@each_loss
def test_shapes_that_disagree_are_refused(loss: Loss) -> None:
    with pytest.raises(ValueError, match=r"must agree, got \(2, 3, 5\) and \(2, 4\)"):
        loss(torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"must agree, got \(3, 5\) and \(3,\)"):
        loss(torch.zeros(3, 5), torch.zeros(3, dtype=torch.long))


@each_loss
def test_a_batch_without_a_counted_token_is_refused(loss: Loss) -> None:
    labels = torch.full((2, 3), IGNORED)
    labels[:, 0] = 1  # the first token is never predicted
    with pytest.raises(ValueError, match="no token counts: every label after the first is -100"):
        loss(torch.zeros(2, 3, 5), labels)


@each_loss
@pytest.mark.parametrize("label", [5, -1])
def test_a_label_outside_the_vocabulary_is_refused(loss: Loss, label: int) -> None:
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\) or be -100, got"):
        loss(torch.zeros(1, 2, 5), torch.tensor([[0, label]]))


def test_a_hinge_without_a_rival_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a vocabulary of at least 2, got V=1"):
        inverted_hinge_loss(torch.zeros(1, 2, 1), torch.zeros(1, 2, dtype=torch.long))


def test_a_reference_of_another_shape_is_refused() -> None:
    labels = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="must agree"):
        kl_loss(torch.zeros(1, 3, 5), torch.zeros(1, 4, 5), labels)


# Published code


class Case:
    """A golden case: manifest, arrays, and the shared inputs of the losses."""

    def __init__(self, name: str) -> None:
        self.manifest = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
        self._arrays = np.load(GOLDEN / self.manifest["data"])
        self._inputs = np.load(GOLDEN / "loss_inputs.npz")

    @property
    def variants(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.manifest["variants"]
        return found

    def value(self, entry: Any) -> Tensor:
        raw = self._arrays[entry["array"]] if isinstance(entry, dict) else entry
        return torch.as_tensor(np.asarray(raw)).float()

    def part(self, variant: Mapping[str, Any], name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Logits with gradient, reference logits, labels."""
        at = f"{variant['params']['set']}/{name}"
        return (
            torch.from_numpy(self._inputs[f"{at}.logits"]).requires_grad_(),
            torch.from_numpy(self._inputs[f"{at}.ref_logits"]),
            torch.from_numpy(self._inputs[f"{at}.labels"]).long(),
        )

    def array(self, entry: Mapping[str, str]) -> Any:
        return self._arrays[entry["array"]]

    def check(self, found: Tensor, entry: Any, *, kind: str = "values") -> None:
        tolerance = self.manifest["tolerance"][kind]
        torch.testing.assert_close(found.detach(), self.value(entry), **tolerance)


@pytest.mark.parametrize("name", ["loku_ga", "ou_grad_ascent"])
def test_ascent_and_its_gradient_equal_published_code(name: str) -> None:
    case = Case(name)
    for variant in case.variants:
        logits, _, labels = case.part(variant, "forget")
        total = FORGET_LOSSES["ga"].compute(logits, labels)
        (gradient,) = torch.autograd.grad(total, logits)
        case.check(total, variant["expected"]["total"])
        case.check(gradient, variant["expected"]["grad.forget_logits"], kind="gradients")


def test_the_hinge_its_tokens_and_its_gradient_equal_published_code() -> None:
    case = Case("loku_ihl")
    retain_loss = RETAIN_LOSSES["nll"]
    assert retain_loss is not None
    for variant in case.variants:
        expected = variant["expected"]
        logits, _, labels = case.part(variant, "forget")
        loss = FORGET_LOSSES["ihl"].compute(logits, labels)
        (gradient,) = torch.autograd.grad(loss, logits)
        case.check(loss, expected["forget_loss"])
        case.check(gradient, expected["grad.forget_logits"], kind="gradients")
        retain_logits, _, retain_labels = case.part(variant, "retain")
        kept = retain_loss.compute(retain_logits, None, retain_labels)
        case.check(kept, expected["retain_loss"])
        case.check(loss + kept, expected["total"])
        one_by_one = []
        for b, t in counted_tokens(labels).nonzero().tolist():
            only = torch.full_like(labels, IGNORED)
            only[b, t + 1] = labels[b, t + 1]
            one_by_one.append(inverted_hinge_loss(logits, only))
        case.check(torch.stack(one_by_one), expected["per_token_forget"])


def test_the_softmax_is_applied_also_when_every_logit_lies_in_the_unit_interval() -> None:
    case = Case("loku_ihl_unit_interval")
    for variant in case.variants:
        rows = torch.from_numpy(case.array(variant["inputs"]["logits"]))
        answers = torch.from_numpy(case.array(variant["inputs"]["labels"])).long()
        logits = torch.stack([rows, torch.zeros_like(rows)], dim=1)
        labels = torch.stack([torch.full_like(answers, IGNORED), answers], dim=1)
        found = inverted_hinge_loss(logits, labels)
        case.check(found, variant["derived"]["forget_loss_with_softmax"])
        assert abs(found.item() - variant["expected"]["forget_loss"]) > 0.5


@pytest.mark.parametrize("name", ["loku_gd", "ou_grad_diff"])
def test_ascent_with_weighted_descent_equals_published_code(name: str) -> None:
    case = Case(name)
    retain_loss = RETAIN_LOSSES["nll"]
    assert retain_loss is not None
    n_compared = 0
    for variant in case.variants:
        params, expected = variant["params"], variant["expected"]
        if params.get("retain_loss_type", "NLL") != "NLL":
            continue  # its KL averages over padding: see the KL test
        forget_logits, _, forget_labels = case.part(variant, "forget")
        retain_logits, _, retain_labels = case.part(variant, "retain")
        kept = retain_loss.compute(retain_logits, None, retain_labels)
        total = params.get("gamma", 1.0) * gradient_ascent_loss(forget_logits, forget_labels)
        total = total + params.get("alpha", 1.0) * kept
        gradients = torch.autograd.grad(total, [forget_logits, retain_logits])
        case.check(kept, expected["retain_loss"])
        case.check(total, expected["total"])
        case.check(gradients[0], expected["grad.forget_logits"], kind="gradients")
        case.check(gradients[1], expected["grad.retain_logits"], kind="gradients")
        n_compared += 1
    assert n_compared >= 2


def test_kl_equals_published_code_token_by_token_but_averages_over_counted_tokens_only() -> None:
    """The released code averages over prompt, padding and the last position too; that is on purpose not ours."""
    case = Case("loku_kl")
    retain_loss = RETAIN_LOSSES["kl"]
    assert retain_loss is not None
    assert retain_loss.needs_reference
    for variant in case.variants:
        expected = variant["expected"]
        logits, reference, labels = case.part(variant, "retain")
        found = retain_loss.compute(logits, reference, labels)
        assert found.item() == pytest.approx(
            variant["derived"]["kl_masked_mean"], rel=1e-4, abs=2e-6
        )
        assert found.item() != pytest.approx(expected["kl"], rel=1e-4, abs=2e-6)
        counted = counted_tokens(labels)
        per_position = case.value(expected["kl_per_position"])
        torch.testing.assert_close(
            found.detach(), per_position[:, :-1][counted].mean(), rtol=1e-4, atol=2e-6
        )
        (gradient,) = torch.autograd.grad(found, logits)
        theirs = case.value(expected["grad.retain_logits"])
        torch.testing.assert_close(
            gradient[:, :-1][counted] * int(counted.sum()),
            theirs[:, :-1][counted] * labels.numel(),
            rtol=2e-4,
            atol=5e-6,
        )


def test_token_nll_is_row_by_row() -> None:
    logits = torch.stack([log_probs([0.5, 0.5])[0], log_probs([0.25, 0.75])[0]])
    labels = torch.tensor([[IGNORED, 0], [IGNORED, 0]])
    torch.testing.assert_close(token_nll(logits, labels), torch.tensor([math.log(2), math.log(4)]))
