"""TOFU's metrics: by hand, against naive loops, and what they refuse."""

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.losses import IGNORED
from core.metrics.memorization import answer_nll
from core.metrics.tofu import (
    LOG10_P_FLOOR,
    UTILITY_PARTS,
    forget_quality,
    forget_truth_score,
    model_utility,
    normalised_probability,
    tolerated_distance,
    truth_preference,
    truth_ratio,
    utility_truth_score,
)

Mean = Literal["geometric", "arithmetic"]
MEANS: tuple[Mean, ...] = ("geometric", "arithmetic")

each_mean = pytest.mark.parametrize("mean", MEANS)


def logs(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).log()


# By hand


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        pytest.param("geometric", 0.4, id="geometric"),  # sqrt(0.8 * 0.05) / 0.5
        pytest.param("arithmetic", 0.85, id="arithmetic"),  # ((0.8 + 0.05) / 2) / 0.5
    ],
)
def test_the_ratio_is_wrong_over_right(mean: Mean, expected: float) -> None:
    found = truth_ratio(logs(0.5), logs(0.8, 0.05).unsqueeze(0), mean=mean)
    assert found.tolist() == pytest.approx([expected])


@each_mean
def test_one_wrong_answer_needs_no_mean(mean: Mean) -> None:
    found = truth_ratio(logs(0.5, 0.25), logs(0.25, 0.5).unsqueeze(1), mean=mean)
    assert found.tolist() == pytest.approx([0.5, 2.0])


@each_mean
def test_each_answer_is_normalised_by_its_own_length(mean: Mean) -> None:
    # token probability 1/2 throughout: one right token against wrong answers of 3 and 5 tokens
    def answers(*lengths: int) -> Tensor:
        labels = torch.full((len(lengths), max(lengths) + 1), IGNORED)
        for b, length in enumerate(lengths):
            labels[b, 1 : length + 1] = 0
        return -answer_nll(torch.zeros(*labels.shape, 2), labels)

    found = truth_ratio(answers(1), answers(3, 5).unsqueeze(0), mean=mean)
    assert found.tolist() == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("ratio", "forget", "utility", "preference"),
    [
        pytest.param(0.0, 0.0, 1.0, 1.0, id="certain-of-the-truth"),
        pytest.param(0.25, 0.25, 0.75, 0.8, id="prefers-the-truth"),
        pytest.param(1.0, 1.0, 0.0, 0.5, id="cannot-tell"),
        pytest.param(4.0, 0.25, 0.0, 0.2, id="prefers-the-wrong"),
        pytest.param(math.inf, 0.0, 0.0, 0.0, id="certain-of-the-wrong"),
    ],
)
def test_scores_of_a_ratio(ratio: float, forget: float, utility: float, preference: float) -> None:
    ratios = torch.tensor([ratio])
    assert forget_truth_score(ratios).item() == pytest.approx(forget)
    assert utility_truth_score(ratios).item() == pytest.approx(utility)
    assert truth_preference(ratios).item() == pytest.approx(preference)


def test_normalised_probability_is_the_share_of_the_right_option() -> None:
    found = normalised_probability(logs(0.5, 0.1), torch.stack([logs(0.25, 0.25), logs(0.1, 0.1)]))
    assert found.tolist() == pytest.approx([0.5, 1 / 3])


def test_model_utility_of_equal_parts_is_that_part() -> None:
    assert model_utility(dict.fromkeys(UTILITY_PARTS, 0.4)) == pytest.approx(0.4)


def test_model_utility_is_nine_over_the_sum_of_inverses() -> None:
    parts = {name: (i + 1) / 9 for i, name in enumerate(UTILITY_PARTS)}
    by_hand = 1 / sum(1 / n for n in range(1, 10))
    assert len(UTILITY_PARTS) == 9
    assert model_utility(parts) == pytest.approx(by_hand)
    assert model_utility(dict(reversed(parts.items()))) == pytest.approx(by_hand)


