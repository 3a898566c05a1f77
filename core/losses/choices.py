"""The losses by id: what each family computes, joined with the facts.

Each family ends with its own part of the two mappings, so that a loss stands beside its entry.
"""

from collections.abc import Mapping

from core.config.method import (
    FORGET_LOSS_FACTS,
    RETAIN_LOSS_FACTS,
    ForgetLossId,
    RetainLossId,
)
from core.losses import (
    distribution,
    forget,
    preference,
    relabelled,
    representation,
    retain,
    weighted,
)
from core.losses.outputs import ForgetCompute, ForgetLoss, RetainCompute, RetainLoss

_FORGET: Mapping[ForgetLossId, ForgetCompute] = {
    **forget.FORGET,
    **relabelled.FORGET,
    **preference.FORGET,
    **distribution.FORGET,
    **weighted.FORGET,
    **representation.FORGET,
}
_RETAIN: Mapping[RetainLossId, RetainCompute] = {**retain.RETAIN, **representation.RETAIN}

FORGET_LOSSES: Mapping[ForgetLossId, ForgetLoss] = {
    loss: ForgetLoss(compute=_FORGET[loss], facts=facts)
    for loss, facts in FORGET_LOSS_FACTS.items()
}
"""Every forget loss by id."""

RETAIN_LOSSES: Mapping[RetainLossId, RetainLoss | None] = {
    loss: None if facts is None else RetainLoss(compute=_RETAIN[loss], facts=facts)
    for loss, facts in RETAIN_LOSS_FACTS.items()
}
"""Every retain loss by id; ``none`` has no loss."""
