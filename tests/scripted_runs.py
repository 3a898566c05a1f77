"""A run folder with a real ledger and hand-made probes: every way in which a trial can end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from core.config import SelectionConfig
from core.measuring.selection import Probe, StoppedBy, drop_at_target, is_past_target
from core.store.durable import append_line, commit_yaml
from tuning.config import SweepSpec
from tuning.files import parse_sweep
from tuning.ledger import Ledger
from tuning.objective import conclude
from tuning.records import Note, attempt_folder
from tuning.run import Run, load_run
from tuning.space import bind

FORGET_BEFORE, FORGET_TARGET = 1.0, 3.0
BASELINE = {
    "forget_nll": FORGET_BEFORE,
    "forget_accuracy": 0.80,
    "retain_nll": 2.0,
    "retain_accuracy": 0.55,
    "general_nll": 2.5,
    "general_accuracy": 0.50,
    "approximate_nll": FORGET_TARGET,
    "approximate_accuracy": 0.40,
    "target_nll": FORGET_TARGET,
    "target_accuracy": 0.40,
}
REPORT_BASELINE = BASELINE | {"retain_nll": 2.1, "general_nll": 2.6}


def probe_metrics(
    forget_nll: float,
    retain_drop: float,
    general_drop: float,
    baseline: Mapping[str, float] = BASELINE,
) -> dict[str, float]:
    """Metrics as a probe has them; ``forget_nll`` goes from 1.0 (untouched) to 3.0 (closure 1)."""
    retain, general = baseline["retain_nll"] + retain_drop, baseline["general_nll"] + general_drop
    closure = 1.0 - abs(forget_nll - FORGET_TARGET) / abs(FORGET_BEFORE - FORGET_TARGET)
    closure = math.nan if math.isnan(forget_nll) else max(-1.0, closure)
    return {
        "forget_nll": forget_nll,
        "forget_perplexity": math.exp(forget_nll),
        "forget_accuracy": 0.80 - 0.2 * (forget_nll - FORGET_BEFORE),
        "retain_nll": retain,
        "retain_perplexity": math.exp(retain),
        "retain_accuracy": 0.55 - retain_drop / 4,
        "general_nll": general,
        "general_perplexity": math.exp(general),
        "general_accuracy": 0.50 - general_drop / 4,
        "retain_drop": retain_drop,
        "retain_accuracy_drop": retain_drop / 4,
        "retain_utility": (0.55 - retain_drop / 4) / 0.55,
        "general_drop": general_drop,
        "general_accuracy_drop": general_drop / 4,
        "forget_closure": closure,
        "accuracy_closure": closure,
        "accuracy_gap": 0.40 - 0.2 * (forget_nll - FORGET_BEFORE),
    }


@dataclass(frozen=True, kw_only=True)
class TrialScript:
    """What the probes of a trial will say: forget cross-entropy, retain drop and general drop of each.

    Attributes:
        probes: One triple for each probe; the trial may be stopped before the last.
        fails: Give it up after these probes, with this reason.
        runs: Leave it RUNNING after these probes.
        reason: Replaces the reason of the outcome.
        half_width: Of the 95 % interval of each closure and drop; none is recorded if absent, as in old runs.
        landing: What the trial measures once it is scaled back onto its target, after its last probe.
    """

    probes: Sequence[tuple[float, float, float]]
    fails: str | None = None
    runs: bool = False
    reason: str | None = None
    half_width: float | None = None
    landing: tuple[float, float, float] | None = None


SCRIPTS: tuple[TrialScript, ...] = (
    # 0: reaches its budget, closure 0.90 at step 5
    TrialScript(
        probes=[
            (1.4, 0.00, 0.01),
            (1.9, 0.01, 0.02),
            (2.3, 0.02, 0.03),
            (2.6, 0.04, 0.05),
            (2.8, 0.06, 0.08),
            (2.7, 0.07, 0.09),
        ]
    ),
    # 1: pruned by the hard limit at its first probe
    TrialScript(probes=[(4.5, 0.80, 0.60)]),
    # 2: closure 0.40 at step 1, then the retain guard stops it after step 4: COMPLETE
    TrialScript(
        probes=[
            (1.8, 0.05, 0.06),
            (2.6, 0.25, 0.22),
            (2.9, 0.28, 0.26),
            (3.0, 0.30, 0.30),
            (3.0, 0.3, 0.3),
            (3.0, 0.3, 0.3),
        ]
    ),
    # 3: closure 0.80 at step 2, then overshoots: stops after step 4
    TrialScript(
        probes=[(2.0, -0.02, 0.01), (3.4, -0.05, 0.03), (3.8, -0.06, 0.05), (4.2, -0.05, 0.06)]
    ),
    # 4: diverges at its second probe: pruned
    TrialScript(probes=[(6.0, 0.45, 0.40), (math.nan, math.nan, math.inf)]),
    # 5: breaks in all attempts
    TrialScript(
        probes=[(1.2, 0.0, 0.0)], fails="3 attempts failed, the last with: CUDA out of memory"
    ),
    # 6: never feasible, never stopped: COMPLETE and infeasible
    TrialScript(probes=[(1.5 + 0.2 * i, 0.15, 0.12) for i in range(6)]),
    # 7: closure 0.60 with drops below 0: on the front beside trials 0 and 3
    TrialScript(probes=[(1.2 + 0.2 * i, -0.10, -0.08) for i in range(6)]),
    # 8: still running
    TrialScript(probes=[(1.3, 0.0, 0.01), (1.6, 0.01, 0.01)], runs=True),
)


def sweep_values() -> dict[str, Any]:
    """Plain values of a small sweep over the embedded texts."""
    return {
        "schema": 1,
        "name": "sample",
        "model": {"source": "package:smollm2"},
        "data": {
            role: {"source": f"embedded:{role}"}
            for role in ("forget", "retain", "approximate", "general")
        }
        | {"probe_rows": 8, "report_rows": 8},
        "method": {"forget_loss": "ihl", "adapter_init": "fila"},
        "space": {
            "optimizer.learning_rate": {
                "float": {"low": 1e-5, "high": 1e-2, "log": True},
                "why": "Below nothing moves within six steps, above it diverges.",
                "source": "Cha et al., ICLR 2025",
            },
            "adapter.rank": {
                "categorical": [4, 8, 16],
                "why": "Small ranks keep the retained text.",
            },
            "fisher.exponent": {
                "categorical": [0.0, 0.5, 1.0],
                "why": "0 is the plain-SVD control.",
            },
        },
        "start_from": [
            {
                "source": "LoKU, section 5",
                "values": {
                    "optimizer.learning_rate": 1e-4,
                    "adapter.rank": 8,
                    "fisher.exponent": 0.5,
                },
            }
        ],
        "pruning": {"retain": {"limit": 0.2, "patience": 2, "grace_steps": 2, "hard_limit": 0.5}},
        "budget": {"trials": 10, "max_steps": 6},
        "sampler": {"name": "random", "seed": 3},
    }


def _around(
    metrics: Mapping[str, float], half_width: float | None
) -> dict[str, tuple[float, float]]:
    """Intervals as a probe has them; a closure's ends at 1."""
    if half_width is None:
        return {}
    judged = ("forget_closure", "retain_drop", "general_drop")
    found = {m: (metrics[m] - half_width, metrics[m] + half_width) for m in judged}
    low, high = found["forget_closure"]
    return found | {"forget_closure": (low, min(1.0, high))}


