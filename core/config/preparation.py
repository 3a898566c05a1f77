"""What ``prepare`` makes: a target model, and a model that never saw the forget set."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from core.config.data import PreparationData
from core.config.model import ModelConfig
from core.config.optimisation import BatchConfig, BatchPlan, EngineConfig, OptimizerConfig
from core.config.section import Section


class TrainingConfig(Section):
    """Ordinary fine-tuning of all weights."""

    epochs: Annotated[int, Field(ge=1, le=10_000)]
    """Times that each row is read."""
    optimizer: OptimizerConfig
    """AdamW; ``schedule: linear`` decays to zero over all epochs."""
    batch: BatchConfig = BatchConfig(global_batch_size=8)
    """Rows of a step."""


class PreparationConfig(Section):
    """What ``prepare`` makes: a target model that knows the forget set, and a retain-only model that does not."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    """Version of this format."""
    model: ModelConfig
    """The model before fine-tuning."""
    data: PreparationData
    """Forget and retain rows."""
    training: TrainingConfig
    """How both are fine-tuned: the same epochs, rates and batches."""
    engine: EngineConfig = EngineConfig()
    """How it is computed."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the reading order."""

    @model_validator(mode="after")
    def _one_process_and_batches_of_rows(self) -> Self:
        problems = []
        if self.model.quantisation != "none":
            problems.append(
                f"model.quantisation: all weights are trained here, got {self.model.quantisation}; leave it out"
            )
        if self.engine.ranks != 1:
            problems.append(
                f"engine.ranks: a model is prepared by one process, got {self.engine.ranks}"
            )
        if self.training.batch.whole_forget_set:
            problems.append(
                "training.batch.whole_forget_set: has no meaning here; give global_batch_size"
            )
        else:
            try:
                self.batch_plan()
            except ValueError as err:
                problems.append(f"training.{err}")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def batch_plan(self) -> BatchPlan:
        """The three batch numbers with the missing ones derived."""
        return BatchPlan.derive(self.training.batch, ranks=1)
