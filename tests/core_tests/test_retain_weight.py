"""The weight on the retain loss: fixed, or a dual variable that follows the retain loss."""

import math
from collections.abc import Callable

import pytest

from core.config.method import MethodConfig, PduConfig
from core.training.retain_weight import DualVariable, FixedWeight, retain_weight


def asked(value: float) -> tuple[Callable[[], float], list[float]]:
    """A retain loss, and the list of its computations."""
    computed: list[float] = []

    def compute() -> float:
        computed.append(value)
        return value

    return compute, computed


def test_a_fixed_weight_stays_and_never_computes_the_retain_loss() -> None:
    weight, (loss, computed) = FixedWeight(0.25), asked(9.0)
    weight.after_step(loss)
    assert (weight.value, weight.state(), computed) == (0.25, {}, [])


def test_a_dual_variable_moves_by_step_times_excess() -> None:
    weight = DualVariable(1.0, PduConfig(retain_limit=0.5, dual_step=2.0))
    weight.after_step(lambda: 0.75)
    assert weight.value == 1.5
    weight.after_step(lambda: 0.0)
    assert weight.state() == {"dual_variable": 0.5}


def test_a_dual_variable_does_not_fall_below_zero() -> None:
    weight = DualVariable(0.1, PduConfig(retain_limit=1.0, dual_step=5.0))
    weight.after_step(lambda: 0.0)
    assert weight.value == 0.0


def test_the_warm_up_neither_moves_it_nor_computes_the_retain_loss() -> None:
    weight = DualVariable(1.0, PduConfig(retain_limit=0.0, warmup_steps=2))
    loss, computed = asked(1.0)
    for _ in range(3):
        weight.after_step(loss)
    assert (weight.value, computed) == (2.0, [1.0])


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_retain_loss_that_is_not_finite_is_ignored(loss: float) -> None:
    weight = DualVariable(1.0, PduConfig(retain_limit=0.0))
    weight.after_step(lambda: loss)
    assert weight.value == 1.0


def test_only_pdu_has_a_dual_variable() -> None:
    assert isinstance(retain_weight(MethodConfig(forget_loss="pdu")), DualVariable)
    assert isinstance(retain_weight(MethodConfig(forget_loss="ihl")), FixedWeight)
    assert retain_weight(MethodConfig(forget_loss="pdu", retain_weight=0.5)).value == 0.5
