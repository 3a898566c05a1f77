"""All losses as functions of logits and labels, and batches to try them on."""

from collections.abc import Callable, Mapping

import torch
from hypothesis import strategies as st
from torch import Tensor

from core.losses import (
    IGNORED,
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