def _judged(metrics: dict[str, float], selection: SelectionConfig) -> dict[str, float]:
    """With the objective, where it is not a closure."""
    if not selection.is_minimized:
        return metrics
    return metrics | {"drop_at_target": drop_at_target(metrics, selection)}


def _play(ledger: Ledger, spec: SweepSpec, run_dir: Path, script: TrialScript) -> None:
    number, params = ledger.ask()
    attempt = ledger.begin_attempt(number)
    selection = bind(spec, params, where="sample").selection
    history = run_dir / attempt_folder(number, attempt) / "history.jsonl"
    append_line(
        history,
        {
            "step": 0,
            "metrics": probe_metrics(FORGET_BEFORE, 0.0, 0.0),
            "seconds": 1.0,
            "target_nll": FORGET_TARGET,
            "target_accuracy": 0.40,
        },
    )
    probes: list[Probe] = []
    verdict = None
    for step, values in enumerate(script.probes, start=1):
        metrics = _judged(probe_metrics(*values), selection)
        probe = Probe(
            step=step,
            metrics=metrics,
            seconds=1.0 + 2.5 * step,
            intervals=_around(metrics, script.half_width),
        )
        stopped_by: StoppedBy | None = "budget" if step == spec.budget.max_steps else None
        rule = selection.past_target
        if rule and is_past_target([*probes, probe], selection, rule, target_nll=FORGET_TARGET):
            stopped_by = "past_target"
        probe = replace(probe, stopped_by=stopped_by)
        if script.landing is not None and stopped_by is not None:
            there = _judged(probe_metrics(*script.landing), selection) | {"landing_factor": 0.5}
            probe = replace(probe, landed=replace(probe, metrics=there))
        probes.append(probe)
        append_line(
            history,
            {
                "step": step,
                "metrics": dict(probe.metrics),
                "seconds": probe.seconds,
                "is_best": False,
                "stopped_by": stopped_by,
            },
        )
        verdict = ledger.report(number, attempt, probes)
        if verdict or stopped_by:
            break
    if script.fails is not None:
        ledger.fail(number, script.fails)
    elif not script.runs:
        outcome = conclude(probes, selection, verdict)
        if script.reason is not None:
            outcome = type(outcome)(**(vars(outcome) | {"reason": script.reason}))
        adapter = f"{attempt_folder(number, attempt)}/adapter" if outcome.feasible else None
        ledger.finish(number, outcome, adapter=adapter, duration_s=1.0 + 2.5 * len(probes))


