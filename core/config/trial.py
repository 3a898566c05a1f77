"""Everything that determines one trial."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from core.config.adapter import AdapterConfig, FisherConfig
from core.config.data import DataConfig
from core.config.method import MethodConfig
from core.config.model import ModelConfig
from core.config.optimisation import BatchConfig, BatchPlan, EngineConfig, OptimizerConfig
from core.config.problems import describe_problems
from core.config.section import Section
from core.config.selection import SelectionConfig
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
        if method.forget_loss == "pdu" and method.retain_loss != "nll":
            problems.append(
                "method.retain_loss: pdu limits the retain cross-entropy and needs nll, "
                f"got {method.retain_loss}"
            )
        reads_alternatives = method.forget_loss in ("dpo", "idk_nll")
        if (
            reads_alternatives
            and method.alternatives == "field"
            and self.data.forget.fields.alternative is None
        ):
            problems.append(
                "method.alternatives: field needs data.forget.fields.alternative, which names the field; add it, "
                "or use idk"
            )
        if self.adapter.kind == "full":
            if method.adapter_init != "lora":
                problems.append(
                    "method.adapter_init: adapter.kind: full has no adapter to initialise; leave it at lora, "
                    f"got {method.adapter_init}"
                )
            if "residual" in (method.forget_loss, method.retain_loss):
                problems.append(
                    "method.forget_loss: residual aligns the adapter's output and needs adapter.kind: lora"
                )
        if self.engine.zero_stage == 3:
            problems += [
                f"engine.zero_stage: {what} needs whole weights on each rank; at most 2, got 3"
                for what, is_used in (
                    ("residual alignment", "residual" in (method.forget_loss, method.retain_loss)),
                    (
                        "forget_closure_at_utility of adapter.kind: full",
                        self.adapter.kind == "full"
                        and self.selection.metric == "forget_closure_at_utility",
                    ),
                    (
                        "the stop rule el_N",
                        any(rule.metric.startswith("el_") for rule in self.selection.stop_when),
                    ),
                )
                if is_used
            ]
        return problems

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
        return TrialConfig.model_validate(values)
    except ValidationError as err:
        raise ConfigError(where, describe_problems(err, TrialConfig)) from err
