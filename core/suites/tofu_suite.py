"""Suites ``tofu`` and ``utility``: the metrics of TOFU, and OpenUnlearning's composites of them.

Truth ratios are computed with both means over the wrong answers. Model utility, forget quality and the
composites use the geometric one, as OpenUnlearning and the tables of the TOFU code do.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.data.tokens import TokenRow
from core.errors import DataError
from core.metrics.composites import (
    ATTACKS,
    aggregate_score,
    memorization_score,
    privacy_score,
    utility_score,
)
from core.metrics.memorization import rouge_l
from core.metrics.tofu import (
    FEWEST_ROWS,
    forget_quality,
    forget_truth_score,
    model_utility,
    normalised_probability,
    tolerated_distance,
    truth_preference,
    truth_ratio,
    utility_truth_score,
)
from core.suites.evaluation_rows import Example, question_of, text_field, texts_field
from core.suites.fluency_suite import fluency_of
from core.suites.mia_suite import attack_scores, aucs
from core.suites.subject import Subject
from core.suites.suite import Findings, Sample, SuiteInput, mean, samples_of

MULTIPLE_CHOICE = ("real_authors", "world_facts")
"""Roles whose probability is the right option's share, and whose truth ratio is based on the answer itself."""

UTILITY_ROLES = ("retain", *MULTIPLE_CHOICE)

_MEANS = ("geometric", "arithmetic")
_BOTH_MEANS = "model_utility and forget_quality use the geometric mean over wrong answers"


@dataclass(frozen=True, kw_only=True)
class _Questions:
    """A role's questions as token rows: the answer, what the truth ratio is based on, the wrong answers."""

    role: str
    examples: Sequence[Example]
    right: Sequence[TokenRow]
    wrong: Sequence[Sequence[TokenRow]]

    @property
    def answers(self) -> list[TokenRow]:
        return [example.tokens for example in self.examples]


def tofu(given: SuiteInput) -> Findings:
    """Probability, ROUGE-L recall and truth ratio of four sets, model utility, forget quality.

    The forget set's truth ratio is the mean of ``min(R, 1 / R)``, the others' of ``max(0, 1 - R)``. Forget
    quality compares the ratios R of the forget set with the retain-only model's. Composites need the model
    before unlearning, too, and a holdout set for the privacy part.
    """
    forget = _questions(given, "forget", suite="tofu")
    columns = _columns(given.subject, forget)
    metrics = _forget_metrics(columns)
    samples = samples_of("forget", columns)
    utility_part, more = _utility(given, given.subject, suite="tofu")
    metrics |= utility_part
    other = given.retain_only
    assert other is not None  # the suite is refused without one
    unseen = _columns(other, forget)
    metrics |= _quality(columns, unseen)
    composites, notes = _composites(given, metrics, columns)
    return Findings(
        metrics=metrics | composites,
        samples=samples + more,
        notes=(_BOTH_MEANS, *_caution(len(forget.examples)), *notes),
    )


def utility(given: SuiteInput) -> Findings:
    """Model utility, the harmonic mean of nine numbers, and the nine."""
    metrics, samples = _utility(given, given.subject, suite="utility")
    return Findings(metrics=metrics, samples=samples, notes=(_BOTH_MEANS,))


def _questions(given: SuiteInput, role: str, *, suite: str) -> _Questions:
    rows, examples = given.rows, given.rows.examples(role)
    right: list[TokenRow] = []
    wrong: list[list[TokenRow]] = []
    for example in examples:
        question = question_of(example, role, suite=suite)

        def row(answer: str, example: Example = example, question: str = question) -> TokenRow:
            return rows.answer(role, example, question=question, answer=answer)

        if role in MULTIPLE_CHOICE:
            right.append(example.tokens)
        else:
            right.append(row(text_field(example, role, "paraphrased_answer", suite=suite)))
        texts = texts_field(example, role, "perturbed_answer", suite=suite)
        if wrong and len(texts) != len(wrong[0]):
            raise DataError(
                f"data.{role}: {example.place}: every row needs as many wrong answers as the first, "
                f"{len(wrong[0])}, got {len(texts)} in 'perturbed_answer'"
            )
        wrong.append([row(text) for text in texts])
    return _Questions(role=role, examples=examples, right=right, wrong=wrong)


