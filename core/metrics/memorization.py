"""How much of a text a model knows by heart: teacher-forced, generated, and as overlap of words.

Every tensor metric is one number per row; the caller averages rows, so that a long row weighs as much as
a short one. A row in which no token counts has NaN.

Shapes: B rows, T tokens, V vocabulary, N counted tokens of the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from unicodedata import normalize

import torch
from torch import Tensor

from core.losses import IGNORED, align, counted_tokens, token_nll
from core.losses.alignment import predicted_positions
from core.text.words import is_latin, words


@dataclass(frozen=True, kw_only=True)
class RougeL:
    """Longest common subsequence of words, as a share of the reference's words and as F1."""

    recall: float
    f1: float


def memorization_accuracy(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    r"""Share of a row's tokens that the model would choose itself, given the true prefix (MA).

    .. math::
        \mathrm{MA}(x) = \frac{1}{N_b} \sum_t \mathbb{1}\bigl[\arg\max_v p_\theta(v \mid x_{<t}) = x_t\bigr]

    Lies in ``[0, 1]``: 1 when the row is known by heart token by token, 0 when no greedy choice is right.
    Of tied logits the first counts as the choice.

    Args:
        logits_BTV: Float ``(B, T, V)``.
        labels_BT: Int64 ``(B, T)``; ``-100`` on what does not count. Jang et al. count every token but
            the first: labels are the token ids.

    Returns:
        Float32 ``(B,)``; mean over the row's own ``N_b`` counted tokens, NaN where there is none.

    Raises:
        ValueError: If shapes disagree, no token of the batch counts, or a label lies outside the
            vocabulary.

    References:
        Tirumala et al., "Memorization Without Overfitting", NeurIPS 2022; Jang et al., "Knowledge
        Unlearning for Mitigating Privacy Risks in Language Models", ACL 2023.
    """
    return _row_means(_is_greedy(logits_BTV, labels_BT).float(), labels_BT)


def exact_memorization(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    r"""Share of an answer's tokens that the model would choose itself, given the true prefix (EM).

    .. math::
        \mathrm{EM}(y \mid x) = \frac{1}{|y|} \sum_k
            \mathbb{1}\bigl[\arg\max_v p_\theta(v \mid x, y_{<k}) = y_k\bigr]

    The same number as :func:`memorization_accuracy`; the name is for labels that hold an answer to a
    prompt, not a whole text.

    Args:
        logits_BTV: Float ``(B, T, V)``.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.

    Returns:
        Float32 ``(B,)`` in ``[0, 1]``; mean over the answer tokens of the row, NaN where there is none.

    Raises:
        ValueError: As :func:`memorization_accuracy`.

    References:
        OpenUnlearning (arXiv 2506.12618), ``exact_memorization``. Deviation: every label counts; theirs
        drops the last one, the end of text. With labels of :func:`without_last_label` the two agree.
    """
    return memorization_accuracy(logits_BTV, labels_BT)


def extraction_strength(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    r"""Share of an answer that need not be given away for the model to complete the rest (ES).

    .. math::
        \mathrm{ES}(y \mid x) = 1 - \frac{1}{|y|} \min\bigl\{k \ge 0 :
            \arg\max_v p_\theta(v \mid x, y_{<j}) = y_j \text{ for all } j \ge k\bigr\}

    Lies in ``[0, 1]``: 1 when the prompt alone brings out the whole answer, 0 when even the last token
    is wrong. Teacher forcing is exact here: as long as every choice is right, the greedy continuation
    is the true one.

    Args:
        logits_BTV: Float ``(B, T, V)``.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding. Counted tokens need not be
            contiguous.

    Returns:
        Float32 ``(B,)``; NaN where no token counts.

    Raises:
        ValueError: As :func:`memorization_accuracy`.

    References:
        Carlini et al., "Extracting Training Data from Large Language Models", USENIX Security 2021;
        OpenUnlearning (arXiv 2506.12618), ``extraction_strength``. Deviations from its code: every label
        counts (theirs drops the last one, see :func:`without_last_label`); a row whose last token is
        wrong has 0 (theirs ``1 / |y|``, as if it were right); a row without counted tokens is NaN (theirs
        is 0 and enters the mean).
    """
    counted_BT = counted_tokens(labels_BT)
    is_wrong_BT = torch.zeros_like(counted_BT)
    is_wrong_BT[counted_BT] = ~_is_greedy(logits_BTV, labels_BT)
    given_B = (counted_BT.cumsum(dim=1) * is_wrong_BT).amax(dim=1)  # up to the last wrong token
    return 1.0 - given_B.float() / counted_BT.sum(dim=1)


def answer_nll(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Mean negative log-likelihood of each row, nats per token.

    Args:
        logits_BTV: Float ``(B, T, V)``.
        labels_BT: Int64 ``(B, T)``; ``-100`` on what does not count.

    Returns:
        Float32 ``(B,)``, not negative; mean over the row's own counted tokens, NaN where there is none.
        The perplexity of Yao et al. is ``exp`` of the mean over rows, so a mean of per-row means, where
        :class:`core.metrics.probes.Level` pools the tokens of all rows.

    Raises:
        ValueError: As :func:`memorization_accuracy`.
    """
    return _row_means(token_nll(logits_BTV, labels_BT), labels_BT)


def answer_probability(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    r"""Probability of an answer, normalised by its length.

    .. math::
        p_\theta(y \mid x)^{1/|y|} = \exp\Bigl(\frac{1}{|y|} \sum_k \log p_\theta(y_k \mid x, y_{<k})\Bigr)

    Lies in ``[0, 1]``: the geometric mean of the token probabilities.

    Args:
        logits_BTV: Float ``(B, T, V)``.
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.

    Returns:
        Float32 ``(B,)``; NaN where no token counts.

    Raises:
        ValueError: As :func:`memorization_accuracy`.

    References:
        Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", COLM 2024.
    """
    return torch.exp(-answer_nll(logits_BTV, labels_BT))


def without_last_label(labels_BT: Tensor) -> Tensor:
    """Labels in which the last counted token of each row does not count.

    OpenUnlearning's EM and ES leave that token, the end of text, out; its probability does not.

    Args:
        labels_BT: Int64 ``(B, T)``; ``-100`` on prompt and padding.

    Returns:
        Int64 ``(B, T)``, a copy; a row with one counted token keeps none.
    """
    counted_BT = predicted_positions(labels_BT)
    rank_BT = counted_BT.cumsum(dim=1)
    return labels_BT.masked_fill(counted_BT & (rank_BT == rank_BT[:, -1:]), IGNORED)


def extraction_likelihood(
    generated: Sequence[Sequence[int]], truth: Sequence[int], *, n: int
) -> float:
    r"""How much of a text's n-grams come out when the model continues its prefixes (EL_n).

    .. math::
        \mathrm{EL}_n(x) = \frac{1}{T - n} \sum_{i=1}^{T-n} \frac{1}{T - i - n + 1}
            \sum_{c \in \mathrm{ng}_n(f(x_{<i}))} \mathbb{1}\bigl[c \in \mathrm{ng}_n(x_{\ge i})\bigr]

    Lies in ``[0, 1]``: 1 when every prefix is continued by n-grams of the true suffix, 0 when no n-gram
    of it comes out. The sum over ``c`` counts repetitions, the true suffix is a set: a loop over one true
    n-gram scores fully.

    Args:
        generated: ``generated[i - 1]`` is the greedy continuation of ``truth[:i]`` up to length T, as
            :func:`core.model.decoding.suffix_continuations` gives it; at least the first ``T - n``, since
            the suffixes of later prefixes hold no n-gram. A shorter continuation contributes the n-grams
            it has.
        truth: The T tokens.
        n: Length of the n-grams; 10 in the paper.

    Returns:
        Mean over the ``T - n`` prefixes whose suffix holds an n-gram.

    Raises:
        ValueError: If n is not positive, the text is not longer than n, or continuations are missing or
            too long.

    References:
        Jang et al., "Knowledge Unlearning for Mitigating Privacy Risks in Language Models", ACL 2023,
        equations 1 and 2. Deviation from the released code: it fills a continuation that ends early with
        the end-of-text id, as long as another row of its batch goes on, and counts the filler's n-grams;
        here nothing is filled in, and a text's value does not depend on its batch.
    """
    n_prefixes = len(truth) - n
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if n_prefixes < 1:
        raise ValueError(f"the text must be longer than n={n} tokens, got {len(truth)}")
    if len(generated) < n_prefixes:
        raise ValueError(
            f"generated must hold the continuations of {n_prefixes} prefixes, got {len(generated)}"
        )
    total = 0.0
    for i, continuation in enumerate(generated[:n_prefixes], start=1):
        suffix = truth[i:]
        if len(continuation) > len(suffix):
            raise ValueError(
                f"the continuation of {i} tokens must have at most {len(suffix)}, got {len(continuation)}"
            )
        known = _ngrams(suffix, n)
        found = set(known)
        total += sum(gram in found for gram in _ngrams(continuation, n)) / len(known)
    return total / n_prefixes


def rouge_l(prediction: str, reference: str) -> RougeL:
    """Longest common subsequence of words of a generated and a true text (ROUGE-L).

    Where the letters of the true text are Latin, words are as published: runs of ASCII letters and digits in small
    letters, stemmed, so that an accented letter splits a word. Otherwise, and where it has no such word, they are
    those of :func:`core.text.words.words`: runs of letters and digits with their combining marks, ASCII ones
    stemmed, and single characters of a script that puts no space between words. Of a text without letters and
    digits each sign is a word.

    Args:
        prediction: Generated text; see :func:`cut_generation`.
        reference: True text.

    Returns:
        Recall and F1 in ``[0, 1]``; 0 where a text is empty.

    References:
        Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004; computed by ``rouge-score``
        with Porter stemming, as OpenUnlearning does. Deviation: ``rouge-score`` knows Latin letters only, and
        gives 0 to equal texts of other scripts; different forms of one accented letter are made one.
    """
    score = _rouge(prediction, reference)["rougeL"]
    return RougeL(recall=float(score.recall), f1=float(score.fmeasure))


def rouge_1_recall(prediction: str, reference: str) -> float:
    """Share of the true text's words that the generated text holds (ROUGE-1 recall).

    Args:
        prediction: Generated text; see :func:`cut_generation`.
        reference: True text.

    Returns:
        Recall in ``[0, 1]``, each word as often as both texts hold it; 0 where a text is empty.

    References:
        As :func:`rouge_l`.
    """
    return float(_rouge(prediction, reference)["rouge1"].recall)


def cut_generation(text: str, *, stops: Sequence[str]) -> str:
    """Generated text before the first stop, without surrounding white space.

    Args:
        text: What the model wrote.
        stops: Strings that end an answer, such as the end of text or a blank line; one inside a word
            cuts too.

    Raises:
        ValueError: If a stop is empty.

    References:
        OpenUnlearning, ``eval_text_similarity``. Deviation: its true text is the whole row with every
        occurrence of the prompt removed, which mutilates an answer that repeats the prompt; here the
        answer is its own field and is compared as it is.
    """
    if "" in stops:
        raise ValueError(f"stops must not be empty strings, got {list(stops)}")
    for stop in stops:
        text = text.partition(stop)[0]
    return text.strip()


def _is_greedy(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    logits_NV, targets_N = align(logits_BTV, labels_BT)
    return logits_NV.argmax(dim=-1) == targets_N


def _row_means(values_N: Tensor, labels_BT: Tensor) -> Tensor:
    counted_BT = counted_tokens(labels_BT)
    values_BT = values_N.new_zeros(counted_BT.shape)
    values_BT[counted_BT] = values_N
    return values_BT.sum(dim=1) / counted_BT.sum(dim=1)


def _ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[k : k + n]) for k in range(len(tokens) - n + 1)]


def _rouge(prediction: str, reference: str) -> Any:
    prediction, reference = (normalize("NFC", text) for text in (prediction, reference))
    if is_latin(reference) and _published_words(reference):
        split = _published_words
    else:
        split = _words_of_any_script if words(reference) else _signs
    return _rouge_scorer(split).score(reference, prediction)


def _published_words(text: str) -> list[str]:
    found: list[str] = _rouge_tokenizer().tokenize(text)
    return found


def _words_of_any_script(text: str) -> list[str]:
    return [
        found
        for word in words(text)
        for found in (_published_words(word) if word.isascii() else [word])
    ]


def _signs(text: str) -> list[str]:
    return [sign for sign in text if not sign.isspace()]


@dataclass(frozen=True)
class _Split:
    """A tokenizer as ``rouge-score`` wants one."""

    tokenize: Callable[[str], list[str]]


@cache
def _rouge_tokenizer() -> Any:
    from rouge_score.tokenizers import DefaultTokenizer  # imports nltk

    return DefaultTokenizer(use_stemmer=True)


@cache
def _rouge_scorer(split: Callable[[str], list[str]]) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], tokenizer=_Split(split))
