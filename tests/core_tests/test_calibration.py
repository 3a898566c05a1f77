"""Calibration to equal utility: the share of a difference that keeps it and lands nearest, and weights in between."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.measuring.calibration import ON_TARGET, largest_factor, nearest_factor
from core.training.full_parameters import mixed


def counted(utility: Callable[[float], float]) -> tuple[Callable[[float], float], list[float]]:
    """The utility, and the list of factors that it is asked for."""
    asked: list[float] = []

    def ask(factor: float) -> float:
        asked.append(factor)
        return utility(factor)

    return ask, asked


# Largest factor


def test_three_halvings_by_hand() -> None:
    utility, asked = counted(lambda factor: 1.0 - factor)
    # 1.0 is lost, 0.5 lost, 0.25 kept, 0.375 lost
    assert largest_factor(utility, at_least=0.7, steps=3) == 0.25
    assert asked == [1.0, 0.5, 0.25, 0.375]


def test_the_whole_difference_is_kept_at_once_if_it_costs_nothing() -> None:
    utility, asked = counted(lambda factor: 1.0 + factor)
    assert largest_factor(utility, at_least=0.95) == 1.0
    assert asked == [1.0]


def test_a_utility_that_is_just_reached_counts_as_kept() -> None:
    assert largest_factor(lambda factor: 1.0 - factor, at_least=0.5, steps=4) == 0.5


def test_nothing_is_left_where_every_share_costs_too_much() -> None:
    utility, asked = counted(lambda factor: 0.0)
    assert largest_factor(utility, at_least=0.95, steps=5) == 0.0
    assert asked == [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125]  # the original itself is not measured


def test_not_a_number_counts_as_lost() -> None:
    found = largest_factor(lambda c: 1.0 if c <= 0.6 else float("nan"), at_least=0.9, steps=10)
    assert 0.6 - 2**-10 <= found <= 0.6


def test_a_dip_below_a_kept_share_can_hide_it() -> None:
    """Kept again at 0.8, but what is lost at 0.5 sends the search below."""
    found = largest_factor(lambda c: 1.0 if c < 0.3 or 0.7 < c < 0.9 else 0.0, at_least=1.0)
    assert 0.3 - 2**-8 <= found < 0.3


@given(limit=st.floats(0.0, 1.0, exclude_max=True), steps=st.integers(1, 12))
@settings(deadline=None)
def test_a_falling_utility_is_met_from_below_within_a_halving(limit: float, steps: int) -> None:
    utility, asked = counted(lambda factor: -factor)
    found = largest_factor(utility, at_least=-limit, steps=steps)
    assert found <= limit < found + 2.0**-steps
    assert len(asked) == steps + 1


@given(
    levels=st.lists(st.booleans(), min_size=17, max_size=17),
    steps=st.integers(1, 4),
)
@settings(deadline=None)
def test_whatever_the_utility_the_answer_is_kept_and_what_lies_just_above_is_not(
    levels: list[bool], steps: int
) -> None:
    utility, asked = counted(lambda factor: float(levels[round(16 * factor)]))
    found = largest_factor(utility, at_least=0.5, steps=steps)
    assert found == 0.0 or levels[round(16 * found)]
    assert found == 0.0 or found in asked
    assert (found * 2**steps).is_integer()
    if found < 1.0:
        assert any(
            found < factor <= found + 2.0**-steps and not levels[round(16 * factor)]
            for factor in asked
        )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_limit_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"at_least must be finite, got {bad}"):
        largest_factor(lambda factor: 1.0, at_least=bad)


def test_no_halving_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="steps must be positive, got 0"):
        largest_factor(lambda factor: 1.0, at_least=0.5, steps=0)


# Nearest factor: forget level 1 before, 3 at the target


def test_a_trial_short_of_the_target_keeps_the_largest_factor_that_keeps_utility() -> None:
    """Utility-bound: as Unlearning with Control has it."""
    utility, asked = counted(lambda c: 1.0 - c)
    forget, looked_at = counted(lambda c: 1.0 + 4.0 * c)
    found = nearest_factor(utility, forget, at_least=0.75, before=1.0, target=3.0)
    assert found == 0.25
    assert looked_at == [0.25]  # closure 0.5: nothing below is nearer
    assert len(asked) == 9


def test_a_trial_that_overshot_is_judged_where_it_lies_on_target() -> None:
    """The largest factor, 1, has the level 9: three times the way. A quarter of it is exactly on target."""
    utility, asked = counted(lambda c: 1.0)
    forget, looked_at = counted(lambda c: 1.0 + 8.0 * c)
    assert nearest_factor(utility, forget, at_least=0.95, before=1.0, target=3.0) == 0.25
    assert looked_at == [
        1.0,
        0.25,
    ]  # the level rises evenly: the line through both ends leads there
    assert asked == [1.0, 0.25]  # that it is kept at 1 says nothing about 0.25


def test_utility_and_overshoot_may_both_bind() -> None:
    """Utility allows 0.75, which has the level 4; half of the difference is on target."""
    found = nearest_factor(
        lambda c: 1.0 - c, lambda c: 1.0 + 4.0 * c, at_least=0.25, before=1.0, target=3.0
    )
    assert found == pytest.approx(0.5, abs=2**-8)


def test_where_the_nearest_factor_loses_utility_the_next_nearest_that_keeps_it_counts() -> None:
    """Utility dips at the target, 0.75: 1 is past it by half of the way, 2/3 short of it by a ninth."""
    found = nearest_factor(
        lambda c: 0.0 if 0.7 < c < 0.95 else 1.0,
        lambda c: 4.0 if c == 1.0 else 1.0 + 8.0 / 3.0 * c,
        at_least=0.5,
        before=1.0,
        target=3.0,
    )
    assert found == pytest.approx(2.0 / 3.0)


def test_a_trial_that_lies_on_target_is_not_scaled() -> None:
    """Landed trials are saved on target: one hundredth of the way is within what a level is sure to."""
    forget, looked_at = counted(lambda c: 1.0 + 2.02 * c)
    assert nearest_factor(lambda c: 1.0, forget, at_least=0.5, before=1.0, target=3.0) == 1.0
    assert looked_at == [1.0]


def test_a_trial_that_lands_nowhere_near_is_the_original_model() -> None:
    """Every share that was looked at is far past the target: 0, where nothing is forgotten, is nearer."""
    found = nearest_factor(lambda c: 1.0, lambda c: 9.0, at_least=0.5, before=1.0, target=3.0)
    assert found == 0.0


def test_a_level_that_is_not_a_number_is_past_the_target() -> None:
    found = nearest_factor(
        lambda c: 1.0,
        lambda c: 1.0 + 4.0 * c if c < 0.9 else float("nan"),
        at_least=0.5,
        before=1.0,
        target=3.0,
    )
    assert found == 0.5


def test_where_every_share_costs_too_much_the_forget_set_is_not_read() -> None:
    forget, looked_at = counted(lambda c: 3.0)
    assert nearest_factor(lambda c: 0.0, forget, at_least=0.5, before=1.0, target=3.0) == 0.0
    assert looked_at == []


@given(
    slope=st.floats(0.1, 50.0),
    power=st.floats(0.3, 3.0),
    limit=st.floats(0.0, 1.0, exclude_min=True),
    steps=st.integers(1, 10),
)
@settings(deadline=None)
def test_no_allowed_factor_of_a_fine_grid_is_nearer_by_more_than_the_resolution(
    slope: float, power: float, limit: float, steps: int
) -> None:
    """Against a naive search of 2,000 factors, for levels and utilities that are monotone."""

    def level(c: float) -> float:
        return 1.0 + slope * math.pow(c, power)

    utility, asked = counted(lambda c: -c)
    forget, looked_at = counted(level)
    found = nearest_factor(utility, forget, at_least=-limit, before=1.0, target=3.0, steps=steps)
    assert found <= limit
    assert len({*asked, *looked_at}) <= 2 * steps + 1
    largest = largest_factor(lambda c: -c, at_least=-limit, steps=steps)
    grid = [largest * i / 2000 for i in range(2001)]
    nearest = min(abs(level(c) - 3.0) for c in grid)
    # what the level can still change in what is left of [0, largest], halved by every second look, or the tolerance
    left = largest * 2.0 ** -(steps // 2)
    change = max(
        abs(level(c + left) - level(c)) for c in [0.0, *grid] if c + left <= largest + 1e-9
    )
    assert abs(level(found) - 3.0) <= nearest + max(change, 2.0 * ON_TARGET) + 1e-6


# Weights in between


def test_a_quarter_of_the_way_by_hand() -> None:
    before, after = {"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([3.0, 2.0])}
    torch.testing.assert_close(mixed(before, after, factor=0.25)["w"], torch.tensor([1.5, -1.0]))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(factor=st.floats(0.0, 1.0), seed=st.integers(0, 10**6))
@settings(deadline=None)
def test_it_equals_the_line_in_float64_and_leaves_its_arguments_alone(
    factor: float, seed: int
) -> None:
    before = {"w": normal(3, 4, seed=seed), "b": normal(3, seed=seed + 1)}
    after = {"b": normal(3, seed=seed + 2), "w": normal(3, 4, seed=seed + 3)}
    kept = {name: weight.clone() for name, weight in before.items()}
    found = mixed(before, after, factor=factor)
    assert list(found) == ["w", "b"]
    for name, weight in found.items():
        start, end = before[name].double(), after[name].double()
        expected = start + factor * (end - start)
        torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(before[name], kept[name], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_ends_are_the_two_models_bit_for_bit(dtype: torch.dtype) -> None:
    before = {"w": (1e3 * normal(50, 50, seed=0)).to(dtype)}
    after = {"w": normal(50, 50, seed=1).to(dtype)}
    for factor, expected in ((0.0, before), (1.0, after)):
        found = mixed(before, after, factor=factor)["w"]
        torch.testing.assert_close(found, expected["w"], rtol=0, atol=0)


def test_bf16_weights_are_mixed_in_float32() -> None:
    before = {"w": normal(200, seed=0).bfloat16()}
    after = {"w": normal(200, seed=1).bfloat16()}
    found = mixed(before, after, factor=0.3)["w"]
    exact = before["w"].double() + 0.3 * (after["w"].double() - before["w"].double())
    torch.testing.assert_close(found, exact.bfloat16(), rtol=0, atol=0)


def test_weights_of_two_models_are_refused() -> None:
    one, other = torch.ones(2), torch.ones(3)
    with pytest.raises(ValueError, match="must have the same names, only one has u, v"):
        mixed({"w": one, "v": one}, {"w": one, "u": one}, factor=0.5)
    with pytest.raises(
        ValueError, match=r"w: before and after must have one shape, got \(2,\) and \(3,\)"
    ):
        mixed({"w": one}, {"w": other}, factor=0.5)


@pytest.mark.parametrize("factor", [-0.1, 1.5, float("nan")])
def test_a_factor_outside_the_line_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match=rf"factor must lie in \[0, 1\], got {factor}"):
        mixed({"w": torch.ones(1)}, {"w": torch.ones(1)}, factor=factor)
