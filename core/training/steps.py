"""One optimiser step: which rows it reads, what the losses see, and the dual variable of ``pdu``.

A step is the same whatever the micro-batches and ranks: each micro-batch gives its share of the global
loss.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from core.config import BatchPlan, TrialConfig
from core.data.alternatives import alternative_rows
from core.data.splits import refuse_small_retain
from core.data.tokens import TokenRow, TokenSplits, collate, reading_order
from core.errors import DataError, ModelError
from core.losses import (
    FORGET_LOSSES,
    RETAIN_LOSSES,
    Need,
    Outputs,
    Reduction,
    Residual,
    dual_update,
    random_labels,
)
from core.model.layers import n_blocks
from core.model.loading import Forward, LoadedModel, forward_of, vocabulary_size
from core.seeding import derive_seed
from core.training.adapter import DifferenceAdapter
from core.training.engine import Engine
from core.training.full_parameters import FullParameters
from core.training.ranks import Group
from core.training.reference import Reference

Trained = DifferenceAdapter | FullParameters


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Rows that a step reads from one role, and what the loss needs of them."""

    rows: Sequence[TokenRow]
    needs: frozenset[Need]
    reference: Reference


class Steps:
    """The training side of one trial: rows, reference terms and loss. Made before anything is attached."""

    def __init__(self, config: TrialConfig, model: LoadedModel, data: TokenSplits) -> None:
        """Choose the rows and compute, or find in the cache, what the reference model says of them.

        Raises:
            DataError: If a role has too few rows, or an alternative answer is missing.
            ModelError: If ``method.rmu.layer`` is no block before the last.
        """
        method = config.method
        self._config, self._model = config, model
        self.plan = _plan(config, data)
        self._forget_loss = FORGET_LOSSES[method.forget_loss]
        self._retain_loss = RETAIN_LOSSES[method.retain_loss]
        self.retain_weight = method.retain_weight
        self._n_steps = 0
        retain_needs = self._retain_loss.needs if self._retain_loss else frozenset()
        needs = self._forget_loss.needs | retain_needs
        self._block = _block(config, model) if needs & {"hidden", "reference_hidden"} else None
        self._control: Tensor | None = None
        self._directions: dict[str, Tensor] = {}
        self._taps = "residuals" in needs

        forget = data["forget"]
        self._refuse_rows_left_alone(forget)
        self._forget = self._part(forget, self._forget_loss.needs)
        self._alternatives: dict[TokenRow, TokenRow] = {}
        self._alternative: _Part | None = None
        if self._forget_loss.reads != "forget":
            others = alternative_rows(
                data.forget_rows,
                model.tokenizer,
                config.data,
                alternatives=method.alternatives,
                seed=derive_seed(config.data.split_seed, "alternatives"),
            )
            self._alternatives = dict(zip(forget, others, strict=True))
            self._alternative = self._part(others, self._forget_loss.needs)
        self._forget_order = reading_order(forget, seed=config.seed, purpose="forget")

        self._retain: _Part | None = None
        self._retain_order: Iterator[TokenRow] = iter(())
        if self._retain_loss is not None:
            rows = self._retain_rows(data)
            self._retain_order = reading_order(rows, seed=config.seed, purpose="retain")
            n_read = config.selection.max_steps * self.plan.global_batch_size
            again = reading_order(rows, seed=config.seed, purpose="retain")
            self._retain = self._part(list(dict.fromkeys(islice(again, n_read))), retain_needs)
        self._prepare_terms()

    def train(self, engine: Engine, trained: Trained, group: Group) -> None:
        """Make one optimiser step."""
        plan = self.plan
        forget = list(islice(self._forget_order, plan.global_batch_size))
        retain = list(islice(self._retain_order, plan.global_batch_size))
        first = [self._alternatives[r] for r in forget] if self._reads_alternatives_only else forget
        n_forget = self._count_forget(first)
        n_retain = _count(retain, self._retain_loss.reduction) if self._retain_loss else 0
        kept_sum = torch.zeros(1, dtype=torch.float64, device=self._model.device)

        def share(mine: slice) -> Tensor:
            loss, kept = self._loss(engine, trained, forget[mine], retain[mine])
            part = self._count_forget(first[mine]) / n_forget
            loss = loss * (self._config.method.forget_weight * part)
            if kept is not None and self._retain_loss is not None:
                kept = kept * (_count(retain[mine], self._retain_loss.reduction) / n_retain)
                kept_sum.add_(kept.detach().double())
                loss = loss + self.retain_weight * kept
            return loss

        size = plan.micro_batch_size
        starts = (
            (i * plan.ranks + group.rank) * size for i in range(plan.gradient_accumulation_steps)
        )
        engine.step(partial(share, slice(start, start + size)) for start in starts)
        self._n_steps += 1
        pdu = self._config.method.pdu
        if self._config.method.forget_loss == "pdu" and self._n_steps > pdu.warmup_steps:
            retain_loss = float(group.sum(kept_sum))  # the whole batch's, the same on every rank
            if math.isfinite(retain_loss):
                self.retain_weight = dual_update(
                    self.retain_weight, retain_loss, limit=pdu.retain_limit, step=pdu.dual_step
                )

    def state(self) -> dict[str, float]:
        """What a probe records of the training itself: the dual variable under ``pdu``."""
        is_dual = self._config.method.forget_loss == "pdu"
        return {"dual_variable": self.retain_weight} if is_dual else {}

    def _count_forget(self, rows: Sequence[TokenRow]) -> int:
        left_alone = self._forget_loss.left_alone(self._config.method)
        return _count(rows, self._forget_loss.reduction, left_alone=left_alone)

    def _refuse_rows_left_alone(self, rows: Sequence[TokenRow]) -> None:
        """Refuse forget rows of which the loss would leave every token alone.

        Raises:
            DataError: If there is one.
        """
        for row in rows:
            if self._count_forget([row]) < 1:
                raise DataError(
                    f"data.forget: a row of {len(row.ids)} tokens, {row.n_context} of them context, has none "
                    f"left after method.ceu.ignore_first_tokens={self._config.method.ceu.ignore_first_tokens}; "
                    "drop the row, or ignore fewer"
                )

    @property
    def _reads_alternatives_only(self) -> bool:
        return self._forget_loss.reads == "alternative"

    def _loss(
        self,
        engine: Engine,
        trained: Trained,
        forget_rows: Sequence[TokenRow],
        retain_rows: Sequence[TokenRow],
    ) -> tuple[Tensor, Tensor | None]:
        """Forget and retain loss of a micro-batch, by one forward pass over all of its rows."""
        parts: list[tuple[_Part, Sequence[TokenRow]]] = []
        if not self._reads_alternatives_only:
            parts.append((self._forget, forget_rows))
        if self._alternative is not None:
            parts.append((self._alternative, [self._alternatives[r] for r in forget_rows]))
        if self._retain is not None:
            parts.append((self._retain, retain_rows))
        batch = collate([row for _, rows in parts for row in rows], self._model.device)
        taken: Mapping[str, list[tuple[Tensor, Tensor]]] = {}
        if self._taps:
            assert isinstance(trained, DifferenceAdapter)  # the configuration checks it
            with trained.tapped() as taken:
                logits, hidden = engine.forward(batch.ids, batch.mask, block=self._block)
        else:
            logits, hidden = engine.forward(batch.ids, batch.mask, block=self._block)

        if hidden is not None and self._control is None:
            self._control = self._control_vector(hidden.shape[-1])
        found, start = [], 0
        for part, rows in parts:
            at = slice(start, start + len(rows))
            start += len(rows)
            longest = max(len(row.ids) for row in rows)
            found.append(
                self._outputs(
                    part,
                    rows,
                    logits=logits[at, :longest],
                    labels=batch.labels[at, :longest],
                    hidden=None if hidden is None else hidden[at, :longest],
                    residuals=self._residuals(taken, at, longest),
                    live=partial(self._live_logits, engine, trained),
                )
            )
        method = self._config.method
        kept = None
        if self._retain_loss is not None:
            kept = self._retain_loss.compute(found.pop(), method)
        alternative = found.pop() if self._alternative is not None else None
        return self._forget_loss.compute(found[0] if found else None, alternative, method), kept

    def _outputs(
        self,
        part: _Part,
        rows: Sequence[TokenRow],
        *,
        logits: Tensor,
        labels: Tensor,
        hidden: Tensor | None,
        residuals: Sequence[Residual],
        live: Forward,
    ) -> Outputs:
        needs, reference = part.needs, part.reference
        other = None
        if "adversarial_labels" in needs:
            other = reference.adversarial_labels(rows)
        elif "random_labels" in needs:
            other = self._random_labels(rows, labels)
        reference_logits = None
        if "reference_logits" in needs:
            if self._is_cached_in_logits(reference):
                reference_logits = reference.logits(rows)
            else:
                batch = collate(rows, self._model.device)
                reference_logits = live(batch.ids, batch.mask)
        return Outputs(
            logits_BTV=logits,
            labels_BT=labels,
            reference_nll_B=reference.nll(rows) if "reference_nll" in needs else None,
            reference_logits_BTV=reference_logits,
            hidden_BTD=hidden,
            reference_hidden_BTD=reference.hidden(rows) if "reference_hidden" in needs else None,
            control_D=self._control,
            residuals=residuals,
            other_labels_BT=other,
        )

    def _residuals(
        self, taken: Mapping[str, list[tuple[Tensor, Tensor]]], at: slice, longest: int
    ) -> Sequence[Residual]:
        found = []
        for name, pairs in taken.items():
            added, base = pairs[-1]
            if name not in self._directions:
                self._directions[name] = self._direction(name, added.shape[-1])
            found.append(
                Residual(
                    added_BTO=added[at, :longest],
                    base_BTO=base[at, :longest],
                    direction_O=self._directions[name],
                )
            )
        return found

    def _live_logits(self, engine: Engine, trained: Trained, ids: Tensor, mask: Tensor) -> Tensor:
        with torch.no_grad():
            if isinstance(trained, FullParameters):  # the target model itself is still there
                return forward_of(self._model.network)(ids, mask)
            with trained.disabled():
                return forward_of(engine.module)(ids, mask)

    def _is_cached_in_logits(self, reference: Reference) -> bool:
        """Under ZeRO 3 the output layer of the base model is partitioned: it is asked through the engine."""
        is_partitioned = self._config.engine.zero_stage == 3 and self._config.adapter.kind == "lora"
        return not is_partitioned and reference.gives_logits

    def _part(self, rows: Sequence[TokenRow], needs: frozenset[Need]) -> _Part:
        reference = Reference(self._model, rows, block=self._block)
        return _Part(rows=rows, needs=needs, reference=reference)

    def _prepare_terms(self) -> None:
        """Compute what is missing in the cache now, while nothing is attached to the model."""
        for part in (self._forget, self._alternative, self._retain):
            if part is None:
                continue
            rows = part.rows[:1]
            if "reference_nll" in part.needs:
                part.reference.nll(rows)
            if "adversarial_labels" in part.needs:
                part.reference.adversarial_labels(rows)
            if "reference_hidden" in part.needs:
                part.reference.hidden(rows)
            if "reference_logits" in part.needs and self._is_cached_in_logits(part.reference):
                part.reference.logits(rows)

    def _retain_rows(self, data: TokenSplits) -> Sequence[TokenRow]:
        is_own = self._config.method.retain_source == "in_distribution"
        role = "retain" if is_own else "general"
        rows = data[f"{role}_train"]
        if not rows:
            raise DataError(
                f"data.{role}: no row is left to train on after data.probe_rows and data.report_rows, and "
                f"method.retain_source={self._config.method.retain_source} reads them; give more rows, or "
                "lower data.probe_rows or data.report_rows"
            )
        refuse_small_retain(len(rows), self.plan.global_batch_size, role=role)
        return rows

    def _random_labels(self, rows: Sequence[TokenRow], labels: Tensor) -> Tensor:
        """Drawn once for each row, whatever batch it is in."""
        vocabulary = vocabulary_size(self._model.network)
        drawn = torch.full_like(labels, 0)
        for i, row in enumerate(rows):
            seed = derive_seed(self._config.seed, "random labels", str(row.ids))
            drawn[i : i + 1] = random_labels(labels[i : i + 1], vocabulary=vocabulary, seed=seed)
        return drawn

    def _control_vector(self, width: int) -> Tensor:
        """RMU's: uniform entries, normalised to length ``rmu.steering``."""
        generator = torch.Generator().manual_seed(derive_seed(self._config.seed, "control"))
        vector = torch.rand(width, generator=generator)
        length = float(vector.norm())
        return (vector * (self._config.method.rmu.steering / length)).to(self._model.device)

    def _direction(self, name: str, size: int) -> Tensor:
        seed = derive_seed(self._config.seed, "residual direction", name)
        drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed))
        return (drawn / drawn.square().mean().sqrt()).to(self._model.device)


