"""Everything that determines one trial."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from core.config.adapter import AdapterConfig, FisherConfig
from core.config.data import DataConfig
from core.config.method import MethodConfig
from core.config.model import ModelConfig
from core.config.optimisation import BatchConfig, BatchPlan, EngineConfig, OptimizerConfig
from core.config.problems import describe_problems
from core.config.section import Section
from core.config.selection import SelectionConfig
from core.config.written_numbers import with_numbers
from core.errors import ConfigError


class TrialConfig(Section):
    """Everything that determines one trial."""

    model: ModelConfig
    data: DataConfig
    method: MethodConfig
    optimizer: OptimizerConfig
    adapter: AdapterConfig = AdapterConfig()
    fisher: FisherConfig = FisherConfig()
    batch: BatchConfig = BatchConfig(global_batch_size=8)
    selection: SelectionConfig
    engine: EngineConfig = EngineConfig()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of data order and adapter initialisation."""

    @model_validator(mode="after")
    def _cross_field_rules(self) -> Self:
        problems = []
        if self.optimizer.schedule == "linear" and self.selection.select != "last":
            problems.append(
                "optimizer.schedule: a schedule that depends on the horizon needs selection.select: last, "
                f"got select={self.selection.select}"
            )
        problems += self._combination_problems()
        if not self.batch.whole_forget_set:
            try:
                self.batch_plan()
            except ValueError as err:
                problems.append(str(err))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _combination_problems(self) -> list[str]:
        """What losses need, and what the full-parameter kind and partitioned weights rule out."""
        method, problems = self.method, []
        fitting = method.forget_facts.retain_losses
        if fitting is not None and method.retain_loss not in fitting:
            problems.append(
                f"method.retain_loss: {method.forget_loss} {method.forget_facts.because} and needs "
                f"{' or '.join(fitting)}, got {method.retain_loss}"
            )
        if (
            method.reads_alternatives
            and method.alternatives == "field"
            and self.data.forget.fields.alternative is None
        ):
            problems.append(
                "method.alternatives: field needs data.forget.fields.alternative, which names the field; add it, "
                "or use idk"
            )
        kind = self.adapter.kind
        if kind == "full" and method.adapter_init != "lora":
            problems.append(
                "method.adapter_init: adapter.kind: full has no adapter to initialise; leave it at lora, "
                f"got {method.adapter_init}"
            )
        if kind == "full" and self.engine.packing != 1:
            problems.append(
                "engine.packing: packs adapters on one frozen model, and adapter.kind: full has none; leave it "
                f"at 1, got {self.engine.packing}"
            )
        losses = (
            ("method.forget_loss", method.forget_loss, method.forget_facts),
            ("method.retain_loss", method.retain_loss, method.retain_facts),
        )
        problems += [
            f"{field}: {loss} {facts.because} and needs adapter.kind: {' or '.join(facts.adapter_kinds)}"
            for field, loss, facts in losses
            if facts is not None and kind not in facts.adapter_kinds
        ]
        if self.partitions != "nothing":
            whole = [f.title or n for _, n, f in losses if f is not None and f.needs_whole_weights]
            if kind == "full" and self.selection.metric == "forget_closure_at_utility":
                whole.append("forget_closure_at_utility of adapter.kind: full")
            if kind == "full" and (
                self.selection.landing is True or self.selection.metric == "drop_at_target"
            ):
                whole.append("selection.landing of adapter.kind: full")
            if any(rule.metric.startswith("el_") for rule in self.selection.stop_when):
                whole.append("the stop rule el_N")
            problems += [
                f"engine.zero_stage: {what} needs whole weights on each rank; at most 2, got 3"
                for what in dict.fromkeys(whole)
            ]
        return problems

    @property
    def lands(self) -> bool:
        """Whether the trial is scaled back onto its target when it ends past it."""
        chosen = self.selection
        if chosen.landing != "auto":
            return chosen.landing
        is_asked = chosen.metric == "drop_at_target" or (
            chosen.metric == "forget_closure" and chosen.past_target is not None
        )
        return is_asked and self.partitions != "copy"  # whose weights lie apart

    @property
    def partitions(self) -> Literal["nothing", "base", "copy"]:
        """What ZeRO 3 takes apart, so that each rank holds a part of every weight.

        ``base``: the target model itself, under an adapter; it is whole again only when loaded anew.
        ``copy``: the copy that the full-parameter kind trains; the target model stays whole.
        """
        if self.engine.zero_stage < 3:
            return "nothing"
        return "base" if self.adapter.kind == "lora" else "copy"

    def batch_plan(self, *, n_forget: int | None = None) -> BatchPlan:
        """The three batch numbers with the missing ones derived.

        Args:
            n_forget: Rows of the forget set; needed under ``batch.whole_forget_set``.

        Raises:
            ValueError: If the numbers do not divide.
        """
        batch = self.batch
        if batch.whole_forget_set:
            assert n_forget is not None  # only the worker plans such a batch
            batch = batch.model_copy(update={"global_batch_size": n_forget})
        return BatchPlan.derive(batch, ranks=self.engine.ranks)


def parse_trial(values: Mapping[str, Any], *, where: str) -> TrialConfig:
    """Build a :class:`TrialConfig` from plain values.

    Args:
        values: Nested mapping as read from YAML or JSON.
        where: The file or object that the values come from, for the error message.

    Raises:
        ConfigError: With every problem at once.
    """
    try:
        return TrialConfig.model_validate(with_numbers(values, TrialConfig))
    except ValidationError as err:
        raise ConfigError(where, describe_problems(err, TrialConfig)) from err
