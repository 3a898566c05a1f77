"""A sweep that minimises the drop at the target: order, best, figures and report, from a run folder."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from analytic_study import spec_of
from driven_sweep import drive, unsynced

from tuning import plots
from tuning.advice import advise
from tuning.knobs import good_trials
from tuning.plots import drawing
from tuning.pool import pooled
from tuning.ranking import best, ranked
from tuning.records import LEDGER_FILE, read_ledger
from tuning.report import verdict, write_report
from tuning.results import best_json, status_json
from tuning.run import Run
from tuning.views import status_text, trial_text

Built = Callable[..., Run]

PAST = [(2.0, 0.0, 0.0), (4.0, 0.05, 0.05), (5.0, 0.08, 0.08)]


@pytest.fixture
def run(build_run: Built, trial_script: Callable[..., Any]) -> Run:
    """Trials 1 and 3 landed; 0 and 2 never came near; 4 keeps no constraint."""
    return build_run(
        scripts=[
            trial_script(probes=[(1.4, -0.2, -0.2)] * 6),
            trial_script(probes=PAST, landing=(2.98, 0.06, 0.01)),
            trial_script(probes=[(2.6, 0.0, 0.0)] * 6),
            trial_script(probes=PAST, landing=(3.02, -0.05, 0.02)),
            trial_script(probes=[(2.9, 0.15, 0.0)] * 6),
        ],
        changes={
            "objective": {"metric": "drop_at_target"},
            "stop": {"past_target": {"patience": 1}},
        },
    )


def test_those_that_landed_come_first_by_their_drop_and_the_others_by_closure(run: Run) -> None:
    assert [t.number for t in ranked(run.trials)] == [3, 1, 2, 0, 4]
    values = [t.value for t in run.trials]
    assert values == pytest.approx([1.8, 0.06, 1.2, 0.02, 3.05])
    first = best(run.trials)
    assert first is not None and first.number == 3


def test_a_landed_trial_says_so(run: Run) -> None:
    first = best(run.trials)
    assert first is not None
    assert first.reason is not None and "scaled back to 0.50 it lies on its target" in first.reason
    shown = "\n".join(str(line) for line in trial_text(run, first).renderables)
    assert "landing_factor = 0.5000" in shown


def test_what_a_good_trial_is_is_said_by_direction(
    build_run: Built, trial_script: Callable[..., Any]
) -> None:
    """Of values 0.02, 0.04, 0.06 and 1.8 the first three are good: none of them reached half of the best."""
    landings = [(3.0 + nll, drop, 0.0) for nll, drop in ((0.02, 0.02), (0.02, 0.04), (0.02, 0.06))]
    run = build_run(
        scripts=[
            *(trial_script(probes=PAST, landing=landing) for landing in landings),
            trial_script(probes=[(1.4, -0.2, -0.2)] * 6),
        ],
        changes={
            "objective": {"metric": "drop_at_target"},
            "stop": {"past_target": {"patience": 1}},
        },
    )
    assert [t.number for t in good_trials(run.trials)] == [0, 1, 2]
    rule = (
        "kept every limit and lay at most halfway from the best value to the worst that kept them"
    )
    found = advise(pooled([run]))
    windows = [f.text for f in found.findings if f.section == "windows"]
    assert any(rule in text for text in windows)
    whys = [range_["why"] for range_ in found.next_sweep["space"].values()]
    assert any(rule in why for why in whys)
    assert rule in write_report(run).with_name("report.md").read_text(encoding="utf-8")
    assert not any("half of the best" in text for text in (*windows, *whys))


def test_best_json_names_direction_and_factor(run: Run) -> None:
    shown = best_json(run)
    assert shown["objective"] == {"metric": "drop_at_target", "direction": "minimize"}
    factors = {t["number"]: t["landing_factor"] for t in shown["trials"]}
    assert factors == {0: None, 1: 0.5, 2: None, 3: 0.5, 4: None}
    assert shown["trials"][0]["value"] == pytest.approx(0.02)
    assert status_json(run)["best"]["number"] == 3


def test_a_closure_that_landed_is_the_value_too(
    build_run: Built, trial_script: Callable[..., Any]
) -> None:
    run = build_run(
        scripts=[trial_script(probes=PAST, landing=(2.98, 0.06, 0.01))],
        changes={"stop": {"past_target": {"patience": 1}}},
    )
    assert run.trials[0].value == pytest.approx(0.99)
    curve = plots.curves_data(run).curves[0]
    panel = plots.curves_data(run).panels[0]
    assert curve.chosen(panel) == pytest.approx((run.trials[0].step, 0.99))


def test_figures_count_downwards(run: Run) -> None:
    history = plots.history_data(run)
    assert [p.best_so_far for p in history.points] == pytest.approx([1.8, 0.06, 0.06, 0.02, 0.02])
    assert history.is_minimized and history.has_band
    assert history.band == pytest.approx((3.0, history.bottom + 0.08))
    assert history.top < 0.0 < history.bottom
    for figure, largest in (
        (drawing.history_matplotlib(history), 3.05),
        (drawing.tradeoff_matplotlib(plots.tradeoff_data(run)), 1.8),
    ):
        axes = figure.axes[0]
        assert "drop_at_target (down is better)" in axes.get_ylabel()
        low, high = axes.get_ylim()
        assert low < 0.02 and high > largest
    curves = drawing.curves_matplotlib(plots.curves_data(run))
    assert "down is better" in curves.axes[0].get_ylabel()
    assert drawing.history_plotly(history).layout.yaxis.title.text.endswith("(down is better)")


def test_the_report_tells_of_it(run: Run) -> None:
    assert "Trial 3 is the best of 5 finished trials: drop_at_target +0.020" in verdict(run)
    page = write_report(run)
    text = (page.parent / "report.md").read_text(encoding="utf-8")
    assert "has a penalised value above 3" in text
    assert "drop_at_target" in page.read_text(encoding="utf-8")


def test_status_names_trials_without_effect(
    build_run: Built, trial_script: Callable[..., Any], tmp_path: Path
) -> None:
    run = build_run(scripts=[trial_script(probes=[(1.0, 0.0, 0.0)] * 6)])
    assert "without effect" not in status_text(run)
    trial = run.trials[0]
    idle = type(trial)(**(vars(trial) | {"stopped_by": "no_effect", "steps": 3}))
    told = type(run)(**(vars(run) | {"trials": (idle,)}))
    assert "1 without effect; 3 of 6 steps saved" in status_text(told)
    assert status_json(told)["guard"]["no_effect"] == 1
    assert [bar.ending for bar in plots.steps_data(told).bars] == ["no_effect"]


@pytest.mark.parametrize("ranking", ["median", "successive_halving"])
def test_a_ranking_pruner_stops_the_trials_of_larger_values(tmp_path: Path, ranking: str) -> None:
    spec = spec_of(
        objective={"metric": "drop_at_target"},
        budget={"trials": 9, "max_steps": 3},
        pruning={
            "retain": None,
            "ranking": ranking,
            "startup_trials": 2,
            "warmup_steps": 1,
            "reduction_factor": 2,
        },
    )
    with unsynced():
        drive(spec, tmp_path)
    trials, _driver = read_ledger(tmp_path / LEDGER_FILE)
    values = {
        state: [t.value for t in trials if t.state == state and t.value is not None]
        for state in ("PRUNED", "COMPLETE")
    }
    assert values["PRUNED"] and values["COMPLETE"]
    assert min(values["PRUNED"]) > min(values["COMPLETE"])
    assert statistics.mean(values["PRUNED"]) > statistics.mean(values["COMPLETE"])
