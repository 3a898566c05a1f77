"""Measure rows under a model: in batches by length, dealt out over the ranks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from core.config import TrialConfig
from core.data.tokens import Batch, TokenRow, TokenSplits, collate
from core.errors import ModelError
from core.metrics.memorization import (
    exact_memorization,
    extraction_likelihood,
    extraction_strength,
    memorization_accuracy,
)
from core.metrics.probes import MEASURED, Level, Levels, level, token_sums
from core.model.decoding import suffix_continuations
from core.model.loading import Forward, LoadedModel, forward_of
from core.training.ranks import Group

_DECODED_AT_ONCE = 64


RowMetric = Callable[[Tensor, Tensor], Tensor]


ROW_METRICS: Mapping[str, RowMetric] = {
    "memorization_accuracy": memorization_accuracy,
    "extraction_strength": extraction_strength,
    "exact_memorization": exact_memorization,
}
"""Metrics of single rows, from logits and labels, ``(B,)``."""


class Meter:
    """Measures rows in batches, on a model's device, over one group of ranks."""

    def __init__(self, model: LoadedModel, group: Group, *, batch_size: int) -> None:
        """Nothing is measured yet."""
        self._size = batch_size
        self._device, self._group = model.device, group

    def levels(self, forward: Forward, data: TokenSplits, *, part: str) -> Levels:
        """Level of the forget set and of one part of retain and general set."""
        rows = {name: data[name if name == "forget" else f"{name}_{part}"] for name in MEASURED}
        return {name: self.level(forward, rows[name]) for name in MEASURED}

    @torch.no_grad()
    def level(self, forward: Forward, rows: Sequence[TokenRow]) -> Level:
        """Level of a set."""
        sums = torch.zeros(3, dtype=torch.float64, device=self._device)
        for batch, is_mine in self._batches(rows):
            logits = forward(batch.ids, batch.mask)
            if is_mine:
                sums += token_sums(logits, batch.labels)
        return level(self._group.sum(sums))

    @torch.no_grad()
    def row_mean(self, forward: Forward, rows: Sequence[TokenRow], metric: RowMetric) -> float:
        """Mean over rows of a metric of single rows."""
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        for batch, is_mine in self._batches(rows):
            logits = forward(batch.ids, batch.mask)
            if is_mine:
                values = metric(logits, batch.labels)
                sums += torch.stack(
                    [values.double().sum(), torch.tensor(float(len(values))).to(sums)]
                )
        total, count = self._group.sum(sums).tolist()
        return float(total / count)

    @torch.no_grad()
    def extraction_likelihood(self, network: Any, rows: Sequence[TokenRow], *, n: int) -> float:
        """Mean EL_n over rows with more than ``n`` tokens."""
        long = [row.ids for row in rows if len(row.ids) > n]
        if not long:
            raise ModelError(
                f"selection.stop_when: el_{n} needs forget rows of more than {n} tokens, the longest has "
                f"{max(len(row.ids) for row in rows)}; raise data.forget.max_tokens or take a smaller n"
            )
        mine = [long[i] for i in self._group.mine(len(long))]
        found = (
            suffix_continuations(network, mine, min_length=n, batch_size=_DECODED_AT_ONCE)
            if mine
            else []
        )
        values = [
            extraction_likelihood(generated, truth, n=n)
            for generated, truth in zip(found, mine, strict=True)
        ]
        total = torch.tensor([sum(values), len(values)], dtype=torch.float64, device=self._device)
        value, count = self._group.sum(total).tolist()
        return float(value / count)

    def _batches(self, rows: Sequence[TokenRow]) -> Iterator[tuple[Batch, bool]]:
        """Batches by length, so that little is padding; as many on every rank, for ZeRO 3 gathers."""
        by_length = sorted(rows, key=lambda row: len(row.ids))
        mine = [by_length[i] for i in self._group.mine(len(by_length))]
        n_batches = -(-len(by_length) // (self._size * self._group.size))
        for i in range(n_batches):
            chunk = mine[i * self._size : (i + 1) * self._size]
            yield collate(chunk or by_length[:1], self._device), bool(chunk)


def stop_metrics(
    config: TrialConfig, meter: Meter, network: Any, data: TokenSplits
) -> dict[str, float]:
    """The forget metrics that ``selection.stop_when`` names."""
    found = {}
    for name in (rule.metric for rule in config.selection.stop_when):
        if name in ROW_METRICS:
            found[name] = meter.row_mean(forward_of(network), data["forget"], ROW_METRICS[name])
        else:
            n = int(name.removeprefix("el_"))
            found[name] = meter.extraction_likelihood(network, data["forget"], n=n)
    return found