NOTES: Mapping[str, Any] = {
    "target": 10,
    "baseline": BASELINE,
    "report_baseline": REPORT_BASELINE,
    "identity": {
        "model": "sha256:1f0e",
        "data": {"forget": "sha256:ab12", "retain_probe": "sha256:cd34"},
    },
    "versions": {"python": "3.11.7", "torch": "2.13.0", "optuna": "5.0.0"},
    "created": "2026-11-22T03:00:00+00:00",
    "ended": "done",
    "elapsed_s": 187.4,
    "concurrent": 2,
    "report:0": probe_metrics(2.7, 0.05, 0.09, REPORT_BASELINE),
    "report:3": probe_metrics(3.4, -0.03, 0.02, REPORT_BASELINE),
    "report:7": probe_metrics(2.2, -0.08, -0.07, REPORT_BASELINE),
}

"""What a driver records: facts in ``spec.yaml``, its own notes and finalists in the ledger."""


def write_run(
    run_dir: Path,
    *,
    scripts: Sequence[TrialScript] = SCRIPTS,
    changes: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] = NOTES,
) -> Run:
    """Make a run folder whose trials went as ``scripts`` say, and read it."""
    run_dir.mkdir(parents=True)
    spec = parse_sweep(sweep_values() | dict(changes or {}), where="sample")
    facts = {k: v for k, v in notes.items() if k not in get_args(Note) and ":" not in k}
    commit_yaml(run_dir / "spec.yaml", {"sweep": spec.plain(), **facts})
    ledger = Ledger(run_dir, spec, create=True)
    for script in scripts:
        _play(ledger, spec, run_dir, script)
    for note in get_args(Note):
        if note in notes:
            ledger.set_note(note, notes[note])
    for key, value in notes.items():
        if key.startswith("report:"):
            ledger.set_report_metrics(int(key.removeprefix("report:")), value)
    return load_run(run_dir)
