"""Composite scores: by hand, their ends, and what they refuse."""

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.metrics.composites import (
    ATTACKS,
    aggregate_score,
    auc_closeness,
    harmonic_mean,
    memorization_score,
    ngram_entropy,
    privacy_score,
    relative_difference,
    utility_score,
)

shares = st.floats(0.0, 1.0)
KEPT: dict[str, float] = {"initial_model_utility": 0.6, "initial_fluency": 5.0}


def evenly(auc: float) -> dict[str, float]:
    return dict.fromkeys(ATTACKS, auc)


# By hand


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([0.5], 0.5, id="one"),
        pytest.param([1.0, 1.0], 1.0, id="ones"),
        pytest.param([1.0, 0.5], 2 / 3, id="two"),
        pytest.param([1.0, 0.5, 0.25], 3 / 7, id="three"),
        pytest.param([40.0, 60.0], 48.0, id="there-and-back"),
        pytest.param([0.9, 0.0, 0.9], 0.0, id="a-zero"),
        pytest.param([1.0, 5e-324], 0.0, id="next-to-zero"),
    ],
)
def test_the_harmonic_mean_is_n_over_the_sum_of_inverses(
    values: list[float], expected: float
) -> None:
    assert harmonic_mean(values) == pytest.approx(expected)


def test_memorisation_is_the_harmonic_mean_of_four_complements() -> None:
    found = memorization_score(
        extraction_strength=0.0,
        exact_memorization=0.5,
        paraphrase_probability=0.75,
        truth_ratio=0.875,
    )
    assert found == pytest.approx(4 / (1 + 2 + 4 + 8))


def test_one_metric_that_sees_the_forget_set_whole_makes_memorisation_zero() -> None:
    parts = ("extraction_strength", "exact_memorization", "paraphrase_probability", "truth_ratio")
    for part in parts:
        assert memorization_score(**dict.fromkeys(parts, 0.1) | {part: 1.0}) == 0.0


@pytest.mark.parametrize(
    ("unlearned", "retain", "expected"),
    [
        pytest.param(0.4, 0.4, 1.0, id="as-the-retain-model"),
        pytest.param(1.0, 0.4, 0.0, id="memorised"),
        pytest.param(0.0, 0.4, 0.0, id="over-unlearned"),
        pytest.param(0.7, 0.4, 0.5, id="half-way-up"),
        pytest.param(0.1, 0.4, 0.25, id="three-quarters-down"),
        pytest.param(1.0, 1.0, 1.0, id="both-at-the-top"),
        pytest.param(0.0, 0.0, 1.0, id="both-at-the-bottom"),
        pytest.param(0.5, 1.0, 0.5, id="below-a-retain-model-at-the-top"),
        pytest.param(0.5, 0.0, 0.5, id="above-a-retain-model-at-the-bottom"),
    ],
)
def test_closeness_falls_to_zero_on_either_side(
    unlearned: float, retain: float, expected: float
) -> None:
    assert auc_closeness(unlearned, retain) == pytest.approx(expected)


def test_privacy_is_the_harmonic_mean_over_the_attacks() -> None:
    unlearned = {"loss": 0.5, "zlib": 0.75, "min_k": 0.25, "min_k_plus_plus": 0.875}
    assert privacy_score(unlearned, evenly(0.5)) == pytest.approx(4 / (1 + 2 + 2 + 4))
    assert privacy_score(evenly(0.5) | {"zlib": 0.0}, evenly(0.5)) == 0.0
    assert privacy_score(unlearned, unlearned) == 1.0


@pytest.mark.parametrize(
    ("utility", "fluency", "expected"),
    [
        pytest.param(0.6, 5.0, 1.0, id="as-before"),
        pytest.param(0.3, 5.0, 2 / 3, id="half-the-utility"),
        pytest.param(0.6, 2.5, 2 / 3, id="half-the-fluency"),
        pytest.param(0.9, 2.5, 2 / 3, id="a-gain-makes-up-for-nothing"),
        pytest.param(0.6, 0.0, 0.0, id="gibberish"),
    ],
)
def test_utility_is_relative_to_the_initial_model(
    utility: float, fluency: float, expected: float
) -> None:
    found = utility_score(model_utility=utility, fluency=fluency, **KEPT)
    assert found == pytest.approx(expected)


