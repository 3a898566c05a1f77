"""Audits: what is left of the forget set after an attack. They are for finished models, never objectives."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from core.data.batches import collate
from core.errors import DataError
from core.losses import nll_loss
from core.metrics.memorization import rouge_l
from core.metrics.probes import forget_closure
from core.model.layers import dense_weight, resolve_targets
from core.seeding import derive_seed
from core.suites.evaluation_rows import Example, question_of, text_field
from core.suites.probes_suite import pooled_level
from core.suites.subject import Subject
from core.suites.suite import Findings, Sample, SuiteInput, mean, samples_of

GROUP = 64
"""Weights that share a scale in four bits."""

_LOGITS = ("nll", "exact_memorization", "extraction_strength")


def relearning(given: SuiteInput) -> Findings:
    """How much of the *other* forget rows comes back when a few are trained on.

    Some forget rows (``relearn_samples``, drawn at random) are trained on for ``relearn_steps`` steps of
    ordinary fine-tuning: cross-entropy, all weights of a float32 copy with the adapter merged in, AdamW at
    a constant rate without weight decay, all those rows in every step. The rows that it did not read are
    measured before and after, as ``before_*`` and ``after_*``; level metrics are means over their tokens,
    extraction strength over rows. Where the model before unlearning is known there is ``forget_closure``,
    too: 1 when the rows look unseen, 0 when they look as before unlearning. What they look like unseen is
    their level under the retain-only model, or the holdout set's under the model before unlearning.

    Raises:
        DataError: If no forget row is left that the attack does not read.
    """
    options, examples = given.options, given.rows.examples("forget")
    if len(examples) <= options.relearn_samples:
        raise DataError(
            f"data.forget: suite relearning trains on {options.relearn_samples} rows and measures the others, so it "
            f"needs more rows than that, got {len(examples)}; give more, or lower --relearn-samples"
        )
    draw = random.Random(derive_seed(options.seed, "relearning"))  # noqa: S311
    drawn = set(draw.sample(range(len(examples)), options.relearn_samples))
    trained = [example for i, example in enumerate(examples) if i in drawn]
    places = [i for i in range(len(examples)) if i not in drawn]
    others = [examples[i] for i in places]
    attacked = _relearned(given, trained)
    span = _closure_span(given, others)
    metrics: dict[str, float] = {}
    columns: dict[str, list[float]] = {}
    for when, subject in (("before", given.subject), ("after", attacked)):
        found = _levels(subject, others)
        if span is not None:
            found["forget_closure"] = forget_closure(found["nll"], *span)
        metrics |= {f"{when}_{name}": value for name, value in found.items()}
        read = subject.read([example.tokens for example in others], _LOGITS)
        columns |= {f"{when}_{name}": values for name, values in read.items()}
    metrics["after_relearned_nll"] = pooled_level(attacked, trained).nll
    samples = samples_of("forget", columns)
    for sample, place in zip(samples, places, strict=True):
        sample["index"] = place
    note = (
        f"{options.relearn_steps} steps at rate {options.relearn_rate} on {len(trained)} forget rows, "
        f"measured on the other {len(others)}"
    )
    return Findings(metrics=metrics, samples=samples, notes=(note,))


def quantisation(given: SuiteInput) -> Findings:
    """What rounding the weights brings back: levels and extraction strength in 8 and in 4 bits.

    Round-to-nearest of the attention and MLP weights of a copy with the adapter merged in, symmetric around
    zero: ``int8`` with a scale for each output channel, ``int4`` with one for each group of 64 inputs of an
    output channel. Embeddings, norms and the output layer stay, as is usual; the arithmetic stays that of
    the model. Names without a prefix are the model as it is.
    """
    examples = {role: given.rows.examples(role) for role in ("forget", "retain")}
    subjects = {
        "": given.subject,
        "int8_": _quantised(given.subject, bits=8, group=None),
        "int4_": _quantised(given.subject, bits=4, group=GROUP),
    }
    metrics: dict[str, float] = {}
    samples: list[Sample] = []
    for role, rows in examples.items():
        columns: dict[str, list[float]] = {}
        for prefix, subject in subjects.items():
            found = _levels(subject, rows)
            metrics |= {f"{prefix}{role}_{name}": value for name, value in found.items()}
            read = subject.read([example.tokens for example in rows], _LOGITS)
            columns |= {f"{prefix}{name}": values for name, values in read.items()}
        samples += samples_of(role, columns)
    return Findings(metrics=metrics, samples=samples)


def paraphrase(given: SuiteInput) -> Findings:
    """Is the knowledge gone, or only its wording? Paraphrased answers and questions of the forget set.

    Means over rows of the length-normalised probability of the answer, of the paraphrased answer to the
    question, and of the answer to the paraphrased question; and of the ROUGE-L recall of greedy answers to
    both questions against the answer.

    Raises:
        DataError: If a row lacks ``paraphrased_question`` or ``paraphrased_answer``.
    """
    rows, examples = given.rows, given.rows.examples("forget")
    said, asked = [], []
    for example in examples:
        question = question_of(example, "forget", suite="paraphrase")
        answer = text_field(example, "forget", "paraphrased_answer", suite="paraphrase")
        other = text_field(example, "forget", "paraphrased_question", suite="paraphrase")
        said.append(rows.answer("forget", example, question=question, answer=answer))
        row = rows.answer("forget", example, question=other, answer=example.answer)
        asked.append(Example(row, other, example.answer, example.record, example.place))
    subject = given.subject

    def probability(rows: Sequence[Any]) -> list[float]:
        return subject.read(rows, ("probability",))["probability"]

    def recall(rows: Sequence[Example]) -> list[float]:
        return [rouge_l(c.written, c.truth).recall for c in subject.continuations(rows)]

    columns = {
        "probability": probability([example.tokens for example in examples]),
        "paraphrased_answer_probability": probability(said),
        "paraphrased_question_probability": probability([example.tokens for example in asked]),
        "rouge_l_recall": recall(examples),
        "paraphrased_question_rouge_l_recall": recall(asked),
    }
    metrics = {f"forget_{name}": mean(values) for name, values in columns.items()}
    return Findings(metrics=metrics, samples=samples_of("forget", columns))


def rounded_to_nearest(weight_OI: Tensor, *, bits: int, group: int | None) -> Tensor:
    r"""A weight as integers of some bits and scales can hold it.

    .. math::
        \hat w = s \cdot \operatorname{round}(w / s), \quad s = \frac{\max |w|}{2^{b-1} - 1}

    with the maximum over the inputs that share a scale. The error of an entry is at most ``s / 2``.

    Args:
        weight_OI: Float ``(outputs, inputs)``.
        bits: b, at least 2.
        group: Neighbouring inputs of an output that share a scale, a last group may be smaller; all of
            them if absent.

    Returns:
        Float32 ``(outputs, inputs)``. A group of zeros stays.

    Raises:
        ValueError: If there are fewer than 2 bits or a group is empty.

    References:
        The round-to-nearest baseline of Dettmers et al., "LLM.int8()", NeurIPS 2022 and Frantar et al.,
        "GPTQ", ICLR 2023. As an audit: Zhang et al., "Catastrophic Failure of LLM Unlearning via
        Quantization", ICLR 2025.
    """
    if bits < 2:
        raise ValueError(f"bits must be at least 2, got {bits}")
    if group is not None and group < 1:
        raise ValueError(f"group must be at least 1, got {group}")
    n_inputs = weight_OI.shape[1]
    size = group or n_inputs
    padded = pad(weight_OI.float(), (0, -n_inputs % size))
    grouped = padded.unflatten(1, (-1, size))
    largest = grouped.abs().amax(dim=-1, keepdim=True)
    scale = torch.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0)
    rounded: Tensor = (grouped / scale).round() * scale
    return rounded.flatten(1)[:, :n_inputs]


def _levels(subject: Subject, examples: Sequence[Example]) -> dict[str, float]:
    at = pooled_level(subject, examples)
    strength = subject.read([example.tokens for example in examples], _LOGITS)[
        "extraction_strength"
    ]
    return {"nll": at.nll, "accuracy": at.accuracy, "extraction_strength": mean(strength)}


def _closure_span(given: SuiteInput, others: Sequence[Example]) -> tuple[float, float] | None:
    """Cross-entropy of rows before unlearning, and of unseen text; ``None`` where either is unknown."""
    initial, retain_only = given.initial, given.retain_only
    if initial is None or (retain_only is None and not given.has("holdout")):
        return None
    before = pooled_level(initial, others).nll
    if retain_only is not None:
        unseen = pooled_level(retain_only, others).nll
    else:
        unseen = pooled_level(initial, given.rows.examples("holdout")).nll
    return None if before == unseen else (before, unseen)


def _relearned(given: SuiteInput, trained: Sequence[Example]) -> Subject:
    subject, options = given.subject, given.options
    copied = subject.merged_copy(torch.float32).requires_grad_(True)
    found = subject.other(copied, name=f"{subject.name}, relearned")
    batch = collate([example.tokens for example in trained], subject.model.device)
    optimizer = torch.optim.AdamW(copied.parameters(), lr=options.relearn_rate, weight_decay=0.0)
    for _ in range(options.relearn_steps):
        loss = nll_loss(found.logits(batch), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    copied.requires_grad_(False)
    return found


@torch.no_grad()
def _quantised(subject: Subject, *, bits: int, group: int | None) -> Subject:
    copied = subject.merged_copy(torch.float32)
    for name in resolve_targets(copied, "all", rank=1):
        layer: nn.Module = copied.get_submodule(name)
        weight_OI = dense_weight(layer)  # a view: what is written there is the layer's own
        weight_OI.copy_(rounded_to_nearest(weight_OI, bits=bits, group=group))
    name = f"{subject.name}, int{bits}"
    return subject.other(copied.to(subject.model.dtype), name=name)
