"""Figures of the searched fields, and the timeline: what they hold is computed by hand here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core.store.durable import append_line
from tuning import plots
from tuning.config import Dimension
from tuning.importance import Estimate, Importances
from tuning.knobs import Window
from tuning.plots.scales import plain
from tuning.records import EVENTS_FILE
from tuning.report import report_figures
from tuning.run import Run, load_run

Built = Callable[..., Run]


def scale(**values: Any) -> plots.Scale:
    dimension = Dimension.model_validate({"why": "a test", **values})
    return plots.scales({"adapter.rank": dimension})[0]


def test_a_logarithmic_range_is_an_axis_of_decades() -> None:
    found = scale(float={"low": 1e-5, "high": 1e-1, "log": True})
    assert [found.place(v) for v in (1e-5, 1e-3, 1e-1)] == pytest.approx([0.0, 0.5, 1.0])
    assert [label for _, label in found.marks] == ["1e-05", "0.0001", "0.001", "0.01", "0.1"]
    assert [place for place, _ in found.marks] == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_marks_of_a_linear_range_are_round_and_within_it() -> None:
    marks = scale(float={"low": -0.165, "high": 0.227}).marks
    assert [label for _, label in marks] == ["-0.1", "0", "0.1", "0.2"]
    assert [place for place, _ in marks] == pytest.approx(
        [(v + 0.165) / 0.392 for v in (-0.1, 0.0, 0.1, 0.2)]
    )


@pytest.mark.parametrize(
    "range_", [{"low": 2.0, "high": 3.0, "log": True}, {"low": 0.5, "high": 0.5}]
)
def test_a_narrow_range_has_marks_too(range_: dict[str, Any]) -> None:
    assert scale(float=range_).marks


def test_choices_stand_side_by_side_in_the_files_order_and_no_other_value_has_a_place() -> None:
    found = scale(categorical=[16, 4])
    assert found.marks == [(0.25, "16"), (0.75, "4")]
    assert [found.place(v) for v in (4, 8, None)] == [0.75, None, None]


def test_trials_with_the_same_choice_stand_apart_within_its_slot() -> None:
    found = scale(categorical=["lora", "fila"])
    places = [found.spread("lora", number) for number in range(20)]
    assert len(set(places)) == 20
    assert all(p is not None and 0.0 < p < 0.5 for p in places)


def test_a_value_outside_a_range_has_no_place() -> None:
    found = scale(int={"low": 2, "high": 8})
    assert [found.place(v) for v in (1, 2, 8, 9, True, "4", None)] == [
        None, 0.0, 1.0, None, None, None, None,
    ]  # fmt: skip


def test_fields_with_the_same_last_name_keep_their_paths() -> None:
    one = Dimension.model_validate({"categorical": [1, 2], "why": "a test"})
    names = [s.name for s in plots.scales(dict.fromkeys(("a.x", "b.x", "b.y"), one))]
    assert names == ["a.x", "b.x", "y"]


def test_texts_of_a_run_lose_what_the_libraries_read_as_markup() -> None:
    assert plain("<b>$x$</b>\n{y}") == "·b··x··/b· ·y·"
    assert len(plain("x" * 100)) == 20


def test_slices_hold_each_finished_trial_at_its_place_and_the_window(sample_run: Run) -> None:
    rates = [float(t.params["optimizer.learning_rate"]) for t in sample_run.trials]
    window = Window(low=1e-4, high=1e-3, decades=1.0, good=(0, 3), others=())
    data = plots.slices_data(sample_run, {"optimizer.learning_rate": window})
    names = [s.scale.name for s in data.slices]
    assert names == ["learning_rate", "rank", "exponent"]
    first = data.slices[0]
    assert [p.number for p in first.points] == list(range(8))
    assert [p.place for p in first.points] == [first.scale.place(r) for r in rates[:8]]
    assert [p.height for p in first.points] == [
        data.values.drawn(p) for p in plots.history_data(sample_run).points
    ]
    assert first.window == pytest.approx((1 / 3 - 0.012, 2 / 3 + 0.012))
    assert first.words == "good trials (2): 0.0001 to 0.001, 1.0 decades"
    assert [(s.window, s.words) for s in data.slices[1:]] == [(None, "no window")] * 2


def test_a_window_over_choices_covers_them_whole(sample_run: Run) -> None:
    window = Window(low=8.0, high=16.0, decades=None, good=(0, 3), others=())
    rank = plots.slices_data(sample_run, {"adapter.rank": window}).slices[1]
    assert rank.window == pytest.approx((1 / 3, 1.0))


def test_the_pair_is_the_two_most_important_fields_with_the_ranks_of_the_table(
    sample_run: Run,
) -> None:
    data = plots.pair_data(sample_run, ["fisher.exponent", "optimizer.learning_rate"])
    assert data is not None
    assert (data.x.name, data.y.name) == ("exponent", "learning_rate")
    assert [(p.rank, p.number) for p in data.points] == [
        (1, 0), (2, 3), (3, 7), (4, 2), (5, 6), (6, 1), (7, 4),
    ]  # fmt: skip
    unknown = plots.pair_data(sample_run, [])
    assert unknown is not None
    assert (unknown.x.name, unknown.y.name) == ("learning_rate", "rank")


def test_one_searched_field_makes_no_pair(build_run: Built) -> None:
    space = {"adapter.rank": {"categorical": [4, 8], "why": "a test"}}
    changes = {"space": space, "start_from": [], "optimizer": {"learning_rate": 1e-4}}
    assert plots.pair_data(build_run(scripts=[], changes=changes), []) is None


def test_parallel_lines_pass_each_field_then_excess_and_value(sample_run: Run) -> None:
    data = plots.parallel_data(sample_run)
    assert [axis.name for axis in data.axes] == [
        "learning_rate",
        "rank",
        "exponent",
        "worst excess",
        "value",
    ]
    assert [line.number for line in data.lines] == list(range(8))
    assert [line.number for line in data.lines if line.is_best] == [0]
    excess, value = data.axes[3:]
    assert data.lines[0].places[3:] == pytest.approx((excess.place(-0.02), value.place(0.9)))
    assert data.lines[5].places[3] is None  # it broke: no excess
    assert data.lines[5].places[4] == 0.0  # at the bottom, as in the history


def test_importances_stand_side_by_side_under_short_names(sample_run: Run) -> None:
    found = Importances(
        ped_anova={
            "adapter.rank": Estimate(value=0.7, low=0.5, high=0.9),
            "fisher.exponent": Estimate(value=0.3, low=0.1, high=0.5),
        },
        fanova={
            "fisher.exponent": Estimate(value=0.6, low=0.2, high=0.8),
            "adapter.rank": Estimate(value=0.4, low=0.2, high=0.8),
        },
        trials=(0, 1, 2),
    )
    data = plots.importances_data(sample_run, found)
    assert [(b.name, b.ped_anova, b.fanova[0]) for b in data.bars] == [
        ("rank", (0.7, 0.5, 0.9), 0.4),
        ("exponent", (0.3, 0.1, 0.5), 0.6),
    ]
    assert data.n_trials == 3
    assert plots.importances_data(sample_run, None).bars == ()


def test_the_figure_of_importances_names_the_fields_that_it_does_not_judge(
    build_run: Built, trial_script: Callable[..., Any]
) -> None:
    run = build_run(
        scripts=[trial_script(probes=[(1.2 + n / 10, 0.0, 0.0)] * 6) for n in range(12)]
    )
    same = tuple(replace(t, params={**t.params, "fisher.exponent": 0.5}) for t in run.trials)
    (figure,) = (f for f in report_figures(replace(run, trials=same)) if f.name == "importances")
    assert figure.caption.endswith(" Not judged: fisher.exponent (the same in all of them).")


def note(run: Run, seconds: int, event: str, **values: Any) -> None:
    """An event, so many seconds after the first."""
    moment = datetime(2026, 11, 22, tzinfo=UTC) + timedelta(seconds=seconds)
    line = {"time": moment.isoformat(timespec="seconds"), "event": event, **values}
    append_line(run.path / EVENTS_FILE, line, synced=False)


def test_an_attempt_takes_the_first_free_worker(sample_run: Run) -> None:
    note(sample_run, 0, "Prepared")
    for number, began in ((0, 5), (1, 5), (2, 15), (3, 25)):
        note(sample_run, began, "TrialBegan", number=number, attempt=1)
        if number == 1:
            note(sample_run, 15, "TrialEnded", number=1)
    note(sample_run, 25, "TrialEnded", number=0)
    note(sample_run, 40, "TrialProbed", number=2)
    data = plots.timeline_data(load_run(sample_run.path))
    assert [(s.number, s.lane, s.begin, s.end, s.ending) for s in data.spans] == [
        (0, 0, 0.0, 20.0, "budget"),
        (1, 1, 0.0, 10.0, "retain_guard"),
        (2, 1, 10.0, 35.0, None),
        (3, 0, 20.0, 20.0, None),
    ]
    assert data.n_lanes == 2
    assert data.busy_s == 55.0


def test_an_attempt_of_a_killed_driver_ends_with_its_last_probe_and_the_pause_is_left_out(
    sample_run: Run,
) -> None:
    note(sample_run, 0, "TrialBegan", number=0, attempt=1)
    note(sample_run, 10, "TrialProbed", number=0)
    note(sample_run, 4000, "TrialBegan", number=0, attempt=2)
    note(sample_run, 4030, "TrialBroke", number=0, attempt=2)
    note(sample_run, 4031, "TrialBegan", number=0, attempt=3)
    note(sample_run, 4041, "TrialEnded", number=0)
    data = plots.timeline_data(sample_run)
    assert [(s.attempt, s.begin, s.end, s.ending) for s in data.spans] == [
        (1, 0.0, 10.0, None),
        (2, 10.0, 40.0, None),
        (3, 41.0, 51.0, "budget"),
    ]
    assert data.n_pauses == 1


def test_what_was_adopted_after_an_interruption_ended_when_it_was_last_heard_of(
    sample_run: Run,
) -> None:
    note(sample_run, 0, "TrialBegan", number=0, attempt=1)
    note(sample_run, 10, "TrialProbed", number=0)
    note(sample_run, 500, "TrialEnded", number=0, adopted=True)
    assert [(s.begin, s.end, s.ending) for s in plots.timeline_data(sample_run).spans] == [
        (0.0, 10.0, "budget")
    ]


def test_saved_work_counts_the_seconds_of_a_step_of_its_trial(sample_run: Run) -> None:
    data = plots.timeline_data(sample_run)
    seconds = {s.number: s.end - s.begin for s in data.savings}
    assert seconds == pytest.approx(  # steps not made x (1 + 2.5 x steps) / steps
        {1: 5 * 3.5, 2: 2 * 11 / 4, 3: 2 * 11 / 4, 4: 4 * 3.0}
    )
    assert data.saved_s == pytest.approx(sum(seconds.values()))
    assert data.spans == ()  # a run without an event log


def test_learning_curves_hold_the_levels_with_target_and_origin(sample_run: Run) -> None:
    data = plots.levels_data(sample_run)
    assert [(p.metric, p.limit, p.line) for p in data.panels] == [
        ("forget_nll", 3.0, "target of forgetting"),
        ("retain_nll", 2.0, "before unlearning"),
        ("general_nll", pytest.approx(2.5), "before unlearning"),
    ]
    assert data.panels[0].top == pytest.approx(5.0)  # as far beyond the target as it lay away
    first = data.curves[0].values["forget_nll"]
    assert first == pytest.approx((1.0, 1.4, 1.9, 2.3, 2.6, 2.8, 2.7))


def test_learning_curves_of_an_old_run_take_their_lines_from_its_history(build_run: Built) -> None:
    panels = plots.levels_data(build_run(notes={})).panels
    assert [p.limit for p in panels] == pytest.approx([3.0, 2.0, 2.5])
