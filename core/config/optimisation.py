"""Optimiser, batches and engine: how a trial computes."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from core.config.section import Positive, Section, auto_or

Dtype = Literal["auto", "bf16", "fp32"]


class OptimizerConfig(Section):
    """AdamW and its schedule."""

    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)]
    """Peak learning rate, per optimiser step."""
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Decoupled weight decay of the trained increments."""
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Decay of AdamW's first moment."""
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Decay of AdamW's second moment."""
    epsilon: Annotated[float, Field(gt=0.0, le=1e-2)] = 1e-8
    """AdamW's denominator offset."""
    schedule: Literal["constant", "linear"] = "constant"
    """``constant``, or ``linear`` decay to zero at ``selection.max_steps``."""
    warmup_steps: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Optimiser steps over which the rate rises linearly from zero."""
    gradient_clipping: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0
    """Largest norm of the gradient over all trained parameters; 0 switches it off."""


class BatchConfig(Section):
    """Rows per optimiser step: ``global_batch_size = micro_batch_size x gradient_accumulation_steps x ranks``.

    Give at most two of the three; the last is derived. Each forget row is accompanied by one retain
    row where the method has a retain loss.
    """

    global_batch_size: Positive | None = None
    """Forget rows of one optimiser step, over all ranks."""
    micro_batch_size: Positive | None = None
    """Forget rows of one forward pass on one rank."""
    gradient_accumulation_steps: Positive | None = None
    """Forward passes of one optimiser step on each rank."""
    whole_forget_set: bool = False
    """Every step reads each forget row once (Jang et al.); takes the place of ``global_batch_size``."""
    probe_batch_size: Positive = 16
    """Rows of one forward pass of a probe; changes speed and memory only."""

    @model_validator(mode="after")
    def _one_is_derived(self) -> Self:
        given = [
            name
            for name in ("global_batch_size", "micro_batch_size", "gradient_accumulation_steps")
            if getattr(self, name) is not None
        ]
        if len(given) == 3:
            raise ValueError(
                "give two of global_batch_size, micro_batch_size, gradient_accumulation_steps; "
                "the third is derived"
            )
        if self.whole_forget_set and self.global_batch_size is not None:
            raise ValueError(
                "whole_forget_set takes the place of global_batch_size; give one of them, "
                f"got global_batch_size={self.global_batch_size}"
            )
        if self.whole_forget_set and self.gradient_accumulation_steps is not None:
            raise ValueError(
                "with whole_forget_set give micro_batch_size; gradient_accumulation_steps follows from "
                f"the number of rows, got {self.gradient_accumulation_steps}"
            )
        return self


class BatchPlan(Section):
    """Rows per optimiser step, all three numbers known."""

    global_batch_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    ranks: int

    @classmethod
    def derive(cls, batch: BatchConfig, *, ranks: int) -> Self:
        """Fill in what ``batch`` leaves out; one forward pass a step and rank unless told otherwise."""
        total, micro, steps = (
            batch.global_batch_size,
            batch.micro_batch_size,
            batch.gradient_accumulation_steps,
        )
        if total is None:
            micro, steps = micro or 8, steps or 1
            total = micro * steps * ranks
        elif micro is not None:
            steps = total // (micro * ranks)
        else:
            steps = steps or 1
            micro = total // (steps * ranks)
        if micro * (steps or 0) * ranks != total or total == 0:
            raise ValueError(
                "batch.global_batch_size: must equal micro_batch_size x gradient_accumulation_steps x ranks, "
                f"got {total} with micro_batch_size={batch.micro_batch_size} "
                f"gradient_accumulation_steps={batch.gradient_accumulation_steps} ranks={ranks}"
            )
        return cls(
            global_batch_size=total,
            micro_batch_size=micro,
            gradient_accumulation_steps=steps or 1,
            ranks=ranks,
        )


class EngineConfig(Section):
    """How a trial computes: DeepSpeed stage, precision, ranks and threads."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage; 3 also partitions the frozen base model over the ranks."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """Keep optimiser states (ZeRO 1-3) or also parameters (ZeRO 3) in CPU memory."""
    activation_checkpointing: bool = False
    """Keep the inputs of blocks only and compute the rest again for the gradient: less memory, a forward pass more."""
    dtype: Dtype = "auto"
    """``bf16``, ``fp32``, or ``auto``: bf16 where the hardware computes in it; losses and metrics are float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``cuda`` (nccl), ``cpu`` (gloo), or ``auto``: cuda where there is one."""
    ranks: Annotated[int, Field(ge=1, le=4096)] = 1
    """Processes of the trial."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """CPU threads of each rank."""
    packing: Annotated[
        int | Literal["auto"],
        auto_or("a whole number from 1 to 256", lambda n: 1 <= n <= 256 and n == int(n)),
    ] = 1
    """Trials of a sweep that share one forward and backward pass over one frozen model, at most; each has its own
    adapter, settings and losses, and ends where it would have ended alone. Needs ``adapter.kind: lora``. ``auto``: a
    few steps are timed at several numbers when the sweep begins, and the fastest that fits memory is taken; 1 where
    packing does not pay."""

    @model_validator(mode="after")
    def _offload_needs_a_stage(self) -> Self:
        needed = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < needed:
            raise ValueError(
                f"offload={self.offload} needs zero_stage >= {needed}, got zero_stage={self.zero_stage}"
            )
        return self