def test_the_unit_of_fluency_does_not_matter() -> None:
    bits = utility_score(
        model_utility=0.5, fluency=4.0, initial_model_utility=0.6, initial_fluency=5.0
    )
    nats = utility_score(
        model_utility=0.5, fluency=2.8, initial_model_utility=0.6, initial_fluency=3.5
    )
    assert bits == pytest.approx(nats)


@pytest.mark.parametrize(
    ("memorization", "privacy", "utility", "published"),
    [
        pytest.param(0.31, 1.0, 0.99, 0.58, id="retain-model"),
        pytest.param(0.32, 0.63, 1.0, 0.53, id="simnpo"),
        pytest.param(0.47, 0.50, 0.61, 0.52, id="rmu"),
        pytest.param(0.27, 0.48, 0.78, 0.42, id="undial"),
        pytest.param(0.63, 0.06, 0.95, 0.15, id="altpo"),
        pytest.param(0.08, 0.17, 0.93, 0.15, id="idk-nll"),
        pytest.param(0.97, 3e-3, 0.79, 9e-3, id="grad-diff"),
    ],
)
def test_the_aggregate_is_that_of_the_published_table(
    memorization: float, privacy: float, utility: float, published: float
) -> None:
    found = aggregate_score(memorization=memorization, privacy=privacy, utility=utility)
    assert found == pytest.approx(published, abs=0.012)  # the table rounds its parts to 0.01
    assert found == pytest.approx(3 / (1 / memorization + 1 / privacy + 1 / utility))


@pytest.mark.parametrize(
    ("memorization", "utility", "published"),
    [
        pytest.param(0.97, 0.79, 0.87, id="grad-diff"),
        pytest.param(0.63, 0.95, 0.76, id="altpo"),
        pytest.param(0.32, 1.0, 0.49, id="simnpo"),
    ],
)
def test_without_privacy_the_aggregate_is_that_of_the_other_published_table(
    memorization: float, utility: float, published: float
) -> None:
    assert harmonic_mean([memorization, utility]) == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize(
    ("value", "reference", "expected"),
    [
        pytest.param(0.5, 0.5, 0.0, id="equal"),
        pytest.param(0.75, 0.5, 50.0, id="above"),
        pytest.param(0.0, 0.5, -100.0, id="nothing"),
    ],
)
def test_the_relative_difference_is_in_per_cent_of_the_reference(
    value: float, reference: float, expected: float
) -> None:
    assert relative_difference(value, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("a b c d", (2 / 3 * math.log2(3) + 4 / 3 * 1.0) / 2, id="nothing-twice"),
        pytest.param("a a a a a", 0.0, id="one-word"),
        pytest.param("a b a b a", (2 / 3 + 4 / 3 * 0.918295834) / 2, id="a-loop"),  # trigrams 2 : 1
        pytest.param("a b", 0.0, id="one-bigram"),
        pytest.param("a b c", 1 / 3, id="two-bigrams-and-one-trigram"),
        pytest.param("a", 0.0, id="no-bigram"),
        pytest.param("", 0.0, id="nothing"),
    ],
)
def test_fluency_weighs_bigrams_by_two_thirds_and_trigrams_by_four_thirds(
    text: str, expected: float
) -> None:
    assert ngram_entropy(text.split()) == pytest.approx(expected)


def test_fluency_of_token_ids_is_that_of_words() -> None:
    words = ["the", "lamp", "by", "the", "green", "lamp", "by", "the", "sea"]
    ids = [sorted(set(words)).index(word) for word in words]
    assert ngram_entropy(ids) == pytest.approx(ngram_entropy(words))


# Properties


@given(values=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12))
def test_the_harmonic_mean_lies_between_the_smallest_and_the_arithmetic_mean(
    values: list[float],
) -> None:
    found = harmonic_mean(values)
    assert min(values) * (1 - 1e-12) <= found <= sum(values) / len(values) * (1 + 1e-12)
    assert found <= len(values) * min(values) * (1 + 1e-12)
    assert harmonic_mean(values[::-1]) == pytest.approx(found)
    assert harmonic_mean([2 * v for v in values]) == pytest.approx(2 * found)


@given(unlearned=shares, other=shares, retain=shares)
def test_closeness_stays_in_the_unit_interval_and_falls_with_distance(
    unlearned: float, other: float, retain: float
) -> None:
    near, far = sorted((unlearned, other), key=lambda a: abs(a - retain))
    assert 0.0 <= auc_closeness(far, retain) <= 1.0
    if (near - retain) * (far - retain) > 0:
        assert auc_closeness(near, retain) >= auc_closeness(far, retain)