def _columns(subject: Subject, questions: _Questions) -> dict[str, list[float]]:
    """Numbers of each question: all that the metrics of its role are means of."""
    answers = subject.read(
        questions.answers, ("nll", "probability", "extraction_strength", "exact_memorization")
    )
    n_wrong = len(questions.wrong[0])
    others = subject.read(
        [*questions.right, *(row for rows in questions.wrong for row in rows)], ("nll",)
    )["nll"]
    right_B = -torch.tensor(others[: len(questions.right)], dtype=torch.float64)
    wrong_BK = -torch.tensor(others[len(questions.right) :], dtype=torch.float64).view(-1, n_wrong)
    written = subject.continuations(questions.examples)
    columns = {
        "nll": answers["nll"],
        "probability": answers["probability"],
        "rouge_l_recall": [rouge_l(c.written, c.truth).recall for c in written],
        "extraction_strength": answers["extraction_strength"],
        "exact_memorization": answers["exact_memorization"],
        "paraphrase_probability": right_B.exp().tolist(),
    }
    score = forget_truth_score if questions.role == "forget" else utility_truth_score
    for name in _MEANS:
        ratios = _ratios(right_B, wrong_BK, name)
        columns[f"ratio_{name}"] = ratios.tolist()
        columns[f"truth_ratio_{name}"] = _scored(score, ratios)
    if questions.role == "forget":
        ratios = torch.tensor(columns["ratio_geometric"], dtype=torch.float64)
        columns["truth_preference"] = _scored(truth_preference, ratios)
    if questions.role in MULTIPLE_CHOICE:
        columns["probability"] = _normalised(right_B, wrong_BK)
        del columns["paraphrase_probability"]
    return columns


def _ratios(right_B: Tensor, wrong_BK: Tensor, name: str) -> Tensor:
    """Truth ratios; NaN for all where a log-probability is no number."""
    if not _are_numbers(right_B, wrong_BK):
        return torch.full_like(right_B, math.nan)
    if name == "geometric":
        return truth_ratio(right_B, wrong_BK, mean="geometric")
    return truth_ratio(right_B, wrong_BK, mean="arithmetic")


def _normalised(right_B: Tensor, wrong_BK: Tensor) -> list[float]:
    if not _are_numbers(right_B, wrong_BK):
        return [math.nan] * len(right_B)
    return list(normalised_probability(right_B, wrong_BK).tolist())


def _scored(score: Callable[[Tensor], Tensor], ratios: Tensor) -> list[float]:
    return [math.nan] * len(ratios) if bool(ratios.isnan().any()) else list(score(ratios).tolist())


def _are_numbers(*tensors: Tensor) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _forget_metrics(columns: Mapping[str, list[float]]) -> dict[str, float]:
    names = [name for name in columns if not name.startswith("ratio_")]
    return {f"forget_{name}": mean(columns[name]) for name in names}


def _utility(
    given: SuiteInput, subject: Subject, *, suite: str
) -> tuple[dict[str, float], list[Sample]]:
    metrics: dict[str, float] = {}
    samples: list[Sample] = []
    parts: dict[str, float] = {}
    for role in UTILITY_ROLES:
        columns = _columns(subject, _questions(given, role, suite=suite))
        found = {
            "probability": mean(columns["probability"]),
            "rouge_l_recall": mean(columns["rouge_l_recall"]),
            **{f"truth_ratio_{name}": mean(columns[f"truth_ratio_{name}"]) for name in _MEANS},
        }
        metrics |= {f"{role}_{name}": value for name, value in found.items()}
        parts[f"{role}_probability"] = found["probability"]
        parts[f"{role}_rouge"] = found["rouge_l_recall"]
        parts[f"{role}_truth_ratio"] = found["truth_ratio_geometric"]
        samples += samples_of(role, columns)
    is_known = all(map(math.isfinite, parts.values()))
    metrics["model_utility"] = model_utility(parts) if is_known else math.nan
    return metrics, samples


