"""What the report shows, as plain values: both pages are made from it."""

from collections.abc import Mapping
from typing import Any, Final

from core.config import METRICS
from tuning.damage import left_out, whole_history, whole_samples
from tuning.data_words import by_role, count_words, data_warnings
from tuning.plots.reading import number_or_nan
from tuning.ranking import pareto_front
from tuning.records import TrialRecord, attempt_folder, now
from tuning.report.choices import choice_tables
from tuning.report.commands import commands
from tuning.report.findings import findings
from tuning.report.verdict import verdict
from tuning.results import counts, doubts, evaluation_rows, savings
from tuning.run import Run
from tuning.space import describe
from tuning.wording import NOTHING, duration

_SHOWN_ROLES: Final = ("objective", "comparison", "constraint", "utility")
_SETS: Final[Mapping[str, str]] = {
    "forget": "forget (trained on; the same rows on both splits)",
    "approximate": "approximate (the target of forgetting)",
    "retain": "retain",
    "general": "general",
}
_SETS_WITH_TARGET: Final[Mapping[str, str]] = {
    "forget": "forget (trained on; the same rows on both splits)",
    "target": "forget under the retain-only model (the target of forgetting)",
    "retain": "retain",
    "general": "general",
}
_STATE_WORDS: Final = {
    "running": "The sweep is running; this page shows it as it stands.",
    "interrupted": "The sweep was interrupted; it goes on with resume.",
    "failed": "The sweep failed.",
}


def report_content(run: Run) -> dict[str, Any]:
    """What both templates show, as plain values."""
    first, order = run.best, run.ranked
    # a front of single seeds would rank them
    front = set() if run.is_repetition else {t.number for t in pareto_front(run.trials)}
    placed = {t.number for t in order}
    rest = [t for t in run.trials if t.number not in placed and t.state != "WAITING"]
    saved = savings(run)
    finalists = [t for t in order if t.report_metrics]
    return {
        "run": run,
        "spec": run.spec,
        "verdict": verdict(run),
        "doubts": [f"{d[0].upper()}{d[1:]}." for d in doubts(run)],
        "tied": {t.number for t in run.tied},
        "repeats": run.repeats,
        "has_intervals": any(t.value_interval for t in order),
        "has_one_target": has_one_target(run),
        "state_words": _STATE_WORDS.get(run.state),
        "data_warnings": data_warnings(run.facts.data_counts),
        "counts": counts(run),
        "saved": saved,
        "best": first,
        "best_metrics": metric_rows(run, first) if first else [],
        "levels": level_rows(run, first) if first else [],
        "finalists": finalists if len(finalists) > 1 else [],
        "evaluation": evaluation_rows(run, first) if first else [],
        "is_calibrated": any(
            "forget_closure_at_utility" in (t.report_metrics or {}) for t in finalists
        ),
        "has_retain_only": has_retain_only(run),
        "trials": [*order, *rest],
        "front": front,
        "watched": watched_metrics(run),
        "stopped": [t for t in run.trials if t.state in ("PRUNED", "FAIL")],
        "space": [
            {"name": n, "range": describe(d), "why": d.why, "source": d.source, "when": d.when}
            for n, d in run.spec.space.items()
        ],
        "findings": findings(run),
        "choices": choice_tables(run.spec, run.trials),
        "samples": whole_samples(run),
        "left_out": left_out(run),
        "commands": commands(run, first),
        "environment": environment(run),
        "elapsed": duration(run.driver.elapsed_s),
        "written": now(),
        "folder_of": lambda t: attempt_folder(t.number, t.attempt),
    }


def watched_metrics(run: Run) -> list[str]:
    """Metrics that the table of trials shows: the objective and what is constrained or guarded."""
    return [run.spec.objective.metric, *run.spec.trial_selection().limited_metrics]


def metric_rows(run: Run, trial: TrialRecord) -> list[dict[str, Any]]:
    """Metrics of a trial on both splits, with limit and meaning."""
    limits: dict[str, str] = {c.metric: c.words for c in run.spec.constraints}
    report = trial.report_metrics or {}
    return [
        {
            "name": name,
            "probe": trial.metrics.get(name),
            "report": report.get(name),
            "probe_interval": trial.intervals.get(name),
            "report_interval": trial.report_intervals.get(name),
            "limit": limits.get(name),
            "unit": facts.unit,
            "meaning": facts.description,
        }
        for name, facts in METRICS.items()
        if facts.role in _SHOWN_ROLES and (name in trial.metrics or name in report)
    ]


def has_retain_only(run: Run) -> bool:
    """Whether a retain-only model, not the approximate set, says where forgetting aims."""
    return run.spec.model.get("retain_only") is not None


def has_one_target(run: Run) -> bool:
    """Whether forgetting aims at one level on both splits, as it does unless the run is an old one."""
    probe, report = run.facts.baseline, run.facts.report_baseline
    return bool(report) and probe.get("target_nll") == report.get("target_nll")


def level_rows(run: Run, trial: TrialRecord) -> list[dict[str, Any]]:
    """Accuracy and cross-entropy of each set before and after, on both splits; ``None`` if unknown.

    Without a noted baseline, that of the probe split is read from the trial's history.
    """
    before = {"probe": _baseline(run, trial), "report": run.facts.report_baseline}
    after = {"probe": trial.metrics, "report": trial.report_metrics or {}}
    return [
        {
            "name": label,
            "is_target": role in ("approximate", "target"),
            **{
                f"{split}_{level}": (
                    before[split].get(f"{role}_{level}"),
                    after[split].get(f"{role}_{level}"),
                )
                for split in ("probe", "report")
                for level in ("accuracy", "nll")
            },
        }
        for role, label in (_SETS_WITH_TARGET if has_retain_only(run) else _SETS).items()
    ]


def _baseline(run: Run, trial: TrialRecord) -> Mapping[str, float]:
    noted = run.facts.baseline
    if noted:
        return dict(noted)
    lines = whole_history(run, trial.number)
    if not lines or lines[0].get("step") != 0:
        return {}
    found = {k: number_or_nan(v) for k, v in (lines[0].get("metrics") or {}).items()}
    for level in ("nll", "accuracy"):
        if f"target_{level}" in lines[0]:
            found[f"approximate_{level}"] = number_or_nan(lines[0][f"target_{level}"])
    return found


def environment(run: Run) -> list[tuple[str, str]]:
    """Versions, hashes and settings, flat, in the order of their groups."""
    engine = run.spec.engine
    found: list[tuple[str, Any]] = [
        ("model", run.spec.model.get("source")),
        ("dtype", engine.get("dtype", "auto")),
        ("ZeRO stage", engine.get("zero_stage", 1)),
        ("ranks per trial", run.spec.resources.ranks_per_trial),
        ("trials at the same time", run.driver.concurrent),
        ("seed of the trials", run.spec.seed),
        ("sampler", f"{run.spec.sampler.name}, seed {run.spec.sampler.seed}"),
        ("begun", run.facts.created),
        ("time taken", duration(run.driver.elapsed_s)),
        *((f"data {k}", count_words(c)) for k, c in by_role(run.facts.data_counts).items()),
        *_flat(run.facts.versions, "version"),
        *_flat(run.facts.identity, "identity"),
    ]
    return [(name, str(value)) for name, value in found if value not in (None, "", NOTHING)]


def _flat(value: Any, name: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{name} {key}")]
    return [] if value is None else [(name, value)]
