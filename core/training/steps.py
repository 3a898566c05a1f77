"""One optimiser step: which rows it reads, and what is computed of the model's outputs.

A step is the same whatever the micro-batches and ranks: each micro-batch gives its share of the global
loss. The engine runs the model.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice

import torch
from torch import Tensor

from core.config import BatchPlan, TrialConfig
from core.config.method import Need, Reduction
from core.data.batches import reading_order
from core.data.splits import refuse_small_retain
from core.data.tokens import TokenRow, TokenSplits
from core.errors import DataError, ModelError
from core.losses import FORGET_LOSSES, RETAIN_LOSSES, ForgetLoss, Outputs, RetainLoss
from core.model.layers import blocks_up_to
from core.model.loading import LoadedModel
from core.training.needs import (
    PROVIDERS,
    Alternatives,
    NeedProvider,
    Surroundings,
    steered_block,
)
from core.training.passes import Forwarded, MicroBatch, Part, Runner, Wanted
from core.training.ranks import Group
from core.training.reference import Reference
from core.training.retain_weight import retain_weight

Rows = Sequence[TokenRow]


@dataclass(frozen=True, kw_only=True)
class _Role:
    """Rows that steps read from one role, and who meets the loss's needs for them.

    Attributes:
        read: This role's rows of a batch, from the batch's forget and retain rows.
        providers: Who meets each need.
    """

    read: Callable[[Rows, Rows], Rows]
    providers: dict[Need, NeedProvider]

    def part(self, rows: Rows) -> Part:
        """Some of the rows, with what the needs want of a forward pass."""
        wanted = (provider.wanted for provider in self.providers.values())
        return Part(rows=rows, wanted=reduce(Wanted.and_also, wanted, Wanted()))

    def outputs(self, rows: Rows, forwarded: Forwarded) -> Outputs:
        """What the loss sees of those rows."""
        return Outputs(
            logits=forwarded.logits_NV,
            labels_BT=forwarded.labels_BT,
            given={need: p.give(rows, forwarded) for need, p in self.providers.items()},
        )


class Steps:
    """The training side of one trial: rows, needs and losses. Prepared before anything is attached."""

    def __init__(self, config: TrialConfig, model: LoadedModel, data: TokenSplits) -> None:
        """Choose the rows; nothing is computed yet.

        Raises:
            DataError: If a role has too few rows, or an alternative answer is missing.
            ModelError: If ``method.rmu.layer`` is no block before the last.
        """
        method = config.method
        self._config, self._model = config, model
        self.plan = _plan(config, data)
        self._forget_loss: ForgetLoss = FORGET_LOSSES[method.forget_loss]
        self._retain_loss: RetainLoss | None = RETAIN_LOSSES[method.retain_loss]
        self._retain_weight = retain_weight(method)

        forget, needs = data["forget"], self._forget_loss.needs
        self._refuse_rows_left_alone(forget)
        self._forget_order = reading_order(forget, seed=config.seed, purpose="forget")
        self._retain_order: Iterator[TokenRow] = iter(())
        self._roles: dict[str, _Role] = {}
        if self._forget_loss.reads != "alternative":
            self._roles["forget"] = self._role(forget, needs, read=lambda rows, _: rows)
        if method.reads_alternatives:
            others = Alternatives(config, model, data)
            self._roles["alternative"] = self._role(
                others.rows, needs, read=lambda rows, _: others.give(rows)
            )
        if self._retain_loss is not None:
            rows = self._retain_rows(data)
            self._retain_order = reading_order(rows, seed=config.seed, purpose="retain")
            n_read = config.selection.max_steps * self.plan.global_batch_size
            again = reading_order(rows, seed=config.seed, purpose="retain")
            read = list(dict.fromkeys(islice(again, n_read)))
            self._roles["retain"] = self._role(
                read, self._retain_loss.needs, read=lambda _, rows: rows
            )

    def prepare(self) -> None:
        """Compute, or find in the cache, what the needs can know now, while nothing is attached."""
        for role in self._roles.values():
            for provider in role.providers.values():
                provider.prepare()

    def train(self, engine: Runner, group: Group) -> None:
        """Have ``engine`` make one optimiser step."""
        engine.step(self.next_step(group))
        self.after_step(group)

    def next_step(self, group: Group) -> Iterator[MicroBatch]:
        """What the next optimiser step reads and computes on this rank; :meth:`after_step` follows it."""
        plan, method = self.plan, self._config.method
        forget = list(islice(self._forget_order, plan.global_batch_size))
        retain = list(islice(self._retain_order, plan.global_batch_size))
        n_forget, n_retain = self._n_forgotten(forget), self._n_retained(retain)
        kept_sum = torch.zeros(1, dtype=torch.float64, device=self._model.device)
        self._kept_sum = kept_sum

        def micro_batch(mine: slice) -> MicroBatch:
            rows = {
                name: role.read(forget[mine], retain[mine]) for name, role in self._roles.items()
            }

            def share(forwarded: Sequence[Forwarded]) -> Tensor:
                seen = {
                    name: self._roles[name].outputs(rows[name], found)
                    for name, found in zip(rows, forwarded, strict=True)
                }
                loss = self._forget_loss.compute(
                    seen.get("forget"), seen.get("alternative"), method
                )
                part = self._n_forgotten(forget[mine]) / n_forget
                loss = loss * (method.forget_weight * part)
                if self._retain_loss is not None:
                    kept = self._retain_loss.compute(seen["retain"], method)
                    kept = kept * (self._n_retained(retain[mine]) / n_retain)
                    kept_sum.add_(kept.detach().double())
                    loss = loss + self._retain_weight.value * kept
                return loss

            parts = [self._roles[name].part(found) for name, found in rows.items()]
            return MicroBatch(parts=parts, share=share)

        size = plan.micro_batch_size
        starts = (
            (i * plan.ranks + group.rank) * size for i in range(plan.gradient_accumulation_steps)
        )
        return (micro_batch(slice(start, start + size)) for start in starts)

    def after_step(self, group: Group) -> None:
        """Take notice of a step that was made."""
        # the whole batch's, the same on every rank
        self._retain_weight.after_step(lambda: float(group.sum(self._kept_sum)))

    def refuse_unmoved(self, layers: Sequence[str]) -> None:
        """Refuse a trial of which some adapted layers got no gradient in its first step.

        Layers after the block that every loss ends at get none, and neither need experts and their routers:
        a batch may choose others.

        Args:
            layers: Names of the adapted layers that the first step has not moved.

        Raises:
            ModelError: If there are others.
        """
        losses = [loss.facts for loss in (self._forget_loss, self._retain_loss) if loss is not None]
        is_free = re.compile(r"(^|\.)[^.]*(expert|router|gate)s?(\.|$)").search
        missed = [name for name in layers if not is_free(name)]
        if all(facts.ends_at_block for facts in losses):
            reached = blocks_up_to(self._model.network, steered_block(self._config, self._model))
            missed = [name for name in missed if name.startswith(reached)]
        if missed:
            more = f" and {len(missed) - 3} more" if len(missed) > 3 else ""
            raise ModelError(
                f"adapter.targets: no gradient reached {', '.join(missed[:3])}{more} in the first step, so these "
                "layers would never be trained; leave them out with adapter.targets or adapter.layers, or check "
                "that method.forget_weight, the losses and the model use them"
            )

    def state(self) -> dict[str, float]:
        """What a probe records of the training itself; with the number of steps it is all that they remember."""
        return self._retain_weight.state()

    def go_on_from(self, state: Mapping[str, float], *, step: int) -> None:
        """Be as after ``step`` steps, when :meth:`state` gave ``state``: what they read follows from the seed."""
        n_read = step * self.plan.global_batch_size
        for order in (self._forget_order, self._retain_order):
            deque(islice(order, n_read), maxlen=0)
        self._retain_weight.go_on_from(state, step=step)

    def _n_forgotten(self, forget: Rows) -> int:
        """What the forget loss averages over, of a batch's forget rows or of their alternatives."""
        counted = "alternative" if self._forget_loss.reads == "alternative" else "forget"
        return self._n_counted(self._roles[counted].read(forget, ()))

    def _n_counted(self, rows: Rows) -> int:
        left_alone = self._config.method.n_left_alone
        return _count(rows, self._forget_loss.reduction, left_alone=left_alone)

    def _n_retained(self, rows: Rows) -> int:
        return _count(rows, self._retain_loss.reduction) if self._retain_loss else 0

    def _role(
        self, rows: Rows, needs: frozenset[Need], *, read: Callable[[Rows, Rows], Rows]
    ) -> _Role:
        around = Surroundings(
            config=self._config, model=self._model, reference=Reference(self._model, rows)
        )
        return _Role(read=read, providers={n: PROVIDERS[n](around) for n in sorted(needs)})

    def _refuse_rows_left_alone(self, rows: Rows) -> None:
        """Refuse forget rows of which the loss would leave every token alone.

        Raises:
            DataError: If there is one.
        """
        method = self._config.method
        for row in rows:
            if self._n_counted([row]) < 1:
                raise DataError(
                    f"data.forget: a row of {len(row.ids)} tokens, {row.n_context} of them context, has none "
                    f"left after method.{method.forget_facts.left_alone}={method.n_left_alone}; "
                    "drop the row, or ignore fewer"
                )

    def _retain_rows(self, data: TokenSplits) -> Rows:
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


def _plan(config: TrialConfig, data: TokenSplits) -> BatchPlan:
    try:
        return config.batch_plan(n_forget=len(data["forget"]))
    except ValueError as err:
        raise DataError(
            f"batch.whole_forget_set: the {len(data['forget'])} forget rows must be micro_batch_size x "
            f"gradient_accumulation_steps x ranks, got micro_batch_size={config.batch.micro_batch_size} and "
            f"{config.engine.ranks} ranks; choose a divisor"
        ) from err


def _count(rows: Rows, reduction: Reduction, *, left_alone: int = 0) -> int:
    """What a loss averages over: rows, or their counted tokens without the first ``left_alone``."""
    if reduction == "sequence":
        return len(rows)
    return sum(max(0, len(r.ids) - max(1, r.n_context + left_alone)) for r in rows)
