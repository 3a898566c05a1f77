"""Calibration to equal utility: the share of a difference that keeps it and lands nearest, and weights in between."""

import math
from collections.abc import Callable
from functools import partial

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


def test_along_the_straight_line_by_hand() -> None:
    """The utility falls evenly, so that the line leads there: to the middle of what counts as near."""
    utility, asked = counted(lambda factor: 1.0 - factor)
    found = largest_factor(utility, original=1.0, at_least=0.7)
    assert found == pytest.approx(0.3 * (1.0 - ON_TARGET / 2.0))
    assert asked == [1.0, found]


def test_the_whole_difference_is_kept_at_once_if_it_costs_nothing() -> None:
    utility, asked = counted(lambda factor: 1.0 + factor)
    assert largest_factor(utility, original=1.0, at_least=0.95) == 1.0
    assert asked == [1.0]


def test_it_is_asked_about_part_of_the_difference() -> None:
    utility, asked = counted(lambda factor: 1.0 - factor)
    assert largest_factor(utility, original=1.0, at_least=0.5, up_to=0.4) == 0.4
    assert asked == [0.4]


def test_a_utility_that_is_just_reached_counts_as_kept() -> None:
    assert largest_factor(lambda factor: 1.0 - factor, original=1.0, at_least=0.0) == 1.0


def test_nothing_is_left_where_every_share_costs_too_much() -> None:
    utility, asked = counted(lambda factor: 0.0)
    assert largest_factor(utility, original=1.0, at_least=0.95, steps=5) == 0.0
    assert len(asked) == 6
    assert min(asked) > 0.0  # the original itself is not measured


def test_not_a_number_counts_as_lost() -> None:
    found = largest_factor(
        lambda c: 1.0 if c <= 0.6 else float("nan"), original=1.0, at_least=0.9, steps=20
    )
    assert 0.6 - 2**-10 <= found <= 0.6


def test_where_nothing_may_be_lost_it_is_halved() -> None:
    """All of the original utility is asked for: no straight line leads to where it begins to fall."""
    utility, asked = counted(lambda c: min(1.0, 1.3 - c))
    found = largest_factor(utility, original=1.0, at_least=1.0)
    assert 0.3 - 2**-8 <= found <= 0.3
    assert asked[:3] == [1.0, 0.5, 0.25]


def test_a_dip_below_a_kept_share_can_hide_it() -> None:
    """Kept again at 0.8, but what is lost at 0.5 sends the search below."""
    found = largest_factor(
        lambda c: 1.0 if c < 0.3 or 0.7 < c < 0.9 else 0.0, original=1.0, at_least=1.0
    )
    assert 0.3 - 2**-8 <= found < 0.3


@given(
    allowed=st.floats(0.01, 2.0),
    power=st.floats(0.3, 4.0),
    steps=st.integers(1, 12),
)
@settings(deadline=None)
def test_a_falling_utility_is_met_from_below(allowed: float, power: float, steps: int) -> None:
    utility, asked = counted(lambda factor: 1.0 - factor**power)
    at_least = 1.0 - allowed
    found = largest_factor(utility, original=1.0, at_least=at_least, steps=steps)
    largest = min(1.0, allowed ** (1.0 / power))
    assert found <= largest + 1e-12
    is_near = found > 0.0 and (1.0 - found**power) - at_least <= ON_TARGET * allowed + 1e-12
    assert is_near or largest < found + 2.0 ** -(steps // 2)
    assert len(asked) <= steps + 1


@given(
    levels=st.lists(st.sampled_from([0.0, 0.4, 0.5, 0.7, 1.2]), min_size=17, max_size=17),
    original=st.sampled_from([0.5, 0.6, 1.0]),
    steps=st.integers(1, 10),
)
@settings(deadline=None)
def test_whatever_the_utility_the_answer_is_kept_and_near_the_limit_or_to_a_share_that_is_lost(
    levels: list[float], original: float, steps: int
) -> None:
    def level_at(factor: float) -> float:
        return levels[round(16 * factor)]

    utility, asked = counted(level_at)
    found = largest_factor(utility, original=original, at_least=0.5, steps=steps)
    assert len(asked) == len(set(asked)) <= steps + 1
    assert found == 0.0 or (found in asked and level_at(found) >= 0.5)
    is_near = found > 0.0 and level_at(found) - 0.5 <= ON_TARGET * (original - 0.5)
    if found < 1.0 and not is_near:
        above = found + 2.0 ** -(steps // 2)
        assert any(found < factor <= above and level_at(factor) < 0.5 for factor in asked)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_limit_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"at_least must be finite, got {bad}"):
        largest_factor(lambda factor: 1.0, original=1.0, at_least=bad)


@pytest.mark.parametrize("bad", [float("nan"), 0.4])
def test_an_original_below_the_limit_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"original must keep at_least=0.5, got {bad}"):
        largest_factor(lambda factor: 1.0, original=bad, at_least=0.5)