@pytest.mark.parametrize("name", UTILITY_PARTS)
def test_any_part_that_is_zero_makes_model_utility_zero(name: str) -> None:
    assert model_utility(dict.fromkeys(UTILITY_PARTS, 1.0) | {name: 0.0}) == 0.0


@pytest.mark.parametrize(
    ("n_rows", "expected"),
    [
        pytest.param(3, 1.0, id="2-of-20-orders-are-apart"),
        pytest.param(4, 0.75, id="2-of-70-orders-are-apart"),
        pytest.param(400, 0.095, id="below-1.36-times-the-root-of-2-over-n"),
    ],
)
def test_the_distance_that_few_rows_cannot_tell_from_none(n_rows: int, expected: float) -> None:
    assert tolerated_distance(n_rows) == expected


def test_no_rows_tolerate_nothing() -> None:
    with pytest.raises(ValueError, match="n_rows must be at least 1, got 0"):
        tolerated_distance(0)


def test_the_same_ratios_have_full_forget_quality() -> None:
    ratios = torch.tensor([0.2, 0.5, 0.9, 1.3])
    found = forget_quality(ratios, ratios)
    assert (found.statistic, found.p_value, found.log10_p) == (0.0, 1.0, 0.0)


def test_the_statistic_is_the_largest_distance_of_the_distributions() -> None:
    found = forget_quality(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.5, 3.5, 4.5, 5.5]))
    assert found.statistic == pytest.approx(0.5)  # at 2: two of four against none
    assert found.log10_p == pytest.approx(math.log10(found.p_value))


@pytest.mark.parametrize("n", [5, 20, 35, 36, 40, 200, 400, 700])
def test_at_complete_separation_p_depends_on_n_alone_and_its_clipped_log_does_not(n: int) -> None:
    low = torch.linspace(0.0, 1.0, n)
    found = forget_quality(low, low + 2.0)
    log10_floor = math.log10(2) - math.log10(math.comb(2 * n, n))  # two of all orders of 2n ratios
    assert found.statistic == 1.0
    if log10_floor > -300:
        assert found.p_value == pytest.approx(10**log10_floor, rel=1e-6)
    assert found.log10_p == pytest.approx(max(log10_floor, LOG10_P_FLOOR), rel=1e-9)
    assert (found.log10_p == LOG10_P_FLOOR) == (n >= 36)


@pytest.mark.parametrize(
    ("n", "smallest"),
    [pytest.param(40, 0.325, id="forget01"), pytest.param(200, 0.140, id="forget05")],
)
def test_the_smallest_significant_distance_shrinks_with_n(n: int, smallest: float) -> None:
    base = torch.arange(n).double()

    def shifted(distance: float) -> float:
        return forget_quality(base, base + round(distance * n) + 0.5 - 1.0).p_value

    assert shifted(smallest) < 0.05 < shifted(smallest - 1.0 / n)


@pytest.mark.parametrize(("n", "moved"), [(5, 1), (7, 1), (200, 1), (300, 2), (400, 5)])
def test_nearly_equal_ratios_have_full_forget_quality_without_a_warning(n: int, moved: int) -> None:
    ratios = torch.arange(n).double()
    found = forget_quality(ratios, ratios + moved - 0.5)
    assert found.statistic == pytest.approx(moved / n)
    assert found.p_value == pytest.approx(1.0, abs=1e-4)


# Against naive loops


