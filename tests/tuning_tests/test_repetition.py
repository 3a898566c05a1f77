"""Finalists over seeds: the sweep that repeats them, and what is said of it."""

from __future__ import annotations

import io
import math
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Command
from rich.console import Console
from scipy import stats

import tuning.sweep
from core.errors import UserError
from tuning.best_view import BestTable
from tuning.card import model_card
from tuning.config import StartingPoint
from tuning.driver import Interrupted
from tuning.over_seeds import Spread, is_repetition
from tuning.ranking import ranked
from tuning.records import TrialRecord
from tuning.repetition import repeated_json, repeated_text, repetition
from tuning.report import write_report
from tuning.results import best_json, doubts
from tuning.run import Run
from tuning.views import ending_text, pick_trial, status_text


def printed(renderable: Any, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(renderable)
    return out.getvalue()


def test_the_best_trials_start_under_each_seed_and_nothing_else_is_tried(sample_run: Run) -> None:
    spec = repetition(sample_run, top=2, seeds=3)
    best = [dict(t.params) for t in ranked(sample_run.trials)[:2]]
    starts = [dict(s.values) for s in spec.start_from]
    seeds = sorted({s.pop("seed") for s in starts})
    assert len(seeds) == 3 and sample_run.spec.seed not in seeds
    assert [starts.count(params) for params in best] == [3, 3]
    assert spec.budget.trials == spec.budget.finalists == 6
    assert spec.name == "sample-repeat"


def test_a_run_without_a_feasible_trial_has_nothing_to_repeat(sample_run: Run) -> None:
    none = replace(sample_run, trials=tuple(t for t in sample_run.trials if not t.feasible))
    with pytest.raises(UserError, match="nothing to repeat"):
        repetition(none, top=3, seeds=2)


def test_a_repetition_is_not_repeated(sample_run: Run) -> None:
    again = replace(sample_run, spec=repetition(sample_run, top=1, seeds=2))
    with pytest.raises(UserError, match="already searches over seeds"):
        repetition(again, top=1, seeds=2)


def test_a_spread_is_the_mean_with_students_interval() -> None:
    values = [0.9, 0.8, 0.95, 0.85]
    found = Spread.of(values)
    low, high = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.deviation == pytest.approx(stats.tstd(values))


def test_one_value_has_no_interval() -> None:
    found = Spread.of([0.5, math.nan])
    assert (found.n, found.mean, found.low, found.high) == (1, 0.5, -math.inf, math.inf)


def test_only_a_sweep_that_begins_with_each_configuration_under_several_seeds_repeats(
    sample_run: Run,
) -> None:
    spec = repetition(sample_run, top=2, seeds=2)
    assert is_repetition(spec)
    assert not is_repetition(sample_run.spec)
    once = spec.model_copy(update={"start_from": spec.start_from[:2]})  # both under the first seed
    assert not is_repetition(once)
    assert not is_repetition(spec.model_copy(update={"start_from": ()}))


@pytest.fixture
def over_seeds(sample_run: Run) -> Callable[..., Run]:
    """A run that repeats trial ``rank`` of a sweep, with given values by configuration; ``None`` broke a limit."""

    def build(
        values: dict[int, list[float | None]], drops: Mapping[int, float] | None = None
    ) -> Run:
        like = next(t for t in sample_run.trials if t.feasible)
        trials: list[TrialRecord] = []
        starts = []
        for rank, of in values.items():
            for seed, value in enumerate(of):
                params = {"adapter.rank": rank, "seed": seed}
                starts.append(StartingPoint(source=f"trial {rank} of sample", values=params))
                trials.append(
                    replace(
                        like,
                        number=len(trials),
                        params=params,
                        value=-1.2 if value is None else value,
                        feasible=value is not None,
                        state="COMPLETE",
                        violations={"retain_drop": (drops or {}).get(rank, -0.05)},
                        report_metrics={"forget_closure_at_utility": 0.7},
                    )
                )
        searched = repetition(sample_run, top=1, seeds=2).space
        space = {name: searched[name] for name in ("adapter.rank", "seed")}
        spec = sample_run.spec.model_copy(update={"space": space, "start_from": tuple(starts)})
        driver = replace(sample_run.driver, target=len(trials))
        path = Path("runs/sample-repeat")
        return replace(sample_run, path=path, spec=spec, trials=tuple(trials), driver=driver)

    return build


def test_a_steady_difference_is_told_apart_though_the_seeds_spread_more(
    over_seeds: Callable[..., Run],
) -> None:
    run = over_seeds({4: [0.5, 0.7, 0.9], 8: [0.56, 0.77, 0.95]})
    first, second = run.repeats
    assert first.params == {"adapter.rank": 8}
    assert second.is_told_apart
    assert second.difference is not None
    assert second.difference.mean == pytest.approx(-0.06)


def test_of_configurations_that_cannot_be_told_apart_the_gentlest_is_recommended(
    over_seeds: Callable[..., Run],
) -> None:
    run = over_seeds({4: [0.8, 0.9, 0.7], 8: [0.9, 0.8, 0.75]}, {4: -0.09, 8: -0.01})
    first, second = run.repeats
    assert first.params == {"adapter.rank": 4}
    assert not second.is_told_apart


def test_what_breaks_a_limit_under_some_seed_stands_behind_what_keeps_it(
    over_seeds: Callable[..., Run],
) -> None:
    run = over_seeds({4: [0.9, None, 0.9], 8: [0.6, 0.6, 0.61]})
    first, second = run.repeats
    assert (first.params, first.kept) == ({"adapter.rank": 8}, 3)
    assert (second.kept, second.value.n) == (2, 2)


def test_it_is_shown_as_a_table_of_80_columns_and_as_json(over_seeds: Callable[..., Run]) -> None:
    run = over_seeds({4: [0.8, 0.9, 0.7], 8: [0.9, 0.8, 0.75]})
    text = printed(repeated_text(run), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "recommended" in text
    shown = repeated_json(run)["configurations"]
    assert [c["kept_limits"] for c in shown] == [3, 3]
    assert [c["forget_closure_at_utility"]["mean"] for c in shown] == pytest.approx([0.7, 0.7])


def test_each_configuration_names_its_original_and_its_repeats(
    over_seeds: Callable[..., Run],
) -> None:
    run = over_seeds({4: [0.9, 0.8, 0.85], 8: [0.3, 0.2, 0.25]})
    lines = printed(repeated_text(run)).splitlines()
    assert "A: trial 4 of sample, repeated as trials 0, 1 and 2: rank=4" in lines
    assert "B: trial 8 of sample, repeated as trials 3, 4 and 5: rank=8" in lines
    found = repeated_json(run)["configurations"]
    assert [c["source"] for c in found] == ["trial 4 of sample", "trial 8 of sample"]
    assert [c["trials"] for c in found] == [[0, 1, 2], [3, 4, 5]]
    assert [c["representative"] for c in found] == [2, 5]


@pytest.mark.parametrize(
    ("values", "number"),
    [
        pytest.param([0.9, 0.5, 0.7], 2, id="the-middle-one"),
        pytest.param([0.9, 0.5, 0.7, 0.6], 3, id="of-two-the-worse"),
        pytest.param([0.9, None, 0.7, 0.8], 3, id="of-those-within-the-limits"),
    ],
)
def test_the_repeat_with_the_middle_value_stands_for_its_configuration(
    over_seeds: Callable[..., Run], values: list[float | None], number: int
) -> None:
    (one,) = over_seeds({4: values}).repeats
    assert one.representative is not None
    assert one.representative.number == number


def test_of_two_in_the_middle_the_worse_is_the_larger_one_where_less_is_better(
    over_seeds: Callable[..., Run],
) -> None:
    run = over_seeds({4: [0.1, 0.2, 0.3, 0.4]})
    (one,) = run.repeats
    assert one.representative is not None and one.representative.number == 1
    less = replace(one, trials=tuple(replace(t, is_minimized=True) for t in one.trials))
    assert less.representative is not None and less.representative.number == 2


def test_a_repeat_that_breaks_a_limit_on_the_reporting_split_stands_for_nothing_while_another_keeps_all(
    over_seeds: Callable[..., Run],
) -> None:
    (one,) = over_seeds({4: [0.9, 0.8, 0.7]}).repeats
    broken = {"retain_drop": 9.0}
    first, second, third = one.trials
    middle = replace(second, report_metrics=broken)
    partly = replace(one, trials=(first, middle, third))
    assert partly.representative == third
    wholly = replace(one, trials=tuple(replace(t, report_metrics=broken) for t in one.trials))
    assert wholly.representative is not None and wholly.representative.number == 1


def test_best_of_a_repeat_run_is_the_recommended_configurations_and_not_the_luckiest_seed(
    over_seeds: Callable[..., Run],
) -> None:
    run = over_seeds({4: [0.99, 0.2, 0.3], 8: [0.8, 0.7, 0.75]}, {4: 0.0, 8: -0.05})
    assert ranked(run.trials)[0].number == 0
    assert run.best is not None and run.best.number == 5
    assert pick_trial(run, "best").number == 5
    assert [t.number for t in run.ranked] == [5, 3, 4, 0, 1, 2]
    assert [t.number for t in run.tied] == [3, 4, 0, 1, 2]  # nor can the other one be told from it
    shown = best_json(run)
    assert [t["number"] for t in shown["trials"]] == [5, 3, 4, 0, 1, 2]
    assert [c["source"] for c in shown["repeats"]] == ["trial 8 of sample", "trial 4 of sample"]


def test_what_broke_a_limit_stands_last_and_without_anything_else_nothing_is_recommended(
    over_seeds: Callable[..., Run],
) -> None:
    run = over_seeds({4: [0.9, None, 0.8], 8: [0.6, 0.5, 0.55]})
    assert [t.number for t in run.ranked] == [5, 3, 4, 0, 2, 1]
    none = over_seeds({4: [None, None]})
    assert none.best is None
    assert doubts(none) == ["this is a repeat run, and no repeat kept every limit so far"]
    assert "export" not in ending_text(none)


def test_the_ending_names_what_is_recommended_and_the_command_that_takes_it(
    over_seeds: Callable[..., Run],
) -> None:
    run = over_seeds({4: [0.9, 0.8, 0.85], 8: [0.3, 0.2, 0.25]})
    lines = ending_text(run).splitlines()
    assert (
        "this is a repeat run: trial 4 of sample is recommended over seeds (forget_closure 0.850 on average, 3 of 3 "
        "repeats kept every limit)"
    ) in lines
    assert (
        "single seeds are not to be ranked, because a value chosen for being high is a lucky one: of the repeats of "
        "trial 4 of sample that kept every limit, trial 2 of sample-repeat has the middle value and stands for them"
    ) in lines
    assert (
        "export it with: unlearn-tune export runs/sample-repeat --trial 2 --out sample-repeat-best"
    ) in lines


def test_what_cannot_be_told_apart_and_what_is_not_finished_is_said(
    over_seeds: Callable[..., Run],
) -> None:
    run = over_seeds({4: [0.8, 0.9, 0.7], 8: [0.9, 0.8, 0.75]}, {4: -0.09, 8: -0.01})
    running = replace(run, driver=replace(run.driver, target=9))
    first, _, tie = doubts(running)
    assert first.endswith("kept every limit, so far: 6 of 9 trials ended)")
    assert tie.startswith("trial 8 of sample cannot be told from it over the same seeds")


@pytest.fixture
def repeat_run(
    sample_run: Run,
    build_run: Callable[..., Run],
    trial_script: Callable[..., Any],
    sample_notes: Mapping[str, Any],
) -> Run:
    """A folder of trials 0 and 3 of the sample, each under three seeds; the first has the luckiest."""
    spec = repetition(sample_run, top=2, seeds=3)
    levels = [2.9, 2.0, 1.3, 2.0, 1.5, 2.0]
    notes = {k: v for k, v in sample_notes.items() if not k.startswith("report:")} | {"target": 6}
    return build_run(
        "sample-repeat",
        scripts=[trial_script(probes=[(nll, 0.01, 0.01)] * 6) for nll in levels],
        changes=spec.plain(),
        notes=notes,
    )


def test_a_repeat_run_is_known_by_its_folder(repeat_run: Run) -> None:
    assert repeat_run.is_repetition
    assert {one.source for one in repeat_run.repeats} == {"trial 0 of sample", "trial 3 of sample"}
    assert [[t.number for t in one.trials] for one in repeat_run.repeats] == [[1, 3, 5], [0, 2, 4]]


@pytest.mark.parametrize(
    ("options", "again"),
    [
        pytest.param(("--top", 2), "--top 2 --seeds 5", id="its-own-name"),
        pytest.param(
            ("--seeds", 3, "--name", "mine"), "--top 3 --seeds 3 --name mine", id="a-name-given"
        ),
    ],
)
def test_a_repeat_run_that_was_stopped_names_one_command_that_goes_on_and_it_is_repeat(
    tune: Command,
    sample_run: Run,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    again: str,
) -> None:
    def stopped(_spec: object, run_dir: Path, **_: object) -> Run:
        run_dir.mkdir(parents=True)
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(tuning.sweep, "run_sweep", stopped)
    done = tune("repeat", sample_run.path, *options)
    command = f"unlearn-tune repeat {sample_run.path} {again}"
    assert done.status == 128 + signal.SIGTERM
    assert f"go on after a stop with: {command}\n" in done.err
    assert f"nothing finished is lost. Go on with: {command}\n" in done.err
    assert "unlearn-tune resume" not in done.err


def test_another_run_that_was_stopped_names_resume(
    tune: Command, sample_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> Run:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(tuning.sweep, "resume_sweep", stopped)
    done = tune("resume", sample_run.path)
    assert done.status == 128 + signal.SIGINT
    assert f"Go on with: unlearn-tune resume {sample_run.path}\n" in done.err


@pytest.mark.parametrize("verb", ["repeat", "resume"])
def test_a_repeat_run_ends_with_its_configurations_and_the_command_that_takes_one(
    tune: Command, sample_run: Run, repeat_run: Run, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Whichever verb made its last trials; here there are none left to make."""
    monkeypatch.setattr(tuning.sweep, "resume_sweep", lambda *_, **__: repeat_run)
    options = ("--top", 2, "--seeds", 3)
    asked = (sample_run.path, *options) if verb == "repeat" else (repeat_run.path,)
    done = tune(verb, *asked)
    assert done.status == 0
    assert "A: trial 3 of sample, repeated as trials 1, 3 and 5: " in done.out
    assert f"unlearn-tune export {repeat_run.path} --trial 3 --out sample-repeat-best" in done.err
    assert "repeats" in tune("resume", repeat_run.path, "--json").json


def test_table_status_and_card_say_that_it_is_a_repeat_run(repeat_run: Run) -> None:
    first = repeat_run.best
    assert first is not None
    card = model_card(
        repeat_run, first, "package:smollm2", forget="embedded:forget", saved=None, trial_rank=4
    )
    shown = {
        "table": printed(BestTable(run=repeat_run, top=5)),
        "status": status_text(repeat_run),
        "card": card,
    }
    for text in shown.values():
        assert re.search("this is a repeat run: .* is recommended over seeds", text, re.IGNORECASE)
        assert "ingle seeds are not to be ranked" in text
    assert "*" not in shown["table"]
    assert "Best of its sweep" not in card


def test_the_report_of_a_repeat_run_shows_its_configurations(repeat_run: Run) -> None:
    first = repeat_run.best
    assert first is not None
    page = write_report(repeat_run)
    text = page.with_name("report.md").read_text(encoding="utf-8")
    html = page.read_text(encoding="utf-8")
    said = f"Trial {first.number} stands for the configuration that is recommended over seeds, of 6"
    for shown in (text, html):
        assert said in shown
        assert "This is a repeat run: " in shown
        assert "is the best of" not in shown
        assert "Best first" not in shown
    rows = re.findall(r"^\| (trial \d of sample) \| (.*?) \| 3 of 3 \|.*\| (.*) \|$", text, re.M)
    assert [(name, trials) for name, trials, _ in rows] == [
        (one.name, ", ".join(str(t.number) for t in one.trials)) for one in repeat_run.repeats
    ]
    assert [last == "recommended" for _, _, last in rows] == [True, False]
    assert html.count("<h3>Over seeds</h3>") == 1


def test_the_report_of_another_run_shows_none(sample_run: Run) -> None:
    page = write_report(sample_run)
    assert "Over seeds" not in page.read_text(encoding="utf-8")
    text = page.with_name("report.md").read_text(encoding="utf-8")
    assert "paired difference" not in text
    assert "Best first; * marks the Pareto front" in text
