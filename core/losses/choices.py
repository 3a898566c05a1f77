"""The losses by id: one literal mapping for each side."""

from collections.abc import Callable, Mapping

from torch import Tensor

from core.config.method import ForgetLossId, MethodConfig, RetainLossId
from core.losses.alignment import counted_positions
from core.losses.distribution import ceu_loss, pdu_loss, undial_loss
from core.losses.forget import gradient_ascent_loss, inverted_hinge_loss
from core.losses.outputs import ForgetLoss, Outputs, RetainLoss
from core.losses.preference import dpo_loss, npo_loss, simnpo_loss
from core.losses.relabelled import adversarial_label_loss, random_label_loss
from core.losses.representation import (
    activation_loss,
    residual_forget_loss,
    residual_retain_loss,
    rmu_loss,
)
from core.losses.retain import kl_loss, nll_loss
from core.losses.weighted import satimp_loss, wga_loss

OfOneSet = Callable[[Outputs, MethodConfig], Tensor]
OfBothSets = Callable[[Outputs | None, Outputs | None, MethodConfig], Tensor]


def _given(value: Tensor | None) -> Tensor:
    assert value is not None  # needs names it
    return value


def _of_forget(compute: OfOneSet) -> OfBothSets:
    def loss(forget: Outputs | None, alternative: Outputs | None, method: MethodConfig) -> Tensor:
        assert forget is not None  # reads is "forget"
        return compute(forget, method)

    return loss


def _idk_nll(forget: Outputs | None, alternative: Outputs | None, method: MethodConfig) -> Tensor:
    assert alternative is not None  # reads is "alternative"
    return nll_loss(alternative.logits_BTV, alternative.labels_BT)


def _dpo(forget: Outputs | None, alternative: Outputs | None, method: MethodConfig) -> Tensor:
    assert forget is not None  # reads is "both"
    assert alternative is not None
    return dpo_loss(
        forget.logits_BTV,
        forget.labels_BT,
        _given(forget.reference_nll_B),
        alternative.logits_BTV,
        alternative.labels_BT,
        _given(alternative.reference_nll_B),
        beta=method.dpo.beta,
    )


FORGET_LOSSES: Mapping[ForgetLossId, ForgetLoss] = {
    "ga": ForgetLoss(
        compute=_of_forget(lambda rows, _: gradient_ascent_loss(rows.logits_BTV, rows.labels_BT)),
        reduction="token",
    ),
    "ihl": ForgetLoss(
        compute=_of_forget(lambda rows, _: inverted_hinge_loss(rows.logits_BTV, rows.labels_BT)),
        reduction="token",
    ),
    "random_labels": ForgetLoss(
        compute=_of_forget(
            lambda rows, _: random_label_loss(
                rows.logits_BTV, rows.labels_BT, _given(rows.other_labels_BT)
            )
        ),
        reduction="token",
        needs=frozenset({"random_labels"}),
    ),
    "adversarial_labels": ForgetLoss(
        compute=_of_forget(
            lambda rows, _: adversarial_label_loss(
                rows.logits_BTV, rows.labels_BT, _given(rows.other_labels_BT)
            )
        ),
        reduction="token",
        needs=frozenset({"adversarial_labels"}),
    ),
    "npo": ForgetLoss(
        compute=_of_forget(
            lambda rows, method: npo_loss(
                rows.logits_BTV,
                rows.labels_BT,
                _given(rows.reference_nll_B),
                beta=method.npo.beta,
            )
        ),
        reduction="sequence",
        needs=frozenset({"reference_nll"}),
    ),
    "simnpo": ForgetLoss(
        compute=_of_forget(
            lambda rows, method: simnpo_loss(
                rows.logits_BTV,
                rows.labels_BT,
                beta=method.simnpo.beta,
                delta=method.simnpo.delta,
            )
        ),
        reduction="sequence",
    ),
    "dpo": ForgetLoss(
        compute=_dpo, reduction="sequence", reads="both", needs=frozenset({"reference_nll"})
    ),
    "idk_nll": ForgetLoss(compute=_idk_nll, reduction="token", reads="alternative"),
    "undial": ForgetLoss(
        compute=_of_forget(
            lambda rows, method: undial_loss(
                rows.logits_BTV,
                _given(rows.reference_logits_BTV),
                rows.labels_BT,
                beta=method.undial.beta,
            )
        ),
        reduction="token",
        needs=frozenset({"reference_logits"}),
    ),
    "wga": ForgetLoss(
        compute=_of_forget(
            lambda rows, method: wga_loss(rows.logits_BTV, rows.labels_BT, beta=method.wga.beta)
        ),
        reduction="token",
    ),
    "satimp": ForgetLoss(
        compute=_of_forget(
            lambda rows, method: satimp_loss(
                rows.logits_BTV,
                rows.labels_BT,
                beta1=method.satimp.beta1,
                beta2=method.satimp.beta2,
            )
        ),
        reduction="token",
    ),
    "ceu": ForgetLoss(
        compute=_of_forget(
            lambda rows, method: ceu_loss(
                rows.logits_BTV,
                rows.labels_BT,
                ignore_first_tokens=method.ceu.ignore_first_tokens,
            )
        ),
        reduction="token",
        left_alone=lambda method: method.ceu.ignore_first_tokens,
    ),
    "rmu": ForgetLoss(
        compute=_of_forget(
            lambda rows, _: rmu_loss(
                _given(rows.hidden_BTD), _given(rows.control_D), counted_positions(rows.labels_BT)
            )
        ),
        reduction="sequence",
        needs=frozenset({"hidden"}),
    ),
    "pdu": ForgetLoss(
        compute=_of_forget(lambda rows, _: pdu_loss(rows.logits_BTV, rows.labels_BT)),
        reduction="token",
    ),
    "residual": ForgetLoss(
        compute=_of_forget(
            lambda rows, method: residual_forget_loss(
                rows.residuals, rows.labels_BT, shift=method.residual.shift
            )
        ),
        reduction="token",
        needs=frozenset({"residuals"}),
    ),
}

RETAIN_LOSSES: Mapping[RetainLossId, RetainLoss | None] = {
    "none": None,
    "nll": RetainLoss(
        compute=lambda rows, _: nll_loss(rows.logits_BTV, rows.labels_BT), reduction="token"
    ),
    "kl": RetainLoss(
        compute=lambda rows, _: kl_loss(
            rows.logits_BTV, _given(rows.reference_logits_BTV), rows.labels_BT
        ),
        reduction="token",
        needs=frozenset({"reference_logits"}),
    ),
    "activation": RetainLoss(
        compute=lambda rows, _: activation_loss(
            _given(rows.hidden_BTD),
            _given(rows.reference_hidden_BTD),
            counted_positions(rows.labels_BT),
        ),
        reduction="sequence",
        needs=frozenset({"hidden", "reference_hidden"}),
    ),
    "residual": RetainLoss(
        compute=lambda rows, _: residual_retain_loss(rows.residuals, rows.labels_BT),
        reduction="token",
        needs=frozenset({"residuals"}),
    ),
}
