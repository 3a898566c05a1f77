"""Forget and retain losses: functions of tensors, and one literal mapping for each side."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from core.losses.alignment import IGNORED, align, counted_tokens, token_nll
from core.losses.forget import gradient_ascent_loss, inverted_hinge_loss
from core.losses.retain import kl_loss, nll_loss

Reduction = Literal["token", "sequence"]
"""What a loss averages over; the engine weights each micro-batch by its share of that count."""


@dataclass(frozen=True, kw_only=True)
class ForgetLoss:
    """A forget loss and what it averages over."""

    compute: Callable[[Tensor, Tensor], Tensor]
    reduction: Reduction


@dataclass(frozen=True, kw_only=True)
class RetainLoss:
    """A retain loss, what it averages over, and whether it compares with the reference model."""

    compute: Callable[[Tensor, Tensor | None, Tensor], Tensor]
    reduction: Reduction
    needs_reference: bool


def _nll(logits_BTV: Tensor, reference_logits_BTV: Tensor | None, labels_BT: Tensor) -> Tensor:
    return nll_loss(logits_BTV, labels_BT)


def _kl(logits_BTV: Tensor, reference_logits_BTV: Tensor | None, labels_BT: Tensor) -> Tensor:
    assert reference_logits_BTV is not None  # needs_reference is set
    return kl_loss(logits_BTV, reference_logits_BTV, labels_BT)


FORGET_LOSSES: Mapping[str, ForgetLoss] = {
    "ga": ForgetLoss(compute=gradient_ascent_loss, reduction="token"),
    "ihl": ForgetLoss(compute=inverted_hinge_loss, reduction="token"),
}

RETAIN_LOSSES: Mapping[str, RetainLoss | None] = {
    "none": None,
    "nll": RetainLoss(compute=_nll, reduction="token", needs_reference=False),
    "kl": RetainLoss(compute=_kl, reduction="token", needs_reference=True),
}

__all__ = [
    "FORGET_LOSSES",
    "IGNORED",
    "RETAIN_LOSSES",
    "ForgetLoss",
    "Reduction",
    "RetainLoss",
    "align",
    "counted_tokens",
    "gradient_ascent_loss",
    "inverted_hinge_loss",
    "kl_loss",
    "nll_loss",
    "token_nll",
]
