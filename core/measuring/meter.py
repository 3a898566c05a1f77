"""Measure rows under a model: in batches by length, dealt out over the ranks."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from core.data.batches import Batch, batches_by_length, rows_by_length
from core.data.tokens import TokenRow, TokenSplits, measured_part
from core.losses.alignment import sent
from core.metrics.intervals import Sums
from core.metrics.memorization import extraction_likelihood
from core.metrics.probes import MEASURED, Level, level, token_sums
from core.metrics.rows import ROW_METRICS
from core.model.decoding import rows_at_once, suffix_continuations
from core.model.loading import Forward, LoadedModel
from core.training.ranks import Group

DECODED_AT_ONCE = 64
"""Prefixes that are continued together at most, where memory allows: each has one new column only."""


class Meter:
    """Measures rows on a model's device, over one group of ranks; every rank gets the same numbers."""

    def __init__(self, model: LoadedModel, group: Group, *, batch_size: int) -> None:
        """Nothing is measured yet; ``batch_size`` rows are read together."""
        self._size, self._reader = batch_size, model.reader
        self._device, self._group = model.device, group

    def sums(self, forward: Forward, data: TokenSplits, *, part: str) -> dict[str, Sums]:
        """Row sums of the forget set and of one part of retain and general set."""
        rows = {name: data[measured_part(name, part)] for name in MEASURED}
        found = self.row_sums(forward, [row for name in MEASURED for row in rows[name]])
        ends = accumulate((len(rows[name]) for name in MEASURED), initial=0)
        return {name: found[slice(*at)] for name, at in zip(MEASURED, pairwise(ends), strict=True)}

    @torch.no_grad()
    def row_sums(self, forward: Forward, rows: Sequence[TokenRow]) -> Sums:
        """Sums of each row of a set, in the order of the rows; those of all ranks, on every rank."""
        sums = torch.zeros((len(rows), 3), dtype=torch.float64, device=self._device)
        network, group = forward.network, self._group
        for places, chosen in rows_by_length(
            rows, size=self._size, rank=group.rank, n_ranks=group.size
        ):
            layout = self._reader.lay(chosen, self._device)
            logits_NV = self._reader.read(network, network, layout).logits_NV
            if places:
                at = sent(torch.tensor(places), self._device)
                sums.index_copy_(0, at, token_sums(logits_NV, layout.labels_BT))
        return self._group.sum(sums).cpu().numpy()

    def level(self, forward: Forward, rows: Sequence[TokenRow]) -> Level:
        """Level of a set."""
        return level(self.row_sums(forward, rows))

    def row_mean(self, forward: Forward, rows: Sequence[TokenRow], metric: str) -> float:
        """Mean over rows of a metric of :data:`~core.metrics.rows.ROW_METRICS`."""
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        for _, found in self._measured(forward, rows, (metric,)):
            values = found[metric].double()
            sums += torch.stack([values.sum(), torch.tensor(float(len(values))).to(sums)])
        return self._mean(sums)

    def row_values(
        self,
        forward: Forward,
        rows: Sequence[TokenRow],
        metrics: Sequence[str],
        *,
        done: Callable[[int], None] | None = None,
    ) -> dict[str, list[float]]:
        """Metrics of each row, in the order of the rows; NaN for the rows that other ranks measure.

        ``done`` is called with the number of rows of each batch that was measured.
        """
        values = {name: [math.nan] * len(rows) for name in metrics}
        for places, found in self._measured(forward, rows, metrics):
            for name in metrics:
                for place, value in zip(places, found[name].tolist(), strict=True):
                    values[name][place] = value
            if done is not None:
                done(len(places))
        return values

    def mean_extraction_likelihood(
        self, network: Any, rows: Sequence[TokenRow], *, n: int
    ) -> float | None:
        """Mean EL_n over the rows of more than ``n`` tokens; ``None`` if there is none."""
        long = [row for row in rows if len(row.ids) > n]
        if not long:
            return None
        mine = [long[i] for i in self._group.mine(len(long))]
        values = extraction_likelihoods(network, mine, n=n)
        sums = torch.tensor([sum(values), len(values)], dtype=torch.float64, device=self._device)
        return self._mean(sums)

    def batches(
        self, rows: Sequence[TokenRow], *, size: int | None = None
    ) -> Iterator[tuple[list[int], Batch]]:
        """This rank's batches of some rows; see :func:`~core.data.batches.batches_by_length`."""
        return batches_by_length(
            rows,
            self._device,
            size=size or self._size,
            rank=self._group.rank,
            n_ranks=self._group.size,
        )

    @torch.no_grad()
    def _measured(
        self, forward: Forward, rows: Sequence[TokenRow], metrics: Sequence[str]
    ) -> Iterator[tuple[list[int], Mapping[str, Tensor]]]:
        """Places of the rows of each batch, and their metrics ``(B,)`` by name."""
        for places, batch in self.batches(rows):
            logits = forward(batch.ids, batch.mask)
            if not places:
                continue
            labels = {"answer": batch.labels, "text": batch.text_labels}
            chosen = {name: ROW_METRICS[name] for name in metrics}
            yield places, {n: m.compute(logits, labels[m.counts]) for n, m in chosen.items()}

    def _mean(self, sums: Tensor) -> float:
        total, count = self._group.sum(sums).tolist()
        return float(total / count)


def extraction_likelihoods(
    network: Any,
    rows: Sequence[TokenRow],
    *,
    n: int,
    done: Callable[[int], None] | None = None,
) -> list[float]:
    """EL_n of each row; NaN where it has not more than ``n`` tokens. ``done`` is called with 1 for each other row."""
    found = [math.nan] * len(rows)
    long = [i for i, row in enumerate(rows) if len(row.ids) > n]
    if not long:
        return found
    sequences = [rows[i].ids for i in long]
    size = rows_at_once(network, columns=max(map(len, sequences)), at_most=DECODED_AT_ONCE)
    continued = suffix_continuations(network, sequences, min_length=n, batch_size=size)
    for i, generated in zip(long, continued, strict=True):
        found[i] = extraction_likelihood(generated, rows[i].ids, n=n)
        if done is not None:
            done(1)
    return found
