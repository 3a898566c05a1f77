"""Greedy continuations of a few rows before and after unlearning, to be read by people."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.config import TrialConfig
from core.data.tokens import TokenRow
from core.suites.evaluation_rows import Example
from core.suites.subject import Subject
from core.training.adapter import load_adapter
from core.training.full_parameters import FullParameters, is_model_folder
from core.training.warm import Warm

TOKENS: Final = 40
"""A continuation has at most this many tokens, and so has the beginning of a document that is given."""

_PARTS: Final = {"forget": "forget", "retain": "retain_report"}
"""Where the rows of each role come from: retain rows are those that neither losses nor probes saw."""


@dataclass(frozen=True, kw_only=True)
class Continued:
    """A prompt, what follows it in the data, and what the model writes before and after unlearning."""

    role: str
    prompt: str
    truth: str
    before: str
    after: str


def continued_rows(
    config: TrialConfig, adapter: Path, *, warm: Warm, n_rows: int
) -> list[Continued]:
    """Rows of the forget and the retain set, continued by the target model and by a trial's.

    Of a row with a prompt that is given; of a document its first :data:`TOKENS` tokens, or its first half if that
    is shorter.

    Args:
        config: The trial.
        adapter: Folder of its adapter, or of its model.
        warm: What the process keeps; its model is as before afterwards.
        n_rows: Rows of each set, evenly spread over it.
    """
    model, data = warm.model(config), warm.data(config)
    chosen = {role: _spread(data[part], n_rows) for role, part in _PARTS.items()}
    subject = Subject(model, name="before", batch_size=config.batch.probe_batch_size)
    examples = {
        role: [_example(row, subject) for row in rows] for role, rows in chosen.items() if rows
    }
    before = _written(subject, examples)
    if is_model_folder(adapter):
        network = FullParameters.loaded(model, adapter).model
        after = _written(subject.other(network, name="after"), examples)
    else:
        adapted = load_adapter(model.network, adapter)
        try:
            after = _written(subject.other(adapted, name="after"), examples)
        finally:
            adapted.unload()  # type: ignore[operator]  # a PeftModel
    return [
        Continued(
            role=role,
            prompt=subject.decoded(example.given_ids),
            truth=subject.decoded(example.rest_ids[:TOKENS]).strip(),
            before=before[role][i],
            after=after[role][i],
        )
        for role, rows in examples.items()
        for i, example in enumerate(rows)
    ]


def _spread(rows: Sequence[TokenRow], n: int) -> list[TokenRow]:
    n = min(n, len(rows))
    return [rows[i * len(rows) // n] for i in range(n)]


def _example(row: TokenRow, subject: Subject) -> Example:
    """A document is cut so that half of it are the tokens that are continued."""
    if row.n_context > 0:
        prompt = subject.decoded(row.ids[: row.n_context])
        return Example(row, prompt, subject.decoded(row.ids[row.n_context :]), {})
    return Example(TokenRow(row.ids[: 2 * TOKENS], 0), None, subject.decoded(row.ids), {})


def _written(subject: Subject, examples: dict[str, list[Example]]) -> dict[str, list[str]]:
    return {
        role: [
            one.written
            for one in subject.continuations(rows, answer_tokens=TOKENS, document_tokens=TOKENS)
        ]
        for role, rows in examples.items()
    }
