"""What one trial is: a frozen, validated description of model, data, method and engine.

Every field says its meaning and unit in its description; the reference page is made from these. A
wrong value is refused when the object is built, and every problem is named at once. Nothing here
imports torch, so that ``validate`` and ``status`` answer at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from core.errors import ConfigError
from core.methods import MethodConfig
from core.sections import Positive, Section

TargetGroup = Literal["attention", "mlp", "all"]
ObjectiveMetric = Literal["forget_closure", "accuracy_closure", "forget_closure_at_utility"]
UtilityMetric = Literal["retain_utility", "retain_extraction_strength"]
ConstraintMetric = Literal[
    "retain_drop", "general_drop", "retain_accuracy_drop", "general_accuracy_drop"
]
Dtype = Literal["auto", "bf16", "fp32"]

STOP_METRIC = r"^(el_[1-9]\d{0,3}|memorization_accuracy|extraction_strength|exact_memorization)$"
"""Names of the forget metrics that stop rules know."""


class ModelConfig(Section):
    """The target model, before unlearning."""

    source: Annotated[str, Field(min_length=1)]
    """``package:smollm2``, ``hub:ORG/NAME`` (or ``ORG/NAME``), or a folder written by ``save_pretrained``."""
    revision: str | None = None
    """Commit hash, tag or branch of a hub model; a commit hash makes the run repeatable."""
    retain_only: Annotated[str, Field(min_length=1)] | None = None
    """A model of the same kind that never saw the forget set (``prepare`` makes one); its level on the forget
    set is then the target of forgetting, instead of the approximate set's."""


class FieldNames(Section):
    """Which fields of a row hold its text: either ``text``, or ``prompt`` and ``answer``."""

    text: str | None = None
    """Field with a whole document; every token but the first is predicted and counts."""
    prompt: str | None = None
    """Field with the context of ``answer``; its tokens are read but do not count."""
    answer: str | None = None
    """Field with the answer to ``prompt``; its tokens, and the end of text, count."""
    alternative: str | None = None
    """Field with an alternative answer, for ``method.alternatives: field``."""

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        pair = (self.prompt is not None, self.answer is not None)
        if (self.text is not None) == all(pair) or any(pair) != all(pair):
            raise ValueError("give either text, or both prompt and answer")
        return self


class SourceConfig(Section):
    """Where the rows of one role come from."""

    source: Annotated[str, Field(min_length=1)]
    """``embedded:NAME``, ``authors:PART``, a benchmark by name (``tofu:forget10``, ``muse-news:forget``,
    ``wmdp:bio``, ``yao:arxiv-forget``), ``hub:ORG/NAME``, or a path to ``.jsonl``, ``.parquet``, ``.txt`` (a
    paragraph is a row) or ``.npy`` (rows of token ids)."""
    mirror: str | None = None
    """Folder with a copy of the data set's repository, for machines without the hub."""
    split: str = "train"
    """Split of a hub data set; a benchmark's name says it already."""
    subset: str | None = None
    """Configuration name of a hub data set."""
    revision: str | None = None
    """Commit hash, tag or branch of a hub data set."""
    fields: FieldNames = FieldNames(text="text")
    """Fields that hold the text."""
    n: Positive | None = None
    """Use at most this many rows, the first ones in the file's order; all if absent."""
    max_tokens: Annotated[int, Field(ge=2, le=1_000_000)] = 256
    """Longer rows are cut after this many tokens, or into rows of this many."""
    overlong: Literal["cut", "chunk"] = "cut"
    """``chunk``: a longer document becomes several rows (a last one under 5 tokens is dropped), as Yao et al. do."""


class DataConfig(Section):
    """Forget, retain, approximate and general sets, and how the held-out parts are cut."""

    forget: SourceConfig
    """What must go; trained on and judged whole."""
    retain: SourceConfig
    """Text of the same domain that must stay; split into train, probe and report parts."""
    approximate: SourceConfig
    """Text of the forget set's kind that the model never saw; its level is the target of forgetting."""
    general: SourceConfig
    """Ordinary text of other domains; split into train, probe and report parts."""
    probe_rows: Positive = 32
    """Rows of the probe parts of retain and general set, measured again and again during a trial.

    The approximate set is measured once: it has at least as many, and its further rows are halved.
    """
    report_rows: Positive = 64
    """Rows of each report part; neither losses nor probes see them, finalists are reported on them."""
    prompt_format: Literal["auto", "plain", "chat"] = "auto"
    """How a prompt and its answer are written: with the tokenizer's ``chat`` template, ``plain``, or ``auto``:
    the template where the tokenizer has one."""
    plain_template: Annotated[str, Field(pattern=r"\{prompt\}")] = "{prompt} "
    """What stands before the answer in the ``plain`` format; ``{prompt}`` is replaced."""
    split_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the splits; separate from the trial's seed, so that repeats over seeds share the splits."""


