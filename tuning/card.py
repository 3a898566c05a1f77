"""The model card of an export: what it is, how it is used, what was measured, and what it does not show."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.config import METRICS, ConstraintConfig, Quantisation
from core.training.lora_format import VLLM_RANKS, SavedLora
from tuning.data_words import count_lines, data_warnings
from tuning.records import TrialRecord
from tuning.results import doubts
from tuning.run import Run
from tuning.wording import as_code, as_markdown, between, decimals, measured

_CARD_METRICS = ("forget_nll", "forget_accuracy", "forget_closure")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HELD: Mapping[Quantisation, str] = {
    "none": "",
    "nf4": ", with its linear layers in 4 bits (nf4) during the trial; the numbers below are of it so",
}
_WHOLE = (
    "A model whose weights were trained to forget a set of texts. "
    "`AutoModelForCausalLM.from_pretrained(folder)` loads it."
)


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """An adapter at a lower rank.

    Attributes:
        folder: Where its two files lie.
        rank: Its rank.
        whole_rank: That of the adapter which it approximates.
        kept: Share of the squared norm of the difference that it keeps.
        before: Metrics of the whole adapter on the reporting split.
        after: Its own.
        broken: Constraints that it breaks there.
    """

    folder: Path
    rank: int
    whole_rank: int
    kept: float
    before: Mapping[str, float]
    after: Mapping[str, float]
    broken: tuple[ConstraintConfig, ...]

    @property
    def closure_lost(self) -> float:
        """Forget closure that the lower rank costs; negative where it gains some."""
        return self.before["forget_closure"] - self.after["forget_closure"]

    @property
    def words(self) -> str:
        """What was done and what it costs, in one sentence."""
        closures = (
            measured(m["forget_closure"], "forget_closure") for m in (self.before, self.after)
        )
        return (
            f"rank {self.whole_rank} to {self.rank} keeps {self.kept:.1%} of the squared norm of the difference; "
            f"forget closure {' to '.join(closures)} on the reporting split, a loss of {self.closure_lost:.3f}"
        )

    @property
    def warnings(self) -> list[str]:
        """A line for each constraint that the lower rank breaks."""
        return [
            f"at rank {self.rank} {rule.metric} is {measured(self.after[rule.metric], rule.metric)} on the "
            f"reporting split, beyond its limit of {rule.words}"
            for rule in self.broken
        ]


def model_card(
    run: Run,
    trial: TrialRecord,
    base: str,
    *,
    forget: str,
    saved: SavedLora | None,
    trial_rank: int,
    reduced: Reduced | None = None,
) -> str:
    """The README: what the adapter or model is, how it is used, what was measured, what it is not.

    Args:
        run: The run.
        trial: The trial.
        base: What names the original model.
        forget: What names the forget set.
        saved: The adapter; ``None`` for a whole model.
        trial_rank: Rank that the trial trained.
        reduced: How it came to a lower rank than the trial's.
    """
    baseline = run.facts.baseline
    report = trial.report_metrics or {}
    rows = [
        f"| {METRICS[name].full_name} | {_cell(baseline.get(name))} | "
        f"{_cell(trial.metrics.get(name), trial.intervals.get(name), name)} | "
        f"{_cell(report.get(name), trial.report_intervals.get(name), name)} |"
        for name in (*_CARD_METRICS, *run.spec.trial_selection().limited_metrics)
    ]
    versions = as_markdown(", ".join(f"{k} {v}" for k, v in run.facts.versions.items()))
    parameters = "\n".join(
        f"- `{as_code(name)}`: {as_markdown(value)}" for name, value in trial.params.items()
    )
    identity = as_markdown(run.facts.identity.get("model", "unknown"))
    counts = run.facts.data_counts
    data = "\n".join(
        f"- {as_markdown(line)}" for line in [*count_lines(counts), *data_warnings(counts)]
    )
    library, tag = ("transformers", "full-parameter") if saved is None else ("peft", "lora")
    hub = f"base_model: {base}\n" if _HUB_ID.fullmatch(base) and not Path(base).exists() else ""
    return f"""---
{hub}library_name: {library}
tags: [unlearning, {tag}]
---

# {"Unlearned model" if saved is None else "Unlearning adapter"}: {as_markdown(run.name)}, trial {trial.number}

