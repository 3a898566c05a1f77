"""The report of a run: one HTML page that needs nothing else, the same in Markdown, and figures as PNG.

Needs neither Ray nor torch. All texts of a run are untrusted (a run folder may come from a stranger).
"""

import base64
import io
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from core.config import METRICS
from core.store.durable import commit
from tuning import plots
from tuning.data_words import by_role, count_words, data_warnings
from tuning.plots import drawing
from tuning.plots.reading import number_or_nan
from tuning.ranking import best, excess, pareto_front, ranked, tied_with_best
from tuning.records import TrialRecord, attempt_folder, now
from tuning.results import counts, doubts, savings
from tuning.run import Run
from tuning.space import describe
from tuning.wording import (
    NOTHING,
    between,
    duration,
    measured,
    number,
    parameter,
    percent,
    signed,
    with_interval,
)

REPORT_FOLDER = "report"
DPI = 130

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


@dataclass(frozen=True, kw_only=True)
class ReportFigure:
    """A figure of the report: its file, heading, how to read it, and both drawings."""

    name: str
    title: str
    caption: str
    png: bytes
    interactive: Any

    @property
    def data_uri(self) -> str:
        """The PNG for a page without scripts."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode('ascii')}"


def write_report(run: Run) -> Path:
    """Write ``report/`` in the run folder: ``index.html``, ``report.md`` and PNGs; older ones are replaced.

    Returns:
        The HTML page.

    Raises:
        OSError: If the folder cannot be written.
    """
    folder = run.path / REPORT_FOLDER
    figures = report_figures(run)
    for figure in figures:
        commit(folder / f"{figure.name}.png", _writer(figure.png))
    content = report_content(run) | {"figures": figures}
    pages = _environment()
    text = pages.get_template("report.md.j2").render(content)
    commit(folder / "report.md", _writer(re.sub(r"\n{3,}", "\n\n", text).encode("utf-8")))
    html = pages.get_template("report.html.j2").render(
        content,
        plotly_js=Markup(drawing.plotly_js()),  # noqa: S704  # the library's own text
    )
    page = folder / "index.html"
    commit(page, _writer(html.encode("utf-8")))
    return page


def report_figures(run: Run) -> list[ReportFigure]:
    """The four figures of a run."""
    history, tradeoff = plots.history_data(run), plots.tradeoff_data(run)
    side = "above" if history.is_minimized else "below"
    curves, steps = plots.curves_data(run), plots.steps_data(run)
    return [
        ReportFigure(
            name="history",
            title="Optimisation history",
            caption="Value of each finished trial. A trial without a feasible probe has a penalised value "
            f"{side} {history.worst:g}; one that broke has none and stands at the "
            f"{'top' if history.is_minimized else 'bottom'}.",
            png=_png(drawing.history_matplotlib(history)),
            interactive=_plain(drawing.history_plotly(history)),
        ),
        ReportFigure(
            name="tradeoff",
            title="Forgetting against damage",
            caption="Each finished trial at the probe that counts. Left of the line every constraint holds; "
            "from the Pareto front, no trial forgets more without coming closer to a limit.",
            png=_png(drawing.tradeoff_matplotlib(tradeoff)),
            interactive=_plain(drawing.tradeoff_plotly(tradeoff)),
        ),
        ReportFigure(
            name="curves",
            title="Trial curves",
            caption="Every probe of every trial. A closure that falls again is over-unlearning. Values far "
            "above the limit are cut at the upper edge.",
            png=_png(drawing.curves_matplotlib(curves)),
            interactive=_plain(drawing.curves_plotly(curves)),
        ),
        ReportFigure(
            name="steps",
            title="Why trials ended",
            caption="Optimiser steps that each trial made, and the hatched ones that stopping it early saved.",
            png=_png(drawing.steps_matplotlib(steps)),
            interactive=_plain(drawing.steps_plotly(steps)),
        ),
    ]


def report_content(run: Run) -> dict[str, Any]:
    """What both templates show, as plain values."""
    first, order = best(run.trials), ranked(run.trials)
    front = {t.number for t in pareto_front(run.trials)}
    placed = {t.number for t in order}
    rest = [t for t in run.trials if t.number not in placed and t.state != "WAITING"]
    saved = savings(run)
    finalists = [t for t in order if t.report_metrics]
    return {
        "run": run,
        "spec": run.spec,
        "verdict": verdict(run),
        "doubts": [f"{d[0].upper()}{d[1:]}." for d in doubts(run)],
        "tied": {t.number for t in tied_with_best(run.trials)},
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
        "commands": commands(run, first),
        "environment": environment(run),
        "elapsed": duration(run.driver.elapsed_s),
        "written": now(),
        "folder_of": lambda t: attempt_folder(t.number, t.attempt),
    }


def verdict(run: Run) -> str:
    """The result in one sentence."""
    first, order = best(run.trials), ranked(run.trials)
    n_finished = sum(t.state in ("COMPLETE", "PRUNED", "FAIL") for t in run.trials)
    if n_finished == 0:
        return "No trial has finished yet."
    finished = f"{n_finished} finished trial{'' if n_finished == 1 else 's'}"
    if first is not None:
        metric = run.spec.objective.metric
        drops = [
            f"{c.metric} {measured(first.metrics.get(c.metric), c.metric)} {METRICS[c.metric].unit} "
            f"({f'limit {c.limit:g}' if not c.is_floor else c.words})"
            for c in run.spec.constraints
        ]
        kept = f" with {' and '.join(drops)}" if drops else ""
        steps = f"{first.step} optimiser step{'' if first.step == 1 else 's'}"
        reported = ""
        if first.report_metrics:
            judged = [metric, *(c.metric for c in run.spec.constraints)]
            values = [f"{m} {measured(first.report_metrics.get(m), m)}" for m in judged]
            reported = f"; on the reporting split {', '.join(values)}"
        return (
            f"Trial {first.number} is the best of {finished}: {metric} "
            f"{with_interval(first.value, first.value_interval, metric)} "
            f"after {steps}{kept}{reported}."
        )
    nearest = min(order, key=excess, default=None)
    if nearest is None:
        return f"None of {finished} is feasible: none of them has a value."
    worst = max(nearest.violations, key=lambda m: nearest.violations[m], default=None)
    floors = {c.metric for c in run.spec.constraints if c.is_floor}
    side = "below" if worst in floors else "above"
    how = f", {worst} {number(excess(nearest))} {side} its limit" if worst else ""
    return f"None of {finished} is feasible; trial {nearest.number} comes nearest{how}."


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
    lines = run.history(trial.number)
    if not lines or lines[0].get("step") != 0:
        return {}
    found = {k: number_or_nan(v) for k, v in (lines[0].get("metrics") or {}).items()}
    for level in ("nll", "accuracy"):
        if f"target_{level}" in lines[0]:
            found[f"approximate_{level}"] = number_or_nan(lines[0][f"target_{level}"])
    return found


def commands(run: Run, first: TrialRecord | None) -> list[tuple[str, str]]:
    """What to type next: purpose and command."""
    folder = run.path.resolve()
    here = Path.cwd()
    shown = shlex.quote(str(folder.relative_to(here) if folder.is_relative_to(here) else folder))
    if first is None:
        nearest = (ranked(run.trials) or list(run.trials))[:1]
        found = [
            (f"look at trial {t.number}", f"unlearn-tune show {shown} {t.number}") for t in nearest
        ]
        more = run.target + run.spec.budget.trials
        return [*found, ("try more trials", f"unlearn-tune resume {shown} --trials {more}")]
    return [
        ("look at the best trial", f"unlearn-tune show {shown} {first.number}"),
        (
            "export its adapter and its configuration",
            f"unlearn-tune export {shown} --trial best --out exported",
        ),
        ("train that configuration again", "unlearn-tune train exported/trial.yaml --out again"),
    ]


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


_MARKDOWN_SIGNS = re.compile(r"([\\`*\[\]|~#])")


def markdown(value: Any) -> Markup:
    """A text that Markdown shows as it is, in one line, also in a cell of a table."""
    line = " ".join(str(value).split())
    safe = str(escape(line)).replace("&#39;", "'").replace("&#34;", '"')
    return Markup(_MARKDOWN_SIGNS.sub(r"\\\1", safe))  # noqa: S704  # escaped above


def verbatim(value: Any) -> Markup:
    """A line of an indented code block, where Markdown shows every sign as it is."""
    return Markup(" ".join(str(value).splitlines()))  # noqa: S704  # a code block holds no markup


def _environment() -> Environment:
    pages = Environment(
        loader=PackageLoader("tuning", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown: Sequence[Callable[..., Any]] = (
        number,
        signed,
        measured,
        with_interval,
        between,
        parameter,
        percent,
        duration,
        markdown,
        verbatim,
    )
    pages.filters |= {function.__name__: function for function in shown}
    return pages


def _plain(figure: Any) -> Any:
    """A plotly figure as plain values; NaN became null."""
    return json.loads(figure.to_json())


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return buffer.getvalue()


def _writer(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write
