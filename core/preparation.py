"""Make the models that unlearning is measured between: TOFU's protocol on any base model and data.

The *target model* is fine-tuned on forget and retain rows, so that it really memorises both; the
*retain-only model* is fine-tuned in the same way on the retain rows alone. Both are ordinary model
folders, cached by content.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from torch import Tensor

from core.config import BatchPlan, ModelConfig, PreparationConfig
from core.data.batches import reading_order
from core.data.counts import Counts
from core.data.positions import refuse_long
from core.data.sources import read_rows
from core.data.splits import count, refuse_overlap, usable
from core.data.taught import record_wording
from core.data.tokens import TokenisedRow, TokenRow, tokenise_row
from core.errors import DataError, ModelError
from core.losses import nll_loss
from core.measuring.meter import Meter
from core.metrics.probes import Level
from core.model.layers import n_positions, vocabulary_size
from core.model.loading import LoadedModel, forward_of, load_model
from core.store import artifacts
from core.training.engine import Engine
from core.training.full_parameters import FullParameters
from core.training.passes import Forwarded, MicroBatch, Part
from core.training.ranks import Group, join_alone

Which = Literal["target", "retain_only"]

VERSION = 2
"""Raised when the training changes: the cache outlives releases."""


@dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """A model that was made, or found in the cache.

    Attributes:
        which: ``target`` or ``retain_only``.
        folder: An ordinary model folder.
        forget: Level on the forget rows.
        retain: Level on the retain rows.
        counts: Role to what was read of it and what is left out; equal rows are all trained on.
    """

    which: Which
    folder: Path
    forget: Level
    retain: Level
    counts: dict[str, Counts] = field(default_factory=dict)


def prepare_model(
    config: PreparationConfig, which: Which, *, tell: Callable[[int, int, float], None]
) -> PreparedModel:
    """Make the target or the retain-only model, unless the cache has it.

    Args:
        config: Base model, rows and training.
        which: Which of the two.
        tell: Called after each step with the step, the number of steps and the loss in nats per token.

    Returns:
        The folder, and how well its model predicts both sets.

    Raises:
        DataError: If rows are missing or fewer than a batch, or the two sets share a row of token ids.
        ModelError: If the base model cannot be loaded, or training diverges.
    """
    group, _meeting = join_alone(config.engine)
    base = load_model(config.model, config.engine)
    read = {role: _tokenised(config, role, base) for role in ("forget", "retain")}
    for role, found in read.items():
        usable(found, role=role)
    refuse_overlap(read)  # the retain-only model must never see the forget set
    rows = {role: [p for row in found for p in row.pieces] for role, found in read.items()}
    n_rows, batch_rows = len(rows["retain"]), config.batch_plan().global_batch_size
    if n_rows < batch_rows:  # also for the target: the two belong together
        raise DataError(
            f"data.retain: {n_rows} rows to train on are fewer than the {batch_rows} of one optimiser step; "
            "give more rows, or lower training.batch.global_batch_size"
        )
    trained_on = (*rows["forget"], *rows["retain"]) if which == "target" else rows["retain"]
    key = artifacts.content_key(
        {
            "version": VERSION,
            "model": base.identity,
            "dtype": str(base.dtype),
            "device": base.device.type,
            "rows": [(row.ids, row.n_context) for row in trained_on],
            "training": config.training.model_dump(mode="json"),
            "seed": config.seed,
        }
    )
    folder = artifacts.folder(
        "prepared",
        f"{which}-{key}",
        lambda path: _train(config, base, trained_on, group, path, tell),
    )
    made = load_model(ModelConfig(source=str(folder)), config.engine)
    meter = Meter(made, group, batch_size=config.training.batch.probe_batch_size)
    forward = forward_of(made.network)
    return PreparedModel(
        which=which,
        folder=folder,
        forget=meter.level(forward, rows["forget"]),
        retain=meter.level(forward, rows["retain"]),
        counts={role: count(found, rows[role]) for role, found in read.items()},
    )


def _tokenised(config: PreparationConfig, role: str, base: LoadedModel) -> list[TokenisedRow]:
    vocabulary = vocabulary_size(base.network)
    found = [
        tokenise_row(row, base.tokenizer, config=config.data, role=role, vocabulary=vocabulary)
        for row in read_rows(getattr(config.data, role), role=role)
    ]
    refuse_long(found, n_positions(base.network), role=role)
    return found


def _train(
    config: PreparationConfig,
    base: LoadedModel,
    rows: Sequence[TokenRow],
    group: Group,
    folder: Path,
    tell: Callable[[int, int, float], None],
) -> None:
    plan = config.batch_plan()
    n_steps = math.ceil(len(rows) * config.training.epochs / plan.global_batch_size)
    copy = FullParameters.copied(base)
    engine = Engine(
        copy,
        engine=config.engine,
        optimizer=config.training.optimizer,
        plan=plan,
        max_steps=n_steps,
        model=base,
        group=group,
    )
    try:
        order = reading_order(rows, seed=config.seed, purpose="prepare")
        for step in range(1, n_steps + 1):
            loss = _step(engine, list(islice(order, plan.global_batch_size)), plan)
            if not math.isfinite(loss):
                raise _diverged(config, f"the loss is {loss} at step {step} of {n_steps}")
            tell(step, n_steps, loss)
        meter = Meter(base, group, batch_size=config.training.batch.probe_batch_size)
        reached = meter.level(forward_of(engine.module), rows).nll
        if not reached <= math.log(vocabulary_size(base.network)):
            raise _diverged(
                config, f"{reached:.3f} nats per token, worse than guessing, are reached"
            )
        copy.write(folder, copy.exported(engine.full_value))
        if any(row.n_context for row in rows):
            record_wording(config.data, folder)
    finally:
        engine.destroy()
        copy.detach()


def _diverged(config: PreparationConfig, what: str) -> ModelError:
    rate = config.training.optimizer.learning_rate
    return ModelError(f"training.optimizer.learning_rate: {what}; lower it, got {rate}")


def _step(engine: Engine, rows: Sequence[TokenRow], plan: BatchPlan) -> float:
    n_counted = sum(row.n_counted for row in rows)
    total = 0.0

    def micro_batch(mine: Sequence[TokenRow]) -> MicroBatch:
        def share(forwarded: Sequence[Forwarded]) -> Tensor:
            nonlocal total
            (found,) = forwarded
            part = sum(row.n_counted for row in mine) / n_counted
            loss = nll_loss(found.logits_NV, found.labels_BT) * part
            total += float(loss.detach())
            return loss

        return MicroBatch(parts=[Part(rows=mine)], share=share)

    size = plan.micro_batch_size
    engine.step(micro_batch(rows[i : i + size]) for i in range(0, len(rows), size))
    return total