def _plan(config: TrialConfig, data: TokenSplits) -> BatchPlan:
    try:
        return config.batch_plan(n_forget=len(data["forget"]))
    except ValueError as err:
        raise DataError(
            f"batch.whole_forget_set: the {len(data['forget'])} forget rows must be micro_batch_size x "
            f"gradient_accumulation_steps x ranks, got micro_batch_size={config.batch.micro_batch_size} and "
            f"{config.engine.ranks} ranks; choose a divisor"
        ) from err


def _block(config: TrialConfig, model: LoadedModel) -> int:
    """The block whose output is steered; the last one's passes the final norm and is no such place."""
    blocks = n_blocks(model.network)
    layer = config.method.rmu.layer
    if layer is None:
        layer = min(blocks // 3, max(0, blocks - 2))
    if layer >= blocks - 1:
        raise ModelError(
            f"method.rmu.layer: must lie in [0, {blocks - 2}] for a model of {blocks} blocks, got {layer}"
        )
    return layer


def _count(rows: Sequence[TokenRow], reduction: Reduction, *, left_alone: int = 0) -> int:
    """What a loss averages over: rows, or their counted tokens without the first ``left_alone``."""
    if reduction == "sequence":
        return len(rows)
    return sum(max(0, len(r.ids) - max(1, r.n_context + left_alone)) for r in rows)