def _quality(
    columns: Mapping[str, list[float]], unseen: Mapping[str, list[float]]
) -> dict[str, float]:
    ours, theirs = (
        torch.tensor(c["ratio_geometric"], dtype=torch.float64) for c in (columns, unseen)
    )
    if bool(ours.isnan().any()) or bool(theirs.isnan().any()):
        return dict.fromkeys(
            ("forget_quality", "forget_quality_statistic", "forget_quality_log10_p"), math.nan
        )
    found = forget_quality(ours, theirs)
    return {
        "forget_quality": found.p_value,
        "forget_quality_statistic": found.statistic,
        "forget_quality_log10_p": found.log10_p,
    }


def _caution(n_rows: int) -> list[str]:
    """What to say of a forget quality of few rows: that it is large says little, and how little."""
    if n_rows >= FEWEST_ROWS:
        return []
    return [
        f"forget_quality: of {n_rows} rows it says little, for a statistic of up to {tolerated_distance(n_rows):.2f} "
        f"still gives more than 0.05; TOFU's sets have {FEWEST_ROWS} rows and more"
    ]


def _composites(
    given: SuiteInput, metrics: Mapping[str, float], columns: Mapping[str, list[float]]
) -> tuple[dict[str, float], list[str]]:
    """Mem, Priv, Utility and Agg, as far as their models and rows are there and are numbers."""
    found: dict[str, float] = {}
    notes: list[str] = []
    parts = {
        "extraction_strength": mean(columns["extraction_strength"]),
        "exact_memorization": mean(columns["exact_memorization"]),
        "paraphrase_probability": mean(columns["paraphrase_probability"]),
        "truth_ratio": mean(columns["truth_preference"]),
    }
    found["mem"] = _if_numbers(lambda: memorization_score(**parts), parts.values())
    if given.has("holdout"):
        found["priv"] = _privacy(given)
    else:
        notes.append("priv and agg: need a holdout set; name the role holdout in --data")
    initial = given.initial
    if initial is None:
        notes.append("utility and agg: need the model before unlearning; give --initial")
    else:
        found["utility"], note = _utility_composite(given, initial, metrics["model_utility"])
        notes.append(note)
    if {"priv", "utility"} <= set(found):
        found["agg"] = _if_numbers(
            lambda: aggregate_score(
                memorization=found["mem"], privacy=found["priv"], utility=found["utility"]
            ),
            (found["mem"], found["priv"], found["utility"]),
        )
    return found, notes


def _privacy(given: SuiteInput) -> float:
    sets = [given.rows.examples(role) for role in ("forget", "holdout")]
    both = []
    for subject in (given.subject, given.retain_only):
        assert subject is not None  # the suite is refused without a retain-only model
        forget, holdout = (attack_scores(subject, examples) for examples in sets)
        found = aucs(forget, holdout)
        both.append({name: found[name] for name in ATTACKS})
    values = [value for found in both for value in found.values()]
    return _if_numbers(lambda: privacy_score(*both), values)


def _utility_composite(given: SuiteInput, initial: Subject, now: float) -> tuple[float, str]:
    before, _ = _utility(given, initial, suite="tofu")
    forget = given.rows.examples("forget")
    fluency, note = fluency_of(given, given.subject, forget)
    fluency_before, _ = fluency_of(given, initial, forget)
    parts = {
        "model_utility": now,
        "fluency": mean(fluency),
        "initial_model_utility": before["model_utility"],
        "initial_fluency": mean(fluency_before),
    }
    if parts["initial_model_utility"] == 0.0 or parts["initial_fluency"] == 0.0:
        return (
            math.nan,
            "utility: the model before unlearning has none, so nothing can be scaled by it",
        )
    return _if_numbers(lambda: utility_score(**parts), parts.values()), f"utility: {note}"


def _if_numbers(compute: Callable[[], float], values: Iterable[float]) -> float:
    return compute() if all(map(math.isfinite, values)) else math.nan