@st.composite
def answers(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Log-probabilities of right and wrong answers."""
    n_rows, n_wrong = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    scale = draw(st.sampled_from([0.1, 1.0, 10.0]))
    return (
        -scale * torch.rand(n_rows, generator=generator),
        -scale * torch.rand(n_rows, n_wrong, generator=generator),
    )


@given(case=answers())
@settings(deadline=None)
def test_ratios_and_shares_equal_a_loop_over_probabilities(case: tuple[Tensor, Tensor]) -> None:
    geometric = truth_ratio(*case, mean="geometric")
    arithmetic = truth_ratio(*case, mean="arithmetic")
    shares = normalised_probability(*case)
    right, wrong = case
    for b in range(len(right)):
        p = math.exp(right[b].item())
        options = [math.exp(x) for x in wrong[b].tolist()]
        n = len(options)
        assert geometric[b].item() == pytest.approx(math.prod(options) ** (1 / n) / p, rel=1e-9)
        assert arithmetic[b].item() == pytest.approx(sum(options) / n / p, rel=1e-9)
        assert shares[b].item() == pytest.approx(p / (p + sum(options)), rel=1e-9)


@given(case=answers())
@settings(deadline=None)
def test_the_geometric_mean_is_never_the_larger_one(case: tuple[Tensor, Tensor]) -> None:
    low, high = (truth_ratio(*case, mean=mean) for mean in MEANS)
    assert bool((low <= high * (1 + 1e-12)).all())


@given(case=answers(), seed=st.integers(0, 1000))
@settings(deadline=None)
def test_the_order_of_rows_and_of_wrong_answers_does_not_matter(
    case: tuple[Tensor, Tensor], seed: int
) -> None:
    right, wrong = case
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(right), generator=generator)
    columns = torch.randperm(wrong.shape[1], generator=generator)
    for mean in MEANS:
        whole = truth_ratio(right, wrong, mean=mean)
        torch.testing.assert_close(
            truth_ratio(right[rows], wrong[rows][:, columns], mean=mean), whole[rows]
        )
    torch.testing.assert_close(
        normalised_probability(right[rows], wrong[rows][:, columns]),
        normalised_probability(right, wrong)[rows],
    )


positive_ratios = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20)


@given(values=positive_ratios)
def test_scores_stay_in_the_unit_interval_and_inversion_leaves_the_forget_score(
    values: list[float],
) -> None:
    ratios = torch.tensor(values, dtype=torch.float64)
    for score in (forget_truth_score, utility_truth_score, truth_preference):
        assert bool(((score(ratios) >= 0) & (score(ratios) <= 1)).all())
    torch.testing.assert_close(forget_truth_score(1 / ratios), forget_truth_score(ratios))
    torch.testing.assert_close(truth_preference(1 / ratios), 1 - truth_preference(ratios))


@given(unlearned=positive_ratios, retain=positive_ratios)
@settings(deadline=None)
def test_the_statistic_equals_a_loop_and_only_the_order_counts(
    unlearned: list[float], retain: list[float]
) -> None:
    a, b = (torch.tensor(v, dtype=torch.float64) for v in (unlearned, retain))
    distances = [
        abs(sum(u <= x for u in unlearned) / len(a) - sum(r <= x for r in retain) / len(b))
        for x in unlearned + retain
    ]
    found = forget_quality(a, b)
    assert found.statistic == pytest.approx(max(distances))
    assert 0.0 < found.p_value <= 1.0
    assert forget_quality(b, a).statistic == pytest.approx(found.statistic)
    assert forget_quality(4 * a, 4 * b) == found


def test_inverting_the_ratios_leaves_forget_quality() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(30, generator=generator) + 0.1, torch.rand(50, generator=generator) + 0.2
    found, inverted = forget_quality(a, b), forget_quality(1 / a, 1 / b)
    assert inverted.statistic == pytest.approx(found.statistic)
    assert inverted.p_value == pytest.approx(found.p_value)


def test_float32_log_probabilities_are_computed_in_float64() -> None:
    right, wrong = torch.tensor([-0.7]), torch.tensor([[-0.3, -2.0]])
    for mean in MEANS:
        assert truth_ratio(right, wrong, mean=mean).dtype == torch.float64
    assert normalised_probability(right, wrong).dtype == torch.float64


@each_mean
def test_a_diverged_model_has_an_infinite_ratio_and_no_nan(mean: Mean) -> None:
    ratios = truth_ratio(torch.tensor([-5e4]), torch.tensor([[-1.0, -2.0]]), mean=mean)
    assert ratios.item() == math.inf
    assert forget_truth_score(ratios).item() == utility_truth_score(ratios).item() == 0.0
    assert normalised_probability(torch.tensor([-5e4]), torch.tensor([[-1.0]])).item() == 0.0
    assert forget_quality(ratios, torch.ones(1)).statistic == 1.0


# Refusals


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        pytest.param([-1.0], [-1.0], r"got \(1,\) and \(1,\)", id="no-column-of-wrong-answers"),
        pytest.param([-1.0], [[-1.0], [-2.0]], r"got \(1,\) and \(2, 1\)", id="other-rows"),
        pytest.param([-1.0], [[]], "needs a wrong answer, got none", id="no-wrong-answer"),
        pytest.param(
            [2.0], [[-1.0]], "right answers must be finite and at most 0, got 2", id="loss"
        ),
        pytest.param([-1.0], [[-1.0, 3.0]], "wrong answers .* got -1.0 to 3.0", id="wrong-loss"),
        pytest.param([math.nan], [[-1.0]], "right answers must be finite", id="nan"),
        pytest.param([-1.0], [[-math.inf]], "wrong answers must be finite", id="infinite"),
    ],
)
def test_what_is_no_log_probability_is_refused(right: Any, wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        truth_ratio(torch.tensor(right), torch.tensor(wrong), mean="geometric")
    with pytest.raises(ValueError, match=message):
        normalised_probability(torch.tensor(right), torch.tensor(wrong))


def test_another_mean_is_refused() -> None:
    other: Any = "harmonic"
    with pytest.raises(ValueError, match="must be geometric or arithmetic, got 'harmonic'"):
        truth_ratio(torch.tensor([-1.0]), torch.tensor([[-1.0]]), mean=other)


@pytest.mark.parametrize("ratio", [-0.5, math.nan])
def test_scores_refuse_what_is_no_ratio(ratio: float) -> None:
    for score in (forget_truth_score, utility_truth_score, truth_preference):
        with pytest.raises(ValueError, match=rf"ratios must not be negative or NaN, got {ratio}"):
            score(torch.tensor([1.0, ratio]))


def test_every_problem_of_the_nine_is_named_at_once() -> None:
    parts = dict.fromkeys(UTILITY_PARTS, 0.5) | {"retain_rouge": -0.1, "forget_rouge": 0.5}
    del parts["world_facts_probability"]
    with pytest.raises(
        ValueError,
        match="world_facts_probability is missing; forget_rouge is unknown; "
        r"retain_rouge must lie in \[0, 1\], got -0.1",
    ):
        model_utility(parts)


@pytest.mark.parametrize("value", [math.nan, math.inf, 62.0])
def test_a_part_that_is_no_share_is_refused(value: float) -> None:
    parts = dict.fromkeys(UTILITY_PARTS, 0.5) | {"retain_rouge": value}
    with pytest.raises(ValueError, match=rf"retain_rouge must lie in \[0, 1\], got {value}"):
        model_utility(parts)


def test_forget_quality_refuses_empty_sets_and_nan() -> None:
    good = torch.ones(3)
    with pytest.raises(
        ValueError, match=r"unlearned_ratios must be \(n,\) with n >= 1, got \(0,\)"
    ):
        forget_quality(torch.ones(0), good)
    with pytest.raises(ValueError, match=r"retain_only_ratios must be \(n,\).*got \(3, 1\)"):
        forget_quality(good, good.unsqueeze(1))
    with pytest.raises(ValueError, match="retain_only_ratios must not be negative or NaN, got nan"):
        forget_quality(good, torch.tensor([1.0, math.nan]))