def test_no_look_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="steps must be positive, got 0"):
        largest_factor(lambda factor: 1.0, original=1.0, at_least=0.5, steps=0)


# Nearest factor: forget level 1 before, 3 at the target, utility 1 before


nearest = partial(nearest_factor, original=1.0, before=1.0, target=3.0)


def test_a_trial_short_of_the_target_keeps_the_largest_factor_that_keeps_utility() -> None:
    """Utility-bound: as Unlearning with Control has it."""
    utility, asked = counted(lambda c: 1.0 - c)
    forget, looked_at = counted(lambda c: 1.0 + 1.5 * c)
    found = nearest(utility, forget, at_least=0.75)
    assert found == pytest.approx(0.25, abs=0.25 * ON_TARGET)
    assert found <= 0.25
    assert looked_at == [1.0]  # closure 0.75: nothing below is nearer
    assert asked == [1.0, found]


def test_a_trial_that_overshot_is_judged_where_it_lies_on_target() -> None:
    """The whole difference has the level 9: three times the way. A quarter of it is exactly on target."""
    utility, asked = counted(lambda c: 1.0)
    forget, looked_at = counted(lambda c: 1.0 + 8.0 * c)
    assert nearest(utility, forget, at_least=0.95) == 0.25
    assert looked_at == [1.0, 0.25]  # the level rises evenly: the line leads there
    assert asked == [0.25]


def test_utility_and_overshoot_may_both_bind() -> None:
    """Half of the difference is on target; utility allows a quarter."""
    found = nearest(lambda c: 1.0 - c, lambda c: 1.0 + 4.0 * c, at_least=0.75)
    assert found == pytest.approx(0.25, abs=0.25 * ON_TARGET)
    assert found <= 0.25


def test_where_utility_is_lost_on_target_the_largest_factor_below_that_keeps_it_counts() -> None:
    """Utility dips from 0.7 on, and the target is at 0.75."""
    found = nearest(
        lambda c: 0.0 if 0.7 < c < 0.95 else 1.0,
        lambda c: 4.0 if c == 1.0 else 1.0 + 8.0 / 3.0 * c,
        at_least=0.5,
    )
    assert 0.7 - 2**-4 <= found <= 0.7


def test_a_trial_that_lies_on_target_is_not_scaled() -> None:
    """Landed trials are saved on target: one hundredth of the way is within what a level is sure to."""
    forget, looked_at = counted(lambda c: 1.0 + 2.02 * c)
    assert nearest(lambda c: 1.0, forget, at_least=0.5) == 1.0
    assert looked_at == [1.0]


def test_a_trial_that_lands_nowhere_near_is_the_original_model() -> None:
    """Every share that was looked at is far past the target: 0, where nothing is forgotten, is nearer."""
    utility, asked = counted(lambda c: 1.0)
    assert nearest(utility, lambda c: 9.0, at_least=0.5) == 0.0
    assert asked == []


def test_a_trial_that_remembers_more_is_the_original_model() -> None:
    """Its whole difference lies further from the target than nothing at all."""
    assert nearest(lambda c: 1.0, lambda c: 1.0 - 0.5 * c, at_least=0.5) == 0.0


def test_a_level_that_is_not_a_number_is_past_the_target() -> None:
    found = nearest(
        lambda c: 1.0, lambda c: 1.0 + 4.0 * c if c < 0.9 else float("nan"), at_least=0.5
    )
    assert found == 0.5


def test_where_every_share_costs_too_much_nothing_is_left() -> None:
    forget, looked_at = counted(lambda c: 1.0 + 2.0 * c)
    assert nearest(lambda c: 0.0, forget, at_least=0.5) == 0.0
    assert looked_at == [1.0]


@given(
    slope=st.floats(0.1, 50.0),
    power=st.floats(0.3, 3.0),
    allowed=st.floats(0.01, 1.0),
    steps=st.integers(1, 10),
)
@settings(deadline=None)
def test_no_allowed_factor_of_a_fine_grid_is_nearer_by_more_than_the_resolution(
    slope: float, power: float, allowed: float, steps: int
) -> None:
    """Against a naive search of 2,000 factors, for levels and utilities that are monotone."""

    def level_at(c: float) -> float:
        return 1.0 + slope * math.pow(c, power)

    utility, asked = counted(lambda c: 1.0 - c)
    forget, looked_at = counted(level_at)
    found = nearest(utility, forget, at_least=1.0 - allowed, steps=steps)
    assert found <= allowed + 1e-9
    assert max(len(asked), len(looked_at)) <= steps + 1
    grid = [allowed * i / 2000 for i in range(2001)]
    closest = min(abs(level_at(c) - 3.0) for c in grid)
    # what the level can still change in what is left of [0, 1], halved by every second look, or the tolerance
    left = max(2.0 ** -(steps // 2), ON_TARGET * allowed)
    change = max(level_at(min(c + left, 1.0)) - level_at(c) for c in [0.0, *grid])
    assert abs(level_at(found) - 3.0) <= closest + max(change, 2.0 * ON_TARGET) + 1e-6


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