@given(unlearned=shares, retain=shares)
def test_closeness_does_not_know_which_side_is_up(unlearned: float, retain: float) -> None:
    mirrored = auc_closeness(1.0 - unlearned, 1.0 - retain)
    if min(retain, 1 - retain) > 1e-6:
        assert mirrored == pytest.approx(auc_closeness(unlearned, retain), abs=1e-6)


@given(es=shares, em=shares, probability=shares, ratio=shares)
def test_memorisation_stays_in_the_unit_interval(
    es: float, em: float, probability: float, ratio: float
) -> None:
    found = memorization_score(
        extraction_strength=es,
        exact_memorization=em,
        paraphrase_probability=probability,
        truth_ratio=ratio,
    )
    assert 0.0 <= found <= 1.0


@given(tokens=st.lists(st.integers(0, 3), max_size=30))
def test_fluency_equals_a_loop_and_is_bounded_by_the_length(tokens: list[int]) -> None:
    total = 0.0
    for n, weight in ((2, 2 / 3), (3, 4 / 3)):
        grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
        for gram, count in Counter(grams).items():
            assert gram in grams
            total -= weight * count / len(grams) * math.log2(count / len(grams))
    found = ngram_entropy(tokens)
    assert found == pytest.approx(total / 2, abs=1e-12)
    assert 0.0 <= found <= math.log2(max(1, len(tokens) - 1)) + 1e-12
    assert ngram_entropy([t + 7 for t in tokens]) == pytest.approx(found)


# Refusals


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param([], "at least one value, got none", id="none"),
        pytest.param([0.5, -0.1], r"finite and not negative, got \[-0\.1\]", id="negative"),
        pytest.param([math.nan, 0.0], r"finite and not negative, got \[nan\]", id="nan"),
        pytest.param([math.inf], r"finite and not negative, got \[inf\]", id="infinite"),
    ],
)
def test_the_harmonic_mean_refuses(values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        harmonic_mean(values)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_parts_outside_the_unit_interval_are_refused_by_name(value: float) -> None:
    with pytest.raises(ValueError, match=rf"must lie in \[0, 1\], got exact_memorization={value}$"):
        memorization_score(
            extraction_strength=0.1,
            exact_memorization=value,
            paraphrase_probability=0.1,
            truth_ratio=0.1,
        )
    with pytest.raises(ValueError, match=rf"got memorization={value}, utility={value}$"):
        aggregate_score(memorization=value, privacy=0.5, utility=value)
    with pytest.raises(ValueError, match=rf"got auc_unlearned={value}$"):
        auc_closeness(value, 0.5)


def test_a_missing_or_unknown_attack_is_refused() -> None:
    names = "loss, zlib, min_k, min_k_plus_plus"
    with pytest.raises(ValueError, match=f"auc_unlearned must hold {names}, got loss$"):
        privacy_score({"loss": 0.5}, evenly(0.5))
    with pytest.raises(ValueError, match=f"auc_retain must hold {names}, got {names}, reference$"):
        privacy_score(evenly(0.5), evenly(0.5) | {"reference": 0.5})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"fluency": -1.0}, "^fluency must be finite and not negative", id="negative"),
        pytest.param({"model_utility": math.nan}, "^model_utility must be finite", id="nan"),
        pytest.param(
            {"initial_fluency": 0.0}, r"initial_fluency must be .* positive, got 0\.0", id="zero"
        ),
        pytest.param(
            {"initial_model_utility": math.inf}, "initial_model_utility must be", id="infinite"
        ),
    ],
)
def test_utility_refuses_what_cannot_be_compared(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        utility_score(**{"model_utility": 0.5, "fluency": 4.0, **KEPT} | change)


def test_a_relative_difference_needs_finite_numbers_and_a_positive_reference() -> None:
    with pytest.raises(ValueError, match=r"reference must be positive, got 0\.0"):
        relative_difference(0.5, 0.0)
    with pytest.raises(ValueError, match=r"must be finite, got nan and 0\.5"):
        relative_difference(math.nan, 0.5)


def test_a_string_is_no_list_of_words() -> None:
    with pytest.raises(TypeError, match="must be words or token ids, got the string 'river stone'"):
        ngram_entropy("river stone")