class PreparationData(Section):
    """What a prepared model is fine-tuned on."""

    forget: SourceConfig
    """Rows that only the target model sees."""
    retain: SourceConfig
    """Rows that target model and retain-only model see."""
    prompt_format: Literal["auto", "plain", "chat"] = "auto"
    """As in a sweep's data."""
    plain_template: Annotated[str, Field(pattern=r"\{prompt\}")] = "{prompt} "
    """As in a sweep's data."""


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


class AdapterConfig(Section):
    """Size, strength and place of the low-rank adapter."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank r of the trained factors."""
    scaling: Annotated[float, Field(gt=0.0, le=64.0)] = 2.0
    """Strength s = alpha / r, fixed apart from the rank so that rank is not confounded with step size."""
    targets: TargetGroup = "all"
    """Linear layers that carry an adapter, found by looking at the model: attention, MLP, or both."""
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """Blocks that carry one, from 0; all if absent."""
    kind: Literal["lora", "full"] = "lora"
    """``full``: no adapter, all weights of a copy of the model are trained; ``rank`` and the rest have no effect."""


class FisherConfig(Section):
    """How Fisher information weights the initial adapter (for ``adapter_init: fila`` and ``vila``)."""

    exponent: Annotated[float, Field(ge=0.0, le=4.0)] = 0.5
    """Row weight = (sum over a row of F_forget / F_retain) ** exponent; 0 is the plain SVD, 0.5 the paper's."""
    floor: Annotated[float, Field(gt=0.0, le=1e6)] = 0.01
    """Added to F_retain before the division; see ``floor_kind``."""
    floor_kind: Literal["relative", "absolute"] = "relative"
    """``relative``: ``floor`` times the mean F_retain of the matrix; ``absolute``: ``floor`` itself (paper: 1e-5)."""
    normalise: Literal["geometric_mean", "none"] = "geometric_mean"
    """Divide a matrix's row weights by their geometric mean; ``none`` repeats the paper's code."""
    rows: Positive | None = None
    """Rows of the forget set, and as many of the retain set, that Fisher is measured on; all forget rows if absent."""
    batch_size: Positive = 1
    """Rows whose mean gradient is squared; 1 is the per-sequence empirical Fisher, the paper's code uses 2 to 4."""
    lora_rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """``vila``: rank of the random adapter in whose space Fisher is measured."""
    lora_sigma: Annotated[float, Field(gt=0.0, le=10.0)] = 0.05
    """``vila``: standard deviation of its entries."""


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


class ConstraintConfig(Section):
    """An upper limit that a probe must keep to be feasible."""

    metric: ConstraintMetric
    """Name of a probe metric; drops are degradations relative to the untouched model."""
    at_most: Annotated[float, Field(ge=0.0, le=100.0)]
    """Largest allowed value; nats per token for ``*_drop``, a fraction for ``*_accuracy_drop``."""


class RetainGuardConfig(Section):
    """When a trial is stopped because retained text degrades. Patience and grace count probes."""

    metrics: Annotated[tuple[ConstraintMetric, ...], Field(min_length=1)] = (
        "retain_drop",
        "general_drop",
    )
    """Watched metrics; the guard acts when any of them is above ``limit``."""
    limit: Annotated[float, Field(ge=0.0, le=100.0)] = 0.10
    """Largest tolerated value, in nats per token for drops."""
    patience: Annotated[int, Field(ge=1, le=1000)] = 2
    """Consecutive violating probes after which the trial stops."""
    grace_steps: Annotated[int, Field(ge=0, le=1000)] = 2
    """First probes that are not counted (retained text can dip and recover)."""
    hard_limit: Annotated[float, Field(gt=0.0, le=1000.0)] = 0.50
    """A single probe above this stops the trial at once, also during grace; so does a non-finite value."""

    @model_validator(mode="after")
    def _hard_limit_is_harder(self) -> Self:
        if self.hard_limit <= self.limit:
            raise ValueError(
                f"hard_limit must exceed limit, got hard_limit={self.hard_limit} limit={self.limit}"
            )
        return self


