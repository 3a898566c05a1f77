"""What the reference model says of rows, computed once and cached: no second model in memory, no second pass.

The reference model is the target model before unlearning. Its cross-entropies, adversarial labels, last
hidden states and activations depend on the model and the rows alone, so they are artifacts that all
trials share. Logits are not kept (a vocabulary wide); they follow from the last hidden states by the output
layer.

Shapes: B rows, T tokens, V vocabulary, D width of the model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from core.data.tokens import TokenRow, collate
from core.losses import IGNORED, adversarial_labels, sequence_nll
from core.model.loading import LoadedModel, final_logits
from core.store import artifacts

Term = Literal["nll", "adversarial_labels", "last_hidden", "block_hidden"]

_ROWS_AT_ONCE = 8


class Reference:
    """Terms of the reference model for the rows of one role.

    Args:
        model: The target model, with nothing attached.
        rows: Rows that the trial may read.
        block: Block whose output ``hidden`` gives.
    """

    def __init__(
        self, model: LoadedModel, rows: Sequence[TokenRow], *, block: int | None = None
    ) -> None:
        """Nothing is computed before it is asked for."""
        self._model, self._block = model, block
        self._rows = sorted(set(rows), key=lambda row: (len(row.ids), row.ids, row.n_context))
        self._index = {row: i for i, row in enumerate(self._rows)}

    @cached_property
    def _nll(self) -> Tensor:
        def compute(output: Any, labels: Tensor) -> list[Tensor]:
            return list(sequence_nll(output.logits, labels))

        return torch.stack(list(self._term("nll", compute)))

    @cached_property
    def _adversarial(self) -> Sequence[Tensor]:
        def compute(output: Any, labels: Tensor) -> list[Tensor]:
            return list(adversarial_labels(output.logits, labels))

        return self._term("adversarial_labels", compute)

    @cached_property
    def _last(self) -> Sequence[Tensor]:
        return self._term("last_hidden", lambda output, _: list(output.hidden_states[-1]))

    @cached_property
    def _at_block(self) -> Sequence[Tensor]:
        block = self._block
        assert block is not None  # the loss that asks for it names one
        return self._term(
            "block_hidden", lambda output, _: list(output.hidden_states[block + 1]), block=block
        )

    @cached_property
    def gives_logits(self) -> bool:
        """Whether the output layer alone turns last hidden states into logits (no scaling, no capping)."""
        output, _ = next(self._batches(self._rows[:1], with_hidden=True))
        found = final_logits(self._model.network, output.hidden_states[-1])
        return torch.allclose(found.float(), output.logits.float(), rtol=2e-2, atol=2e-2)

    def nll(self, rows: Sequence[TokenRow]) -> Tensor:
        """Summed cross-entropy of the counted tokens of each row, float32 ``(B,)``, nats."""
        return self._nll[[self._index[row] for row in rows]].to(self._model.device)

    def adversarial_labels(self, rows: Sequence[TokenRow]) -> Tensor:
        """Strongest rival of each counted token, int64 ``(B, T)``; ``-100`` elsewhere."""
        return self._padded(self._adversarial, rows, fill=IGNORED)

    def hidden(self, rows: Sequence[TokenRow]) -> Tensor:
        """Output of the block, ``(B, T, D)``; zero on padding."""
        return self._padded(self._at_block, rows)

    def logits(self, rows: Sequence[TokenRow]) -> Tensor:
        """Logits ``(B, T, V)``; those of a zero state on padding, where nothing counts."""
        with torch.no_grad():
            return final_logits(self._model.network, self._padded(self._last, rows))

    def _padded(
        self, found: Sequence[Tensor], rows: Sequence[TokenRow], *, fill: float = 0.0
    ) -> Tensor:
        mine = [found[self._index[row]] for row in rows]
        padded = torch.nn.utils.rnn.pad_sequence(mine, batch_first=True, padding_value=fill)
        return padded.to(self._model.device)

    def _term(
        self,
        term: Term,
        compute: Callable[[Any, Tensor], list[Tensor]],
        **determinants: Any,
    ) -> Sequence[Tensor]:
        """One tensor for each row, without padding, from the cache."""
        model = self._model

        def measure() -> dict[str, Tensor]:
            with_hidden = term in ("last_hidden", "block_hidden")
            found: list[Tensor] = []
            for output, labels in self._batches(self._rows, with_hidden=with_hidden):
                found += compute(output, labels)
            return {
                f"{i:07d}": t[: len(row.ids)].clone() if t.ndim else t
                for i, (row, t) in enumerate(zip(self._rows, found, strict=True))
            }

        key = {
            "model": model.identity,
            "dtype": str(model.dtype),
            "device": model.device.type,
            "rows": artifacts.content_key(
                {"rows": [(row.ids, row.n_context) for row in self._rows]}
            ),
            "term": term,
            **determinants,
        }
        made: Mapping[str, Tensor] = artifacts.tensors("reference", key, measure)
        return [made[name] for name in sorted(made)]

    @torch.no_grad()
    def _batches(
        self, rows: Sequence[TokenRow], *, with_hidden: bool
    ) -> Iterator[tuple[Any, Tensor]]:
        network: Any = self._model.network
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            batch = collate(rows[start : start + _ROWS_AT_ONCE], self._model.device)
            output = network(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                use_cache=False,
                output_hidden_states=with_hidden,
            )
            yield output, batch.labels
