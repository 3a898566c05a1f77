"""Single numbers made of several metrics.

All composites are harmonic means: no part can be bought with another, and a part of 0 makes the whole 0.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")
"""Membership scores whose AUC enters the privacy composite."""

NGRAM_WEIGHTS: Mapping[int, float] = {2: 2 / 3, 3: 4 / 3}
"""Weight of the entropy of bigrams and of trigrams."""


def harmonic_mean(values: Sequence[float]) -> float:
    r"""Harmonic mean, :math:`n / \sum_i v_i^{-1}`.

    Between the smallest and the largest value, and at most ``n`` times the smallest; 0 as soon as one
    value is 0.

    Args:
        values: Finite numbers, not negative.

    Returns:
        The mean, in the unit of the values.

    Raises:
        ValueError: If there is no value, or one is negative or not finite.
    """
    if not values:
        raise ValueError("a harmonic mean needs at least one value, got none")
    wrong = [v for v in values if not (math.isfinite(v) and v >= 0.0)]
    if wrong:
        raise ValueError(f"values must be finite and not negative, got {wrong}")
    if min(values) == 0.0:
        return 0.0
    return len(values) / math.fsum(1.0 / v for v in values)


def memorization_score(
    *,
    extraction_strength: float,
    exact_memorization: float,
    paraphrase_probability: float,
    truth_ratio: float,
) -> float:
    r"""How much of the forget set is gone (OpenUnlearning's Mem).

    .. math::
        \mathrm{Mem} = \mathrm{HM}(1 - \mathrm{ES},\, 1 - \mathrm{EM},\, 1 - \mathrm{ParaProb},\, 1 - \mathrm{TR})

    Lies in ``[0, 1]``: 1 when nothing of the forget set is left, 0 when one of the four sees it whole. A
    retain-only model has about 0.3 on TOFU, not 1: more than that is over-unlearning, which Mem rewards.

    Args:
        extraction_strength: Mean over the rows of the forget set; so for the next ones.
        exact_memorization: Share of tokens that are the greedy choice.
        paraphrase_probability: Length-normalised probability of a paraphrase of the answer.
        truth_ratio: High when the truth is preferred:
            :func:`core.metrics.tofu.truth_preference`, *not* the ratio R, which is low then.

    Returns:
        Harmonic mean of the four complements.

    Raises:
        ValueError: If an argument lies outside ``[0, 1]``.

    References:
        OpenUnlearning, arXiv 2506.12618, appendix F.1.
    """
    parts = {
        "extraction_strength": extraction_strength,
        "exact_memorization": exact_memorization,
        "paraphrase_probability": paraphrase_probability,
        "truth_ratio": truth_ratio,
    }
    _require_unit_interval(parts)
    return harmonic_mean([1.0 - value for value in parts.values()])


def auc_closeness(auc_unlearned: float, auc_retain: float) -> float:
    r"""How close the unlearned model's AUC is to a retain-only model's.

    .. math::
        s = 1 - \frac{|a - r|}{m}, \quad m = 1 - r \text{ if } a > r, \text{ else } r

    with a the AUC of the unlearned model and r that of the retain-only model. Lies in ``[0, 1]``: 1 when
    the two agree; 0 at both ends, when the forget set is wholly separable from the holdout set, whether it
    looks like a member (a = 1) or over-unlearned (a = 0); linear between.

    Args:
        auc_unlearned: :func:`core.metrics.privacy.auc` of the unlearned model.
        auc_retain: The same of a model that never saw the forget set.

    Returns:
        A number in ``[0, 1]``.

    Raises:
        ValueError: If an AUC lies outside ``[0, 1]``.

    References:
        OpenUnlearning, arXiv 2506.12618, appendix F.1, says that a score in ``[0, 1]`` measures how closely
        the AUC aligns with the retain model's, and gives no formula. This one is ours; do not compare it
        with the paper's tables.
    """
    _require_unit_interval({"auc_unlearned": auc_unlearned, "auc_retain": auc_retain})
    if auc_unlearned == auc_retain:
        return 1.0
    farthest = 1.0 - auc_retain if auc_unlearned > auc_retain else auc_retain
    return 1.0 - abs(auc_unlearned - auc_retain) / farthest


def privacy_score(auc_unlearned: Mapping[str, float], auc_retain: Mapping[str, float]) -> float:
    r"""How little membership attacks tell the unlearned from a retain-only model (OpenUnlearning's Priv).

    .. math::
        \mathrm{Priv} = \mathrm{HM}(s_\mathrm{LOSS}, s_\mathrm{ZLib}, s_\mathrm{MinK}, s_\mathrm{MinK++})

    with s of :func:`auc_closeness`. Lies in ``[0, 1]``: 1 for the retain-only model itself, 0 when one
    attack separates forget and holdout set completely. Needs a retain-only model, so it is for the audit
    and not for selection.

    Args:
        auc_unlearned: AUC of the unlearned model for each of ``loss``, ``zlib``, ``min_k`` and
            ``min_k_plus_plus``.
        auc_retain: The same of a model that never saw the forget set.

    Returns:
        Harmonic mean of the four closenesses.

    Raises:
        ValueError: If an attack is missing or unknown, or an AUC lies outside ``[0, 1]``.

    References:
        OpenUnlearning, arXiv 2506.12618, appendix F.1; the closeness is ours.
    """
    for name, values in (("auc_unlearned", auc_unlearned), ("auc_retain", auc_retain)):
        if set(values) != set(ATTACKS):
            raise ValueError(f"{name} must hold {', '.join(ATTACKS)}, got {', '.join(values)}")
    return harmonic_mean([auc_closeness(auc_unlearned[a], auc_retain[a]) for a in ATTACKS])


def utility_score(
    *,
    model_utility: float,
    fluency: float,
    initial_model_utility: float,
    initial_fluency: float,
) -> float:
    r"""What is left of the model, relative to the target model (OpenUnlearning's Utility).

    .. math::
        \mathrm{Utility} = \mathrm{HM}\Bigl(
            \min\bigl(1, \tfrac{\mathrm{MU}}{\mathrm{MU}_0}\bigr),\,
            \min\bigl(1, \tfrac{\mathrm{fluency}}{\mathrm{fluency}_0}\bigr) \Bigr)

    Lies in ``[0, 1]``: 1 when nothing is lost. Each part is scaled before the mean, so that fluency may
    have any unit, and cut at 1, so that a gain in one part does not make up for a loss in the other.

    Args:
        model_utility: :func:`core.metrics.tofu.model_utility` of the unlearned model.
        fluency: Of what it writes when asked about the forget set, such as the mean
            :func:`ngram_entropy`.
        initial_model_utility: The same of the target model, before unlearning; positive.
        initial_fluency: The same of the target model; positive.

    Returns:
        A number in ``[0, 1]``.

    Raises:
        ValueError: If a number is negative or not finite, or an initial one is 0.

    References:
        OpenUnlearning, arXiv 2506.12618, appendix F.1, whose fluency is the verdict of a gibberish
        classifier. The cut at 1 is ours: the paper says that scores lie in ``[0, 1]`` after scaling.
    """
    parts = (
        ("model_utility", model_utility, initial_model_utility),
        ("fluency", fluency, initial_fluency),
    )
    for name, now, initial in parts:
        if not (math.isfinite(now) and now >= 0.0):
            raise ValueError(f"{name} must be finite and not negative, got {now}")
        if not (math.isfinite(initial) and initial > 0.0):
            raise ValueError(f"initial_{name} must be finite and positive, got {initial}")
    return harmonic_mean([min(1.0, now / initial) for _, now, initial in parts])


def aggregate_score(*, memorization: float, privacy: float, utility: float) -> float:
    r"""OpenUnlearning's ranking of finished models, :math:`\mathrm{HM}(\mathrm{Mem}, \mathrm{Priv}, \mathrm{Utility})`.

    Lies in ``[0, 1]``. Its authors tune on ``harmonic_mean([memorization, utility])``, because privacy
    needs a retain-only model; the two rank methods in nearly opposite order.

    Args:
        memorization: :func:`memorization_score`.
        privacy: :func:`privacy_score`.
        utility: :func:`utility_score`.

    Returns:
        Harmonic mean of the three.

    Raises:
        ValueError: If an argument lies outside ``[0, 1]``.

    References:
        OpenUnlearning, arXiv 2506.12618, section 5 and tables 3 and 6.
    """
    parts = {"memorization": memorization, "privacy": privacy, "utility": utility}
    _require_unit_interval(parts)
    return harmonic_mean(list(parts.values()))


def relative_difference(value: float, reference: float) -> float:
    r"""Difference from a reference in per cent of it, :math:`100 (v - r) / r`.

    0 when the two agree, -100 when the value is 0.

    Args:
        value: v, of the unlearned model.
        reference: r > 0, of a retain-only model.

    Returns:
        Per cent.

    Raises:
        ValueError: If a number is not finite or the reference is not positive.

    References:
        OpenUnlearning, ``rel_diff``. Deviation: theirs adds 1e-10 to the denominator; this refuses a
        reference of 0.
    """
    if not (math.isfinite(value) and math.isfinite(reference)):
        raise ValueError(f"value and reference must be finite, got {value} and {reference}")
    if not reference > 0.0:
        raise ValueError(f"reference must be positive, got {reference}")
    return 100.0 * (value - reference) / reference


def ngram_entropy(tokens: Sequence[Hashable]) -> float:
    r"""Variety of a generated text: low when it repeats itself.

    .. math::
        \frac{1}{2} \Bigl( \frac{2}{3} H_2 + \frac{4}{3} H_3 \Bigr), \quad
        H_n = -\sum_{g} f_n(g) \log_2 f_n(g)

    with :math:`f_n(g)` the share of the n-gram ``g`` among all n-grams of the text. Between 0, when one
    token is repeated or the text is too short for a bigram, and about :math:`\log_2` of the length, when no
    n-gram comes twice: compare texts of one length only, and cut them to it. Random tokens score as high
    as good prose.

    Args:
        tokens: Words or token ids of one text.

    Returns:
        Bits; one text. The caller averages over texts.

    Raises:
        TypeError: If ``tokens`` is a string, whose n-grams would be those of its letters.

    References:
        Meng et al., "Locating and Editing Factual Associations in GPT" (ROME), NeurIPS 2022, whose words
        come from NLTK's tokenizer. It stands in for OpenUnlearning's fluency, a gibberish classifier,
        where no further model can be run; the two are on different scales.
    """
    if isinstance(tokens, str):
        raise TypeError(f"tokens must be words or token ids, got the string {tokens[:20]!r}")
    weighted = [weight * _entropy(tokens, n) for n, weight in NGRAM_WEIGHTS.items()]
    return sum(weighted) / len(weighted)


def _entropy(tokens: Sequence[Hashable], n: int) -> float:
    """Entropy of the n-grams of a text, bits; 0 if there are none."""
    counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    total = counts.total()
    return math.fsum(c / total * math.log2(total / c) for c in counts.values())


def _require_unit_interval(parts: Mapping[str, float]) -> None:
    wrong = [f"{name}={value}" for name, value in parts.items() if not 0.0 <= value <= 1.0]
    if wrong:
        raise ValueError(f"must lie in [0, 1], got {', '.join(wrong)}")
