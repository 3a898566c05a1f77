"""Forget and retain losses: functions of tensors, and one literal mapping for each side."""

from core.losses.alignment import (
    IGNORED,
    align,
    counted_positions,
    counted_tokens,
    sequence_nll,
    token_nll,
)
from core.losses.choices import FORGET_LOSSES, RETAIN_LOSSES
from core.losses.distribution import ceu_loss, dual_update, pdu_loss, undial_loss
from core.losses.forget import gradient_ascent_loss, inverted_hinge_loss
from core.losses.outputs import ForgetLoss, Outputs, Residual, RetainLoss
from core.losses.preference import dpo_loss, npo_loss, simnpo_loss
from core.losses.relabelled import (
    adversarial_label_loss,
    adversarial_labels,
    random_label_loss,
    random_labels,
)
from core.losses.representation import (
    activation_loss,
    residual_forget_loss,
    residual_retain_loss,
    rmu_loss,
)
from core.losses.retain import kl_loss, nll_loss
from core.losses.weighted import satimp_loss, wga_loss

__all__ = [
    "FORGET_LOSSES",
    "IGNORED",
    "RETAIN_LOSSES",
    "ForgetLoss",
    "Outputs",
    "Residual",
    "RetainLoss",
    "activation_loss",
    "adversarial_label_loss",
    "adversarial_labels",
    "align",
    "ceu_loss",
    "counted_positions",
    "counted_tokens",
    "dpo_loss",
    "dual_update",
    "gradient_ascent_loss",
    "inverted_hinge_loss",
    "kl_loss",
    "nll_loss",
    "npo_loss",
    "pdu_loss",
    "random_label_loss",
    "random_labels",
    "residual_forget_loss",
    "residual_retain_loss",
    "rmu_loss",
    "satimp_loss",
    "sequence_nll",
    "simnpo_loss",
    "token_nll",
    "undial_loss",
    "wga_loss",
]
