"""What a model says of rows: all numbers of a row from one forward pass, and greedy continuations.

What a model without an adapter says of a row depends on the two alone, so it is an artifact: a model that others are
compared with is asked once, however many are.

Shapes: B rows, T tokens, V vocabulary.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from core.data.batches import Batch
from core.data.positions import refuse_long_pieces
from core.data.tokens import TokenRow
from core.measuring.meter import Meter, extraction_likelihoods
from core.metrics.memorization import (
    cut_generation,
)
from core.model.decoding import generate
from core.model.layers import n_positions
from core.model.loading import LoadedModel, forward_of
from core.store import artifacts
from core.suites.evaluation_rows import Example
from core.suites.pace import Pace
from core.training.ranks import Group

ANSWER_TOKENS = 200
"""An answer to a question has at most this many tokens, as in TOFU and OpenUnlearning."""


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What a model writes, and what stands there in truth."""

    written: str
    truth: str


class Subject:
    """A model that is evaluated. What it said once of rows is kept, so that suites share it.

    Attributes:
        name: How the user named it.
        network: The network, with its adapter where it has one; in evaluation mode.
        model: The model as it was loaded.
        batch_size: Rows of one forward pass, and prompts answered together.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        name: str,
        batch_size: int,
        network: nn.Module | None = None,
        has_adapter: bool = False,
        is_kept: bool = False,
        pace: Pace | None = None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            model: The model as it was loaded.
            name: How the user named it.
            batch_size: Rows of one forward pass.
            network: The one to look at, if not the model's own.
            has_adapter: Whether that has an adapter.
            is_kept: Whether what it says goes to the cache, and is looked for there: of a model as it was loaded.
            pace: Tells how far the work is.
        """
        self._pace = pace or Pace()
        self.name, self.model, self.batch_size = name, model, batch_size
        self.network = model.network if network is None else network
        self._has_adapter, self._is_kept = has_adapter, is_kept
        self._meter = Meter(model, Group(rank=0, size=1), batch_size=batch_size)
        self._read: dict[tuple[TokenRow, ...], dict[str, list[float]]] = {}
        self._written: dict[tuple[tuple[tuple[int, ...], ...], int], list[list[int]]] = {}

    def other(self, network: nn.Module, *, name: str) -> "Subject":
        """Another network of this architecture, without an adapter, under the same conditions."""
        return Subject(
            self.model, name=name, batch_size=self.batch_size, network=network, pace=self._pace
        )

    def merged_copy(self, dtype: torch.dtype) -> nn.Module:
        """A copy of the network with the adapter, where there is one, added to its weights in float32."""
        network: Any = copy.deepcopy(self.network).float()
        if self._has_adapter:
            network = network.merge_and_unload()
        copied: nn.Module = network.to(dtype).eval().requires_grad_(False)
        return copied

    def read(self, rows: Sequence[TokenRow], names: Sequence[str]) -> Mapping[str, list[float]]:
        """Numbers of each row, in the order of the rows.

        Args:
            rows: What is read; any order and lengths.
            names: Keys of :data:`~core.metrics.rows.ROW_METRICS`; those not known yet come from one pass.
        """
        refuse_long_pieces(rows, n_positions(self.model.network), what=self.name)
        known = self._read.setdefault(tuple(rows), {})
        missing = [name for name in names if name not in known]
        if missing:
            known |= self._measured(rows, missing)
        return {name: known[name] for name in names}

    def _measured(self, rows: Sequence[TokenRow], names: Sequence[str]) -> dict[str, list[float]]:
        def measure(places: Sequence[int]) -> list[Tensor]:
            with self._pace.stage("rows read", len(places), of=self.name) as done:
                chosen, forward = [rows[i] for i in places], forward_of(self.network)
                found = self._meter.row_values(forward, chosen, names, done=done)
            return list(torch.tensor([found[name] for name in names], dtype=torch.float64).T)

        values = self._said({"metrics": list(names)}, rows, measure)
        return {name: [float(value[i]) for value in values] for i, name in enumerate(names)}

    def extraction_likelihoods(self, rows: Sequence[TokenRow], *, n: int) -> list[float]:
        """EL_n of each row; NaN where it has not more than ``n`` tokens."""

        def measure(places: Sequence[int]) -> list[Tensor]:
            chosen = [rows[i] for i in places]
            n_long = sum(len(row.ids) > n for row in chosen)
            with self._pace.stage("rows continued everywhere", n_long, of=self.name) as done:
                found = extraction_likelihoods(self.network, chosen, n=n, done=done)
            return list(torch.tensor(found, dtype=torch.float64))

        return [float(value) for value in self._said({"extraction_likelihood": n}, rows, measure)]

    def continuations(
        self,
        examples: Sequence[Example],
        *,
        answer_tokens: int = ANSWER_TOKENS,
        document_tokens: int | None = None,
        stops: Sequence[str] = (),
    ) -> list[Continuation]:
        """Greedy answers to prompts; of a document, what follows its first half.

        Args:
            examples: Rows. The prompt's tokens, or the first half of a document's, rounded down but at
                least one, are given.
            answer_tokens: An answer has at most this many tokens. Less where the model has no positions
                left. A token that ends a text or a turn ends it.
            document_tokens: A document is continued by at most this many, and the truth is cut to as many;
                by as many as its second half has if absent.
            stops: Strings that end what is written.
        """
        found = [Continuation(written="", truth="")] * len(examples)
        asked = [i for i, example in enumerate(examples) if example.prompt is not None]
        answers = self._greedy([examples[i].given_ids for i in asked], max_new_tokens=answer_tokens)
        for i, ids in zip(asked, answers, strict=True):
            found[i] = self._continuation(ids, examples[i].answer, stops)
        documents = [i for i, example in enumerate(examples) if example.prompt is None]
        truths = [examples[i].rest_ids[:document_tokens] for i in documents]
        continued = self._greedy(
            [examples[i].given_ids for i in documents],
            max_new_tokens=max(map(len, truths), default=1),
        )
        for i, ids, truth in zip(documents, continued, truths, strict=True):
            found[i] = self._continuation(ids[: len(truth)], self.decoded(truth), stops)
        return found

    def _continuation(self, ids: Sequence[int], truth: str, stops: Sequence[str]) -> Continuation:
        return Continuation(written=cut_generation(self.decoded(ids), stops=stops), truth=truth)

    def decoded(self, ids: Sequence[int]) -> str:
        """Text of token ids, without the special ones."""
        return str(self.model.tokenizer.decode(list(ids), skip_special_tokens=True))

    def logits(self, batch: Batch) -> Tensor:
        """Logits ``(B, T, V)``."""
        return forward_of(self.network)(batch.ids, batch.mask)

    def batches(
        self, rows: Sequence[TokenRow], *, size: int | None = None
    ) -> Iterator[tuple[list[int], Batch]]:
        """Batches by length, so that little is padding, with the places of their rows."""
        with self._pace.stage("rows differentiated", len(rows), of=self.name) as done:
            for places, batch in self._meter.batches(rows, size=size):
                yield places, batch
                done(len(places))

    def _greedy(
        self, prompts: Sequence[tuple[int, ...]], *, max_new_tokens: int
    ) -> list[list[int]]:
        if not prompts:
            return []
        room = self._positions - max(map(len, prompts))
        key = (tuple(prompts), max(1, min(max_new_tokens, room)))
        if key not in self._written:

            def write(places: Sequence[int]) -> list[Tensor]:
                chosen = [prompts[i] for i in places]
                written = self._decoded_by_length(chosen, max_new_tokens=key[1])
                return [torch.tensor(ids, dtype=torch.int64) for ids in written]

            what = {"continued_by": key[1], "stops": sorted(self._stop_ids)}
            rows = [TokenRow(ids, n_context=len(ids)) for ids in prompts]
            self._written[key] = [ids.tolist() for ids in self._said(what, rows, write)]
        return self._written[key]

    def _said(
        self,
        what: Mapping[str, Any],
        rows: Sequence[TokenRow],
        say: Callable[[Sequence[int]], Sequence[Tensor]],
    ) -> Sequence[Tensor]:
        """A tensor of each row, from the cache where the subject is kept.

        Args:
            what: What is said of a row, and everything beside row and model that determines it.
            rows: The rows; a prompt is one of which nothing is predicted.
            say: Tensors of the rows at some places.
        """
        if not self._is_kept:
            return say(range(len(rows)))
        keys = [artifacts.row_key(row.ids, n_context=row.n_context) for row in rows]
        place = {key: i for i, key in enumerate(keys)}

        def say_missing(missing: Sequence[str]) -> Mapping[str, Tensor]:
            return dict(zip(missing, say([place[key] for key in missing]), strict=True))

        determinants = {**self.model.determinants, **what}
        return artifacts.tensors_by_row("evaluations", determinants, keys, say_missing)

    def _decoded_by_length(
        self, prompts: Sequence[tuple[int, ...]], *, max_new_tokens: int
    ) -> list[list[int]]:
        """Greedy answers, batch by batch, so that one can tell how far it is."""
        answers: list[list[int]] = [[] for _ in prompts]
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        with self._pace.stage("answers written", len(prompts), of=self.name) as done:
            for start in range(0, len(prompts), self.batch_size):
                chosen = by_length[start : start + self.batch_size]
                written = generate(
                    self.network,
                    [prompts[i] for i in chosen],
                    max_new_tokens=max_new_tokens,
                    stop_ids=self._stop_ids,
                    batch_size=self.batch_size,
                )
                for i, answer in zip(chosen, written, strict=True):
                    answers[i] = answer
                done(len(chosen))
        return answers

    @property
    def _positions(self) -> int:
        config = cast(Any, self.model.network).config.get_text_config()
        meant = int(getattr(config, "max_position_embeddings", None) or 2**31)
        return min(meant, n_positions(self.model.network) or meant)

    @property
    def _stop_ids(self) -> set[int]:
        """End of text, and of a chat turn where the model's generation configuration names it."""
        ends = cast(Any, self.model.network).generation_config.eos_token_id
        listed = ends if isinstance(ends, list) else [ends]
        return {i for i in (*listed, self.model.tokenizer.eos_token_id) if i is not None}
