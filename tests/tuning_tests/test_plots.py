"""Figures: what is extracted is computed by hand here, and what is drawn holds it."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from tuning import plots
from tuning.plots import drawing
from tuning.plots.drawing.guideline import lines_matplotlib
from tuning.plots.guideline import Line, LinesData
from tuning.records import attempt_folder
from tuning.run import Run

Built = Callable[..., Run]

EXTRACT: dict[str, Callable[[Run], Any]] = {
    "history": plots.history_data,
    "tradeoff": plots.tradeoff_data,
    "curves": plots.curves_data,
    "levels": plots.levels_data,
    "steps": plots.steps_data,
    "timeline": plots.timeline_data,
    "importances": lambda run: plots.importances_data(run, None),
    "slices": lambda run: plots.slices_data(run, {}),
    "pair": lambda run: plots.pair_data(run, []),
    "parallel": plots.parallel_data,
}
MATPLOTLIB: dict[str, Callable[[Any], Figure]] = {
    "history": drawing.history_matplotlib,
    "tradeoff": drawing.tradeoff_matplotlib,
    "curves": drawing.curves_matplotlib,
    "levels": drawing.curves_matplotlib,
    "steps": drawing.steps_matplotlib,
    "timeline": drawing.timeline_matplotlib,
    "importances": drawing.importances_matplotlib,
    "slices": drawing.slices_matplotlib,
    "pair": drawing.pair_matplotlib,
    "parallel": drawing.parallel_matplotlib,
}
PLOTLY: dict[str, Callable[[Any], Any]] = {
    "history": drawing.history_plotly,
    "tradeoff": drawing.tradeoff_plotly,
    "curves": drawing.curves_plotly,
    "levels": drawing.curves_plotly,
    "steps": drawing.steps_plotly,
    "timeline": drawing.timeline_plotly,
    "importances": drawing.importances_plotly,
    "slices": lambda data: drawing.slices_plotly(data)[0],
    "pair": drawing.pair_plotly,
    "parallel": drawing.parallel_plotly,
}


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def names_of(figure: Any) -> list[str]:
    return [trace["name"] for trace in json.loads(figure.to_json())["data"] if "name" in trace]


def test_history_holds_value_state_and_best_so_far_of_every_finished_trial(sample_run: Run) -> None:
    data = plots.history_data(sample_run)
    assert [(p.number, p.kind) for p in data.points] == [
        (0, "feasible"),
        (1, "pruned"),
        (2, "feasible"),
        (3, "feasible"),
        (4, "pruned"),
        (5, "failed"),
        (6, "infeasible"),
        (7, "feasible"),
    ]
    values = [math.nan if p.value is None else p.value for p in data.points]
    assert values == pytest.approx([0.9, -2.2, 0.4, 0.8, -21.0, math.nan, -1.07, 0.6], nan_ok=True)
    assert [p.best_so_far for p in data.points] == pytest.approx([0.9] * 8)
    assert data.best_number == 0
    assert data.n_by_kind == {"feasible": 4, "infeasible": 1, "pruned": 2, "failed": 1}


def test_best_so_far_rises_with_feasible_trials_only(
    build_run: Built, trial_script: Callable[..., Any]
) -> None:
    run = build_run(
        scripts=[
            trial_script(probes=[(1.5, 0.15, 0.0)] * 6),  # infeasible
            trial_script(probes=[(1.4, 0.0, 0.0)] * 6),
            trial_script(probes=[(2.9, 0.15, 0.0)] * 6),  # better, but infeasible
            trial_script(probes=[(2.0, 0.0, 0.0)] * 6),
            trial_script(probes=[(1.6, 0.0, 0.0)] * 6),
        ]
    )
    line = [p.best_so_far for p in plots.history_data(run).points]
    assert line[0] is None
    assert line[1:] == pytest.approx([0.2, 0.2, 0.5, 0.5])


def test_wild_and_missing_values_are_drawn_on_the_bottom(sample_run: Run) -> None:
    data = plots.history_data(sample_run)
    assert data.bottom == pytest.approx(-2.1)
    assert [data.drawn(p) for p in data.points if p.number in (1, 5)] == pytest.approx([-2.1, -2.1])
    assert data.band_label.endswith("(cut at -2)")


def test_tradeoff_front_is_the_feasible_trials_that_no_other_beats(sample_run: Run) -> None:
    data = plots.tradeoff_data(sample_run)
    places = {p.number: (p.excess, p.objective) for p in data.points}
    assert places[0] == pytest.approx((-0.02, 0.9))
    assert places[3] == pytest.approx((-0.07, 0.8))
    assert places[7] == pytest.approx((-0.18, 0.6))
    assert places[2] == pytest.approx((-0.04, 0.4))
    assert places[1] == pytest.approx((0.7, 0.25))
    assert [p.number for p in data.front] == [7, 3, 0]
    assert data.n_hidden == 2  # one broke, one diverged
    low, high = data.span
    assert low < -0.18
    assert high > 0.2  # twice the limit: trial 1 is cut


def test_pruned_trial_is_visible_but_never_on_the_front(
    build_run: Built, trial_script: Callable[..., Any]
) -> None:
    run = build_run(
        scripts=[
            *[trial_script(probes=[(2.0 + 0.1 * i, 0.05, 0.05)] * 6) for i in range(4)],
            trial_script(probes=[(1.5, -0.2, -0.2)] * 6),  # worst objective, smallest excess
        ],
        changes={"pruning": {"ranking": "median", "startup_trials": 4, "warmup_steps": 2}},
    )
    assert (run.trials[4].state, run.trials[4].stopped_by) == ("PRUNED", "ranking_pruner")
    assert run.trials[4].feasible
    data = plots.tradeoff_data(run)
    assert [p.number for p in data.front] == [3]
    assert next(p for p in data.points if p.number == 4).kind == "pruned"


def test_curves_hold_all_probes_from_the_untouched_model_on(sample_run: Run) -> None:
    data = plots.curves_data(sample_run)
    assert [(p.metric, p.limit) for p in data.panels] == [
        ("forget_closure", None),
        ("retain_drop", 0.1),
        ("general_drop", 0.1),
    ]
    assert [c.number for c in data.curves] == list(range(9))
    first = data.curves[0]
    assert first.is_best
    assert first.chosen_step == 5
    assert first.steps == (0, 1, 2, 3, 4, 5, 6)
    assert first.values["forget_closure"] == pytest.approx((0.0, 0.2, 0.45, 0.65, 0.8, 0.9, 0.85))
    assert first.values["retain_drop"] == pytest.approx((0, 0, 0.01, 0.02, 0.04, 0.06, 0.07))
    assert data.n_by_ending == {
        "budget": 3,
        "past_target": 1,
        "retain_guard": 2,
        "non_finite": 1,
        "failed": 1,
    }


def test_diverged_curve_ends_at_its_last_number_or_at_the_edge(sample_run: Run) -> None:
    data = plots.curves_data(sample_run)
    closure, retain, general = data.panels
    diverged = data.curves[4]
    assert math.isnan(diverged.values["retain_drop"][-1])
    assert diverged.drawn(retain)[-1] is None
    ends = [diverged.end(panel) for panel in (closure, retain, general)]
    assert [end and end[0] for end in ends] == [1, 1, 2]
    assert [end and end[1] for end in ends] == pytest.approx([-0.5, 0.45, 0.6])  # infinite: cut


def test_the_ring_of_a_landed_trial_stands_off_its_curve_and_says_why(
    build_run: Built, trial_script: Callable[..., Any]
) -> None:
    past = [(2.0, 0.0, 0.0), (3.4, 0.05, 0.05), (3.8, 0.06, 0.05), (4.2, 0.06, 0.06)]
    run = build_run(scripts=[trial_script(probes=past, landing=(2.98, 0.03, 0.01))])
    data = plots.curves_data(run)
    closure, curve = data.panels[0], data.curves[0]
    assert curve.ring == "its value: step 4, scaled back (0.50)"
    assert curve.chosen(closure) == pytest.approx((4, 0.99))
    assert curve.fall(closure) == pytest.approx((4, 0.4, 0.99))
    legend = legend_of(drawing.curves_matplotlib(data))
    assert f"ring: {curve.ring}" in legend
    traces = json.loads(drawing.curves_plotly(data).to_json())["data"]
    assert curve.ring in [t.get("name") for t in traces]
    dotted = [t for t in traces if t.get("line", {}).get("dash") == "dot"]
    assert [t["x"] for t in dotted] == [[4, 4]] * 3
    assert dotted[0]["y"] == pytest.approx([0.4, 0.99])


def test_the_ring_of_a_trial_that_did_not_land_lies_on_its_curve(sample_run: Run) -> None:
    data = plots.curves_data(sample_run)
    curve = data.curves[0]
    assert curve.ring == "its value is taken at step 5"
    assert [curve.fall(panel) for panel in data.panels] == [None] * 3


def test_steps_made_and_saved_agree_with_the_ledger(sample_run: Run) -> None:
    from tuning.results import savings

    data = plots.steps_data(sample_run)
    assert [(b.number, b.ending, b.made, b.saved) for b in data.bars] == [
        (0, "budget", 6, 0),
        (1, "retain_guard", 1, 5),
        (2, "retain_guard", 4, 2),
        (3, "past_target", 4, 2),
        (4, "non_finite", 2, 4),
        (5, "failed", 1, 0),
        (6, "budget", 6, 0),
        (7, "budget", 6, 0),
    ]
    assert sum(b.saved for b in data.bars) == savings(sample_run).steps_saved
    assert data.saved_by("retain_guard") == 7


def test_counts_stand_in_the_legend_of_both_drawings(sample_run: Run) -> None:
    expected = ["COMPLETE, feasible (4)", "COMPLETE, infeasible (1)", "PRUNED (2)", "FAIL (1)"]
    data = plots.history_data(sample_run)
    for legend in (
        legend_of(drawing.history_matplotlib(data)),
        names_of(drawing.history_plotly(data)),
    ):
        assert [name for name in legend if name in expected] == expected
    tradeoff = plots.tradeoff_data(sample_run)
    for legend in (
        legend_of(drawing.tradeoff_matplotlib(tradeoff)),
        names_of(drawing.tradeoff_plotly(tradeoff)),
    ):
        assert {"Pareto front (3)", "PRUNED (1)", "no finite objective, not shown (2)"} <= set(
            legend
        )
    steps = plots.steps_data(sample_run)
    for legend in (
        legend_of(drawing.steps_matplotlib(steps)),
        names_of(drawing.steps_plotly(steps)),
    ):
        assert "retain guard (2 trials, 7 steps saved)" in legend


def test_front_and_values_are_what_plotly_draws(sample_run: Run) -> None:
    data = plots.tradeoff_data(sample_run)
    traces = json.loads(drawing.tradeoff_plotly(data).to_json())["data"]
    front = next(t for t in traces if t["name"].startswith("Pareto front"))
    assert front["x"] == pytest.approx([-0.18, -0.07, -0.02])
    assert front["y"] == pytest.approx([0.6, 0.8, 0.9])
    pruned = next(t for t in traces if t["name"].startswith("PRUNED"))
    assert pruned["x"] == [0.2]  # cut at twice the limit
    assert pruned["customdata"] == [[1, "+0.700"]]


def test_limit_line_stands_in_every_constrained_panel(sample_run: Run) -> None:
    data = plots.curves_data(sample_run)
    shapes = json.loads(drawing.curves_plotly(data).to_json())["layout"]["shapes"]
    assert [s["y0"] for s in shapes] == [0.1, 0.1]
    axes = drawing.curves_matplotlib(data).axes
    assert [a.get_ylabel() for a in axes] == [
        "forget_closure\nup is better",
        "retain_drop\nnats per token, down is better",
        "general_drop\nnats per token, down is better",
    ]


@pytest.mark.parametrize("case", ["empty", "one", "running", "failed", "diverged", "no-history"])
def test_small_and_broken_runs_are_drawn(
    case: str, build_run: Built, trial_script: Callable[..., Any], tmp_path: Path
) -> None:
    script = {
        "empty": [],
        "one": [trial_script(probes=[(2.0, 0.0, 0.0)] * 6)],
        "running": [trial_script(probes=[(2.0, 0.0, 0.0)], runs=True)],
        "failed": [trial_script(probes=[(1.0, 0.0, 0.0)], fails="no memory")],
        "diverged": [trial_script(probes=[(math.nan, math.nan, -math.inf)])],
        "no-history": [trial_script(probes=[(2.0, 0.0, 0.0)] * 6)],
    }[case]
    run = build_run(scripts=script)
    if case == "no-history":
        shutil.rmtree(run.path / attempt_folder(0, 1))
    for name, extract in EXTRACT.items():
        data = extract(run)
        MATPLOTLIB[name](data).savefig(tmp_path / "figure.png")
        text = PLOTLY[name](data).to_json()
        assert "NaN" not in text
        assert "Infinity" not in text


def test_plotly_library_cannot_end_its_script_element() -> None:
    assert "</script" not in drawing.plotly_js()


def test_what_figures_say_is_computed_without_the_libraries_that_draw() -> None:
    code = (
        "import sys, tuning.plots; "
        "print([m for m in ('plotly', 'matplotlib', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_utility_has_its_floor_as_limit_and_room_above_1(build_run: Built) -> None:
    limits = {
        "constraints": [
            {"metric": "retain_utility", "at_least": 0.95},
            {"metric": "general_drop", "at_most": 0.2},
        ],
        "pruning": {"retain": {"metrics": ["retain_utility", "retain_drop"], "limit": 0.1}},
    }
    run = build_run(changes=limits)
    panels = {p.metric: (p.limit, p.top) for p in plots.curves_data(run).panels}
    assert panels == {
        "forget_closure": (None, 1.0),
        "retain_utility": (0.95, 1.2),
        "general_drop": (0.2, 0.6),
        "retain_drop": (0.1, 0.6),
    }
    assert plots.tradeoff_data(run).furthest == pytest.approx(2 * 0.2)
    watched = run.spec.model_copy(update={"constraints": ()})
    panels = {
        p.metric: (p.limit, p.top) for p in plots.curves_data(replace(run, spec=watched)).panels
    }
    assert panels["retain_utility"] == (0.9, 1.2), "what the guard tolerates is a fall below 1"


def test_panels_are_titled_with_unit_and_direction() -> None:
    words = [
        plots.Panel(metric=m, limit=None, top=1.0).words
        for m in ("accuracy_closure", "general_accuracy_drop")
    ]
    assert words == [
        ["accuracy_closure", "up is better"],
        ["general_accuracy_drop", "share of tokens", "down is better"],
    ]


def named_on_a_logarithmic_axis(*values: float) -> list[str]:
    line = Line(label="one", x=values, y=tuple(0.0 for _ in values))
    shown = LinesData(title="t", x_label="x", y_label="y", lines=(line,), is_log=True)
    (axes,) = lines_matplotlib(shown).axes
    return [label.get_text() for label in axes.get_xticklabels()]


def test_a_short_logarithmic_axis_names_its_values_and_a_long_one_powers_of_ten() -> None:
    assert named_on_a_logarithmic_axis(4, 8, 16, 32, 64) == ["4", "8", "16", "32", "64"]
    assert any("10^{-3}" in name for name in named_on_a_logarithmic_axis(1e-4, 5e-4, 1e-2))
