"""Memorisation metrics: by hand, against naive loops, blind to padding and order."""

import math
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.losses import IGNORED
from core.metrics.memorization import (
    answer_nll,
    answer_probability,
    cut_generation,
    exact_memorization,
    extraction_likelihood,
    extraction_strength,
    memorization_accuracy,
    rouge_1_recall,
    rouge_l,
    without_last_label,
)

Metric = Callable[[Tensor, Tensor], Tensor]

METRICS: Mapping[str, Metric] = {
    "memorization_accuracy": memorization_accuracy,
    "exact_memorization": exact_memorization,
    "extraction_strength": extraction_strength,
    "answer_nll": answer_nll,
    "answer_probability": answer_probability,
}

each_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())


def predicting(choices: Sequence[int], labels: Sequence[int], *, vocabulary: int = 5) -> Tensor:
    """Logits ``(1, T, V)`` whose greedy choice for the token at ``t >= 1`` is ``choices[t]``."""
    assert len(choices) == len(labels)
    logits = torch.zeros(1, len(labels), vocabulary)
    for t, choice in enumerate(choices[1:], start=1):
        logits[0, t - 1, choice] = 1.0
    return logits


def random_case(seed: int, *, rows: int = 4, length: int = 9) -> tuple[Tensor, Tensor]:
    """Logits and labels; every row has a prompt and an answer of its own length, and some right choices."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, 7, generator=generator) * 2
    labels = torch.randint(0, 7, (rows, length), generator=generator)
    known = torch.rand(rows, length, generator=generator) < 0.6
    choices = logits[:, :-1].argmax(dim=-1)
    labels[:, 1:] = torch.where(known[:, 1:], choices, labels[:, 1:])
    for row in range(rows):
        start = int(torch.randint(0, 4, (), generator=generator))
        end = int(torch.randint(start + 2, length + 1, (), generator=generator))
        labels[row, :start] = IGNORED
        labels[row, end:] = IGNORED
    return logits, labels


seeds = st.integers(0, 2**31 - 1)


# By hand


@pytest.mark.parametrize(
    ("choices", "share", "strength"),
    [
        pytest.param([1, 2, 3, 4], 1.0, 1.0, id="all-known"),
        pytest.param([0, 2, 3, 4], 0.75, 0.75, id="first-must-be-given"),
        pytest.param([1, 0, 3, 4], 0.75, 0.5, id="two-must-be-given"),
        pytest.param([0, 0, 0, 4], 0.25, 0.25, id="only-the-last-known"),
        pytest.param([1, 2, 3, 0], 0.75, 0.0, id="last-unknown"),
        pytest.param([0, 0, 0, 0], 0.0, 0.0, id="nothing-known"),
    ],
)
def test_share_and_strength_of_an_answer(choices: list[int], share: float, strength: float) -> None:
    labels = [IGNORED, IGNORED, 1, 2, 3, 4]
    logits = predicting([0, 0, *choices], labels)
    target = torch.tensor([labels])
    assert memorization_accuracy(logits, target).tolist() == [share]
    assert exact_memorization(logits, target).tolist() == [share]
    assert extraction_strength(logits, target).tolist() == [strength]


def test_of_tied_logits_the_first_token_is_the_choice() -> None:
    logits = torch.zeros(1, 2, 3)
    assert memorization_accuracy(logits, torch.tensor([[IGNORED, 0]])).item() == 1.0
    assert memorization_accuracy(logits, torch.tensor([[IGNORED, 1]])).item() == 0.0


def test_probability_is_the_geometric_mean_of_the_token_probabilities() -> None:
    logits = torch.zeros(1, 3, 2)
    logits[0, 0] = torch.tensor([0.9, 0.1]).log()
    logits[0, 1] = torch.tensor([0.6, 0.4]).log()
    labels = torch.tensor([[IGNORED, 0, 1]])
    assert answer_probability(logits, labels).item() == pytest.approx(math.sqrt(0.9 * 0.4))
    assert answer_nll(logits, labels).item() == pytest.approx(-math.log(0.9 * 0.4) / 2)


def test_a_uniform_model_has_probability_one_over_vocabulary_at_every_length() -> None:
    logits = torch.zeros(2, 6, 8)
    labels = torch.tensor([[IGNORED, 1, IGNORED, IGNORED, IGNORED, IGNORED], [1, 2, 3, 4, 5, 6]])
    torch.testing.assert_close(answer_probability(logits, labels), torch.full((2,), 1 / 8))


def test_rows_are_means_of_their_own_tokens() -> None:
    short, long = [IGNORED, 1, IGNORED, IGNORED, IGNORED], [IGNORED, 1, 2, 3, 4]
    logits = torch.cat([predicting([0, 0, 0, 0, 0], short), predicting([0, 1, 2, 3, 0], long)])
    labels = torch.tensor([short, long])
    assert memorization_accuracy(logits, labels).tolist() == [0.0, 0.75]


@each_metric
def test_a_row_without_counted_tokens_is_nan_and_leaves_the_others(metric: Metric) -> None:
    logits, labels = random_case(3)
    alone = metric(logits, labels)
    labels[1] = IGNORED
    labels[1, 0] = 2  # the first token is predicted by nothing
    found = metric(logits, labels)
    assert math.isnan(found[1])
    torch.testing.assert_close(found[[0, 2, 3]], alone[[0, 2, 3]], rtol=0, atol=0)


def test_without_last_label_drops_one_counted_token_of_each_row() -> None:
    labels = torch.tensor(
        [
            [IGNORED, 1, 2, 3, IGNORED],
            [4, 1, IGNORED, IGNORED, IGNORED],
            [IGNORED, 1, IGNORED, 3, IGNORED],
            [IGNORED] * 5,
        ]
    )
    before = labels.clone()
    assert without_last_label(labels).tolist() == [
        [IGNORED, 1, 2, IGNORED, IGNORED],
        [4, IGNORED, IGNORED, IGNORED, IGNORED],
        [IGNORED, 1, IGNORED, IGNORED, IGNORED],
        [IGNORED] * 5,
    ]
    assert torch.equal(labels, before)


# Against naive loops


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_each_metric_agrees_with_a_loop_over_tokens(seed: int) -> None:
    logits, labels = random_case(seed)
    for row in range(len(labels)):
        pairs = [
            (logits[row, t - 1].double(), int(labels[row, t]))
            for t in range(1, labels.shape[1])
            if labels[row, t] != IGNORED
        ]
        right = [int(x.argmax()) == y for x, y in pairs]
        nll = sum(float(x.logsumexp(0) - x[y]) for x, y in pairs) / len(pairs)
        given_away = next(k for k in range(len(pairs) + 1) if all(right[k:]))
        one = (logits[row : row + 1], labels[row : row + 1])
        assert memorization_accuracy(*one).item() == pytest.approx(sum(right) / len(pairs))
        assert extraction_strength(*one).item() == pytest.approx(1 - given_away / len(pairs))
        assert answer_nll(*one).item() == pytest.approx(nll, abs=1e-5)
        assert answer_probability(*one).item() == pytest.approx(math.exp(-nll), abs=1e-6)


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_strength_never_exceeds_the_share_of_known_tokens(seed: int) -> None:
    case = random_case(seed)
    strength, share = extraction_strength(*case), exact_memorization(*case)
    assert bool((strength <= share + 1e-6).all())
    assert bool(((strength >= 0) & (share <= 1)).all())


# Blind to what does not count


@each_metric
@given(seed=seeds, left=st.integers(0, 3), right=st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_padding_on_either_side_changes_nothing(
    metric: Metric, seed: int, left: int, right: int
) -> None:
    logits, labels = random_case(seed)
    labels[:, 0] = IGNORED
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randn(4, n, 7, generator=generator) * 9 for n in (left, right)]
    padded = torch.cat([noise[0], logits, noise[1]], dim=1)
    ignored = [torch.full((4, n), IGNORED) for n in (left, right)]
    found = metric(padded, torch.cat([ignored[0], labels, ignored[1]], dim=1))
    torch.testing.assert_close(found, metric(logits, labels), equal_nan=True)


@each_metric
@given(seed=seeds)
@settings(max_examples=15, deadline=None)
def test_rows_do_not_depend_on_each_other(metric: Metric, seed: int) -> None:
    logits, labels = random_case(seed)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    together = metric(logits, labels)
    torch.testing.assert_close(
        metric(logits[order], labels[order]), together[order], rtol=0, atol=0
    )
    for row in range(4):
        alone = metric(logits[row : row + 1], labels[row : row + 1])
        torch.testing.assert_close(alone, together[row : row + 1])


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_bf16_logits_move_the_likelihood_by_no_more_than_their_rounding(seed: int) -> None:
    logits, labels = random_case(seed)
    rounding = 2**-8 * float(
        logits.abs().max()
    )  # of one logit; the sum over the others moves as much
    exact, rounded = answer_nll(logits, labels), answer_nll(logits.bfloat16(), labels)
    assert rounded.dtype == torch.float32
    assert float((exact - rounded).abs().max()) <= 2 * rounding
    ratio = answer_probability(logits.bfloat16(), labels) / answer_probability(logits, labels)
    assert float(ratio.log().abs().max()) <= 2 * rounding + 1e-6


def test_bf16_logits_leave_choices_alone_that_are_further_apart_than_their_rounding() -> None:
    labels = [IGNORED, 1, 2, 3, 4]
    logits = predicting([0, 1, 0, 3, 4], labels) + 7.0  # 7 against 8: two bf16 steps are 0.0625
    target = torch.tensor([labels])
    for metric in (memorization_accuracy, extraction_strength):
        assert torch.equal(metric(logits.bfloat16(), target), metric(logits, target))


# Extraction likelihood


def cut_suffixes(truth: Sequence[int]) -> list[list[int]]:
    return [list(truth[i:]) for i in range(1, len(truth))]


def test_a_text_that_continues_itself_has_likelihood_one() -> None:
    truth = [3, 1, 4, 1, 5, 9, 2, 6]
    for n in (1, 2, 5, 7):
        assert extraction_likelihood(cut_suffixes(truth), truth, n=n) == 1.0


def test_a_text_whose_ngrams_never_come_out_has_likelihood_zero() -> None:
    truth = [1, 2, 3, 4, 5]
    generated = [[9] * (5 - i) for i in range(1, 5)]
    assert extraction_likelihood(generated, truth, n=1) == 0.0


def test_likelihood_is_the_mean_over_prefixes_of_the_share_of_ngrams() -> None:
    truth = [1, 2, 3, 4, 5]
    generated = [[2, 3, 9, 9], [3, 4, 5], [9, 9], [9]]
    # prefix 1: (2, 3) of 3 pairs; prefix 2: both pairs; prefix 3: none; prefix 4 has no pair
    assert extraction_likelihood(generated, truth, n=2) == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert extraction_likelihood(generated[:3], truth, n=2) == pytest.approx((1 / 3 + 1 + 0) / 3)


def test_repeated_ngrams_of_the_continuation_all_count() -> None:
    truth = [0, 1, 1, 2]
    assert extraction_likelihood([[1, 1, 1]], truth, n=3) == 0.0
    assert extraction_likelihood([[1, 1, 1], [1, 1]], truth, n=2) == pytest.approx((2 / 2 + 0) / 2)


def test_ngrams_of_the_prefix_are_not_of_the_suffix() -> None:
    truth = [7, 8, 1, 2]
    generated = [[7, 8, 0], [7, 8]]
    assert extraction_likelihood(generated, truth, n=2) == 0.0


def test_a_continuation_that_ends_early_contributes_what_it_has() -> None:
    truth = [1, 2, 3, 4]
    assert extraction_likelihood([[2, 3], []], truth, n=2) == pytest.approx((1 / 2 + 0) / 2)


@given(
    st.lists(st.integers(0, 3), min_size=5, max_size=14).flatmap(
        lambda truth: st.tuples(
            st.just(truth),
            st.tuples(
                *[
                    st.lists(st.integers(0, 3), min_size=len(truth) - i, max_size=len(truth) - i)
                    for i in range(1, len(truth))
                ]
            ),
        )
    ),
    st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_likelihood_agrees_with_a_loop_over_all_prefixes(
    case: tuple[list[int], tuple[list[int], ...]], n: int
) -> None:
    truth, generated = case
    total = 0.0
    for i in range(1, len(truth)):
        suffix, continuation = truth[i:], generated[i - 1]
        windows = range(len(suffix) - n + 1)
        hits = 0
        for k in windows:
            hits += any(continuation[k : k + n] == suffix[m : m + n] for m in windows)
        total += hits / len(windows) if windows else 0.0
    found = extraction_likelihood(generated, truth, n=n)
    assert found == pytest.approx(total / (len(truth) - n))
    assert 0.0 <= found <= 1.0


# ROUGE


@pytest.mark.parametrize(
    ("prediction", "recall", "f1", "words"),
    [
        pytest.param("the cat sat", 1.0, 1.0, 1.0, id="identical"),
        pytest.param("The cat, sat!", 1.0, 1.0, 1.0, id="case-and-punctuation"),
        pytest.param("the cats sat", 1.0, 1.0, 1.0, id="stems"),
        pytest.param("sat cat the", 1 / 3, 1 / 3, 1.0, id="order"),
        pytest.param("the cat", 2 / 3, 0.8, 2 / 3, id="shorter"),
        pytest.param("on a mat the cat sat", 1.0, 2 / 3, 1.0, id="longer"),
        pytest.param("", 0.0, 0.0, 0.0, id="empty"),
    ],
)
def test_rouge_of_three_words(prediction: str, recall: float, f1: float, words: float) -> None:
    score = rouge_l(prediction, "the cat sat")
    assert (score.recall, score.f1) == pytest.approx((recall, f1))
    assert rouge_1_recall(prediction, "the cat sat") == pytest.approx(words)


def test_rouge_against_a_text_without_words_is_zero() -> None:
    assert rouge_l("the cat", "...").recall == 0.0
    assert rouge_1_recall("the cat", "") == 0.0


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        pytest.param(" Oslo. ", (), "Oslo.", id="nothing-to-cut"),
        pytest.param("Oslo.<end>Q: more", ("<end>",), "Oslo.", id="end-of-text"),
        pytest.param("a b c d", ("d", "b"), "a", id="the-first-stop-in-the-text"),
        pytest.param("Oslo\n\nQ", ("\n\n", "Question"), "Oslo", id="blank-line"),
        pytest.param("unstoppable", ("stop",), "un", id="inside-a-word"),
    ],
)
def test_a_generation_is_cut_at_its_first_stop(
    text: str, stops: tuple[str, ...], expected: str
) -> None:
    assert cut_generation(text, stops=stops) == expected


# Refusals


@each_metric
def test_a_batch_in_which_nothing_counts_is_refused(metric: Metric) -> None:
    with pytest.raises(ValueError, match="no token counts"):
        metric(torch.zeros(2, 3, 4), torch.full((2, 3), IGNORED))


@each_metric
def test_shapes_that_disagree_are_refused(metric: Metric) -> None:
    with pytest.raises(ValueError, match=r"must agree, got \(1, 3, 4\) and \(1, 2\)"):
        metric(torch.zeros(1, 3, 4), torch.zeros(1, 2, dtype=torch.long))


@pytest.mark.parametrize(
    ("generated", "n", "message"),
    [
        pytest.param([[2, 3], [3]], 0, "n must be at least 1, got 0", id="n"),
        pytest.param([[2, 3], [3]], 3, r"longer than n=3 tokens, got 3", id="short-text"),
        pytest.param([[2, 3]], 1, "continuations of 2 prefixes, got 1", id="missing"),
        pytest.param([[2, 3], [3, 4]], 1, "of 2 tokens must have at most 1, got 2", id="too-long"),
    ],
)
def test_continuations_that_do_not_fit_are_refused(
    generated: list[list[int]], n: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        extraction_likelihood(generated, [1, 2, 3], n=n)


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stops must not be empty strings, got \['a', ''\]"):
        cut_generation("text", stops=("a", ""))