{_WHOLE if saved is None else _adapter_use(saved, base, trial_rank)}

- Base model: `{as_code(base)}` ({identity}){_HELD[run.spec.trial_model().quantisation]}
- Forget set: `{as_code(forget)}`
- Step {trial.step}; stopped by {as_markdown(trial.stopped_by)}: {as_markdown(trial.reason)}
- Versions: {versions}

| metric | before | after (probe split) | after (reporting split) |
|---|---|---|---|
{chr(10).join(rows)}

The target of forgetting is cross-entropy {_cell(baseline.get("target_nll"))} and accuracy
{_cell(baseline.get("target_accuracy"))}: {_target(run)}.
{_standing(run, trial)}{_at_lower_rank(reduced, trial, run)}
## Hyperparameters

{parameters}

## Data

{data or "What was read and left out is not recorded."}

## Limits

These numbers say that the forget set is predicted like unseen text. They do not show that nothing of it
can be recovered: relearning, quantisation and extraction attacks were not part of this sweep.
"""


def _adapter_use(saved: SavedLora, base: str, trial_rank: int) -> str:
    """How an adapter is loaded, merged and served."""
    rank, limit = saved.rank, saved.max_lora_rank
    why = (
        f", twice the trial's {trial_rank}: the difference of two products of rank {trial_rank} has no less"
        if rank == 2 * trial_rank
        else ""
    )
    serve = (
        f"serve it with `--max-lora-rank {limit}` or more (16 if not given)"
        if limit is not None
        else f"it serves ranks up to {VLLM_RANKS[-1]} only"
    )
    return f"""\
A LoRA adapter that makes the base model forget a set of texts. It is an ordinary LoRA on the original weights,
which every PEFT since 0.7 reads:

```python
from peft import PeftModel

model = PeftModel.from_pretrained(original_model, folder)
model = model.merge_and_unload()  # if wanted; in float32, because bf16 rounds small differences away
```

- Measure it: `unlearn-tune evaluate {as_code(base)} --adapter FOLDER --suite probes --data ROLES.yaml`
- Rank: {rank}{why}.
  `unlearn-tune export RUN --rank R` writes a lower one and says what it costs.
- vLLM: {serve}."""


def _at_lower_rank(reduced: Reduced | None, trial: TrialRecord, run: Run) -> str:
    """What an approximation of the trial's adapter measures beside the adapter itself."""
    if reduced is None:
        return ""
    names = (*_CARD_METRICS, *run.spec.trial_selection().limited_metrics)
    rows = "\n".join(
        f"| {METRICS[n].full_name} | {_cell(reduced.before.get(n))} | {_cell(reduced.after.get(n))} |"
        for n in names
    )
    warned = "".join(f"\nNote: {line}.\n" for line in reduced.warnings)
    return f"""
## A lower rank

The tables above are of the adapter as trial {trial.number} saved it. These are the best
factors of rank {reduced.rank} for the difference that it makes in each layer: {reduced.words}.

| metric, reporting split | rank {reduced.whole_rank} | rank {reduced.rank}, this adapter |
|---|---|---|
{rows}
{warned}"""


def _target(run: Run) -> str:
    if run.spec.model.get("retain_only"):
        return "the forget set's under a retain-only model, which never saw it"
    return "those of the approximate set, text of the same kind that the base model never saw"


def _cell(value: float | None, ends: tuple[float, float] | None = None, metric: str = "") -> str:
    text = decimals(value, missing="-")
    return text if ends is None else f"{text} ({between(ends, metric)})"


def _standing(run: Run, trial: TrialRecord) -> str:
    """How sure the numbers are, and what must be said of the trial beside its name."""
    lines = []
    if trial.intervals:
        lines.append(
            "In brackets: 95 % intervals by resampling rows, drops paired with the model before unlearning. "
            "The forget rows are\ntrained on, and the same on both splits."
        )
    if run.is_repetition:
        lines += [as_markdown(f"{doubt[0].upper()}{doubt[1:]}.") for doubt in doubts(run)]
    elif trial == run.best:
        lines += [f"Best of its sweep; {doubt}." for doubt in doubts(run)]
    elif trial.reported_feasible is False:
        lines.append("This trial breaks a constraint that finalists must keep.")
    return "".join(f"\n{line}\n" for line in lines)
