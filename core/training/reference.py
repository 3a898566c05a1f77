"""What the reference model says of rows, computed once and cached: no second model in memory, no second pass.

The reference model is the target model before unlearning. Its cross-entropies, adversarial labels, last
hidden states and activations depend on the model and the row alone, so they are artifacts that all trials
share, row by row: another seed or batch size asks the model about those rows only that no trial before read.
A value is measured once and kept. A row measured alone and beside others gives the same value up to the
rounding of the model's own arithmetic; the last bits come from where it was measured first. Logits are not
kept (a vocabulary wide); they follow from the last hidden states by the output layer.

Shapes: B rows, T tokens, V vocabulary, D width of the model.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor

from core.data.batches import batches_by_length
from core.data.tokens import TokenRow
from core.losses import IGNORED, adversarial_labels, sequence_nll
from core.losses.alignment import sent
from core.model.loading import LoadedModel, final_logits
from core.store import artifacts

Term = Literal["nll", "adversarial_labels", "last_hidden", "block_hidden"]

_ROWS_AT_ONCE = 8


class Reference:
    """Terms of the reference model for the rows of one role. Each is found or measured for all rows at once.

    Args:
        model: The target model, with nothing attached while a term is measured.
        rows: Rows that the trial may read.
    """

    def __init__(self, model: LoadedModel, rows: Sequence[TokenRow]) -> None:
        """Nothing is computed before it is asked for."""
        self._model = model
        self._rows = sorted(set(rows), key=lambda row: (len(row.ids), row.ids, row.n_context))
        self._index = {row: i for i, row in enumerate(self._rows)}
        self._terms: dict[tuple[Term, int | None], Sequence[Tensor]] = {}

    @cached_property
    def gives_logits(self) -> bool:
        """Whether the output layer alone turns last hidden states into logits (no scaling, no capping)."""
        _, output, _ = next(self._passes(self._rows[:1], with_hidden=True))
        found = final_logits(self._model.network, output.hidden_states[-1])
        return torch.allclose(found.float(), output.logits.float(), rtol=2e-2, atol=2e-2)

    def prepare(self, term: Term, *, block: int | None = None) -> None:
        """Measure a term of all rows, or find it in the cache."""
        self._term(term, block)

    def nll(self, rows: Sequence[TokenRow]) -> Tensor:
        """Summed cross-entropy of the counted tokens of each row, float32 ``(B,)``, nats."""
        return sent(torch.stack(self._of(rows, "nll")), self._model.device)

    def adversarial_labels(self, rows: Sequence[TokenRow]) -> Tensor:
        """Strongest rival of each counted token, int64 ``(B, T)``, on the host; ``-100`` elsewhere."""
        return _padded(self._of(rows, "adversarial_labels"), fill=IGNORED)

    def hidden(self, rows: Sequence[TokenRow], *, block: int) -> Tensor:
        """Output of a block, ``(B, T, D)``; zero on padding."""
        return sent(_padded(self._of(rows, "block_hidden", block)), self._model.device)

    def logits(self, rows: Sequence[TokenRow]) -> Tensor:
        """Logits of the predictions that count, row by row: ``(N, V)``."""
        found = zip(rows, self._of(rows, "last_hidden"), strict=True)
        predicting = [hidden[max(0, row.n_context - 1) : -1] for row, hidden in found]
        with torch.no_grad():
            last = sent(torch.cat(predicting), self._model.device)
            return final_logits(self._model.network, last)

    def _of(self, rows: Sequence[TokenRow], term: Term, block: int | None = None) -> list[Tensor]:
        found = self._term(term, block)
        return [found[self._index[row]] for row in rows]

    def _term(self, term: Term, block: int | None) -> Sequence[Tensor]:
        """One tensor for each row, without padding, from the cache."""
        if (term, block) not in self._terms:
            key: dict[str, Any] = {**self._model.determinants, "term": term}
            key |= {} if block is None else {"block": block}
            by_hash = {
                artifacts.row_key(row.ids, n_context=row.n_context): row for row in self._rows
            }

            def measure(missing: Sequence[str]) -> Mapping[str, Tensor]:
                rows = [by_hash[name] for name in missing]
                return dict(zip(missing, self._measured(rows, term, block), strict=True))

            self._terms[term, block] = artifacts.tensors_by_row(
                "reference", key, list(by_hash), measure
            )
        return self._terms[term, block]

    def _measured(self, rows: Sequence[TokenRow], term: Term, block: int | None) -> list[Tensor]:
        with_hidden = term in ("last_hidden", "block_hidden")
        found: dict[int, Tensor] = {}
        for places, output, labels in self._passes(rows, with_hidden=with_hidden):
            for place, value in zip(places, _values(term, block, output, labels), strict=True):
                length = len(rows[place].ids)
                found[place] = value[:length].clone() if value.ndim else value.clone()
        return [found[place] for place in range(len(rows))]

    @torch.no_grad()
    def _passes(
        self, rows: Sequence[TokenRow], *, with_hidden: bool
    ) -> Iterator[tuple[list[int], Any, Tensor]]:
        network: Any = self._model.network
        for places, batch in batches_by_length(rows, self._model.device, size=_ROWS_AT_ONCE):
            output = network(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                use_cache=False,
                output_hidden_states=with_hidden,
            )
            yield places, output, batch.labels


def _padded(found: Sequence[Tensor], *, fill: float = 0.0) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(found), batch_first=True, padding_value=fill)


def _values(term: Term, block: int | None, output: Any, labels: Tensor) -> Iterable[Tensor]:
    """The term of each row of a batch."""
    if term == "nll":
        return sequence_nll(output.logits, labels).unbind()
    if term == "adversarial_labels":
        return adversarial_labels(output.logits, labels).unbind()
    if term == "last_hidden":
        return cast(Tensor, output.hidden_states[-1]).unbind()
    assert block is not None  # the need that asks for it names one
    return cast(Tensor, output.hidden_states[block + 1]).unbind()