class PastTargetConfig(Section):
    """Stop a trial that has overshot: forget cross-entropy past the target and the objective falling."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 2
    """Consecutive overshooting probes after which the trial stops."""


class StopRule(Section):
    """A level of forgetting that is enough (Jang et al., ACL 2023)."""

    metric: Annotated[str, Field(pattern=STOP_METRIC)]
    """``el_N`` for any N, ``memorization_accuracy``, ``extraction_strength`` or ``exact_memorization``: means over
    the forget rows."""
    at_most: Annotated[float, Field(ge=0.0, le=1.0)]
    """Enough is forgotten when the metric is at or below this."""


class SelectionConfig(Section):
    """How long a trial may train, and which of its probes counts. A sweep fills this in."""

    max_steps: Annotated[int, Field(ge=1, le=1_000_000)]
    """Optimiser steps of a trial that nothing stops."""
    probe_every: Positive = 1
    """Optimiser steps from one probe to the next; the last step is always probed."""
    metric: ObjectiveMetric = "forget_closure"
    """Objective, maximised; in [-1, 1], 1 when the forget set looks like text that was never seen.
    ``forget_closure_at_utility``: with the trained difference scaled back until ``utility`` is kept (UWC)."""
    tau: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Share of its original value that ``utility`` keeps in ``forget_closure_at_utility``."""
    utility: UtilityMetric = "retain_utility"
    """What is kept there: next-token accuracy, or extraction strength, of the retain set's probe rows."""
    select: Literal["best_feasible_probe", "last"] = "best_feasible_probe"
    """Which probe gives the trial its value and its adapter."""
    constraints: tuple[ConstraintConfig, ...] = ()
    """Limits that a feasible probe keeps."""
    past_target: PastTargetConfig | None = PastTargetConfig()
    """Stop on overshoot; null switches it off."""
    retain_guard: RetainGuardConfig | None = RetainGuardConfig()
    """Stop on degradation of retained text; null switches it off."""
    stop_when: tuple[StopRule, ...] = ()
    """Stop when every one of these holds; empty: never."""

    @field_validator("constraints")
    @classmethod
    def _each_metric_once(cls, value: tuple[ConstraintConfig, ...]) -> tuple[ConstraintConfig, ...]:
        names = [c.metric for c in value]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"each metric may have one limit, got two for {', '.join(twice)}")
        return value

    @model_validator(mode="after")
    def _probe_within_budget(self) -> Self:
        if self.probe_every > self.max_steps:
            raise ValueError(
                f"probe_every must not exceed max_steps, got probe_every={self.probe_every} "
                f"max_steps={self.max_steps}"
            )
        return self


class EngineConfig(Section):
    """How a trial computes: DeepSpeed stage, precision, ranks and threads."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage; 3 also partitions the frozen base model over the ranks."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """Keep optimiser states (ZeRO 1-3) or also parameters (ZeRO 3) in CPU memory."""
    dtype: Dtype = "auto"
    """``bf16``, ``fp32``, or ``auto``: bf16 where the hardware computes in it; losses and metrics are float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``cuda`` (nccl), ``cpu`` (gloo), or ``auto``: cuda where there is one."""
    ranks: Annotated[int, Field(ge=1, le=4096)] = 1
    """Processes of the trial."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """CPU threads of each rank."""

    @model_validator(mode="after")
    def _offload_needs_a_stage(self) -> Self:
        needed = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < needed:
            raise ValueError(
                f"offload={self.offload} needs zero_stage >= {needed}, got zero_stage={self.zero_stage}"
            )
        return self


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


def describe_problems(err: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each problem pydantic found: the field as the user wrote it, the rule, the value."""
    lines = []
    for problem in err.errors():
        place = ".".join(str(part) for part in problem["loc"]) or "(whole)"
        message = problem["msg"].removeprefix("Value error, ").rstrip(".")
        if problem["type"] == "missing":
            lines.append(f"{place}: required, but absent; add it.")
        elif problem["type"] == "extra_forbidden":
            lines.append(f"{place}: unknown key; {_suggestion(problem['loc'], model)}")
        elif not problem["loc"]:  # rules across sections name their fields themselves
            lines += [f"{line}." for line in message.split("\n")]
        elif problem["type"] == "literal_error":
            known = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
            near = get_close_matches(str(problem["input"]), known, n=1, cutoff=0.5)
            rule = "unknown choice" if near else message
            hint = f"; did you mean {near[0]!r}?" if near else "."
            lines.append(f"{place}: {rule}, got {problem['input']!r}{hint}")
        elif isinstance(problem["input"], Mapping | BaseModel):
            lines.append(f"{place}: {message}.")
        else:
            lines.append(f"{place}: {message}, got {problem['input']!r}.")
    return lines


def _suggestion(place: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """The nearest valid key beside the unknown last part of ``place``."""
    known = _keys_at(model, place[:-1])
    near = get_close_matches(str(place[-1]), known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known keys: {', '.join(known)}." if known else "remove it."


def _keys_at(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    current: Any = model
    for part in place:
        if isinstance(current, type) and issubclass(current, BaseModel):
            fields = current.model_fields
            named = {f.alias or n: f.annotation for n, f in fields.items()}
            current = named.get(str(part))
        candidates = [current, *get_args(current)]
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        current = models[0] if models else current
    if isinstance(current, type) and issubclass(current, BaseModel):
        return [field.alias or name for name, field in current.model_fields.items()]
    return []


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
