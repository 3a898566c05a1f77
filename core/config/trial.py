"""Everything that determines one trial."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

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

    @model_validator(mode="wrap")
    @classmethod
    def _names_a_target(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Named beside all other problems; the rules above run inside, for this one is defined after them."""
        if not _lacks_a_target(values):
            return handler(values)
        absent = InitErrorDetails(type=_NO_TARGET, loc=("data", "approximate"), input=values)
        try:
            handler(values)
        except ValidationError as err:
            others = [_as_found(problem) for problem in err.errors()]
            raise ValidationError.from_exception_data(err.title, [*others, absent]) from err
        raise ValidationError.from_exception_data(cls.__name__, [absent])

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
        if self.model.quantisation != "none" and kind != "lora":
            problems.append(
                f"model.quantisation: weights of 4 bits cannot be trained, and adapter.kind: {kind} trains them; use "
                f"adapter.kind: lora, or leave quantisation out, got {self.model.quantisation}"
            )
        if self.model.quantisation != "none" and self.engine.zero_stage == 3:
            problems.append(
                "engine.zero_stage: weights of 4 bits (model.quantisation) lie whole on each rank; at most 2, got 3"
            )
        if kind == "lora" and self.adapter.dropout and self.engine.packing != 1:
            problems.append(
                "adapter.dropout: what a trial drops would depend on the others of its pack; leave engine.packing at "
                f"1, got {self.engine.packing}, or dropout at 0, got {self.adapter.dropout:g}"
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


_NO_TARGET = PydanticCustomError(
    "no_target",
    "required, but absent, for nothing else says where forgetting aims; add text of the forget set's kind that the "
    "model never saw, or name a model that never saw the forget set as model.retain_only",
)


def _lacks_a_target(values: Any) -> bool:
    """Whether neither an approximate set nor a retain-only model is named."""
    if not isinstance(values, Mapping) or not isinstance(values.get("data"), Mapping):
        return False
    model = values.get("model")
    has_other = isinstance(model, Mapping) and model.get("retain_only") is not None
    return not has_other and values["data"].get("approximate") is None


def _as_found(problem: ErrorDetails) -> InitErrorDetails:
    """A problem as pydantic is told of it."""
    return InitErrorDetails(
        type=problem["type"], loc=problem["loc"], input=problem["input"], ctx=problem.get("ctx", {})
    )


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
