"""Tables and lines of the terminal, as a person reads them."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console, RenderableType

from tuning.best_view import BestTable, short_names
from tuning.records import DriverFacts
from tuning.run import Run
from tuning.views import sparkline, status_text, trial_text


def lines_of(group: RenderableType) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=200).print(group)
    return out.getvalue().splitlines()


def with_objective(run: Run, metric: Any) -> Run:
    objective = run.spec.objective.model_copy(update={"metric": metric})
    return replace(run, spec=run.spec.model_copy(update={"objective": objective}))


def test_the_best_trials_stand_under_labels_of_two_lines(sample_run: Run) -> None:
    first, second, row, *_ = lines_of(BestTable(run=sample_run, top=1))
    assert first.split() == ["forget", "retain", "general", "forget", "learning"]
    assert (
        " ".join(second.split()) == "trial state closure step drop drop accuracy rate rank exponent"
    )
    shown = ["*0", "COMPLETE", "0.900", "5", "0.060", "0.080", "0.440", "0.0001", "8", "0.5"]
    assert row.split() == shown


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_table_fits_its_terminal_breaks_no_number_and_names_what_it_leaves_out(
    build_run: Callable[..., Run], width: int
) -> None:
    names = ["retain_utility", "retain_accuracy_drop", "general_accuracy_drop", "general_drop"]
    guard = {"retain": {"metrics": names, "limit": 0.2}}
    constraints = [{"metric": "retain_utility", "at_least": 0.95}]
    run = build_run(changes={"constraints": constraints, "pruning": guard})
    out = io.StringIO()
    Console(file=out, width=width).print(BestTable(run=run, top=3))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    first = run.trials[int(lines[2].split()[0].lstrip("*~!^"))]
    assert f"{first.params['optimizer.learning_rate']:.3g}" in lines[2].split()
    wide = lines_of(BestTable(run=run, top=3, is_wide=True))
    shown = " ".join(" ".join(lines).split())
    for name in ("accuracy drop", "forget accuracy"):
        assert "not shown: " in shown or name in shown
    assert len(wide[2].split()) >= len(lines[2].split())
    curves = [line.split()[0] for line in lines_of(trial_text(run, run.trials[0]))]
    for name in ("forget_closure", "forget_nll", *names):
        assert name in curves


def test_parameters_of_one_name_are_told_apart_by_what_they_belong_to() -> None:
    names = ["method.npo.beta", "method.simnpo.beta", "adapter.rank"]
    assert list(short_names(names).values()) == ["npo.beta", "simnpo.beta", "rank"]


@pytest.mark.parametrize(
    ("metric", "heading"),
    [
        pytest.param("accuracy_closure", ("accuracy", "closure"), id="accuracy"),
        pytest.param(
            "forget_closure_at_utility", ("forget", "closure at utility"), id="calibrated"
        ),
    ],
)
def test_the_objective_stands_under_its_label(
    sample_run: Run, metric: str, heading: tuple[str, str]
) -> None:
    first, second, *_ = lines_of(BestTable(run=with_objective(sample_run, metric), top=1))
    assert first.split()[0] == heading[0]
    assert heading[1] in second


def test_the_table_marks_ties_and_finalists_that_break_a_constraint(
    build_run: Callable[..., Run], trial_script: Any
) -> None:
    probes = [(2.9, 0.02, 0.02), (2.8, 0.05, 0.05), (1.6, 0.0, 0.0)]
    run = build_run(
        scripts=[trial_script(probes=[p], half_width=0.1) for p in probes],
        changes={"budget": {"trials": 3, "max_steps": 1}},
        notes={
            "report:0": {"retain_drop": 0.02, "general_drop": 0.143},
            "report:1": {"retain_drop": 0.04, "general_drop": 0.06},
        },
    )
    text = "\n".join(lines_of(BestTable(run=run, top=3)))
    assert [line.split()[0] for line in text.splitlines() if "COMPLETE" in line] == [
        "*1",
        "~^0",
        "*2",
    ]
    assert "0.80 to 1.00" in text
    assert "^ breaks one as a finalist" in text
    shown = "\n".join(lines_of(trial_text(run, run.trials[1])))
    assert "retain_drop = 0.0500 (-0.05 to +0.15)   reporting split 0.0400" in shown


def test_time_left_stands_in_the_status_of_a_running_sweep(sample_run: Run) -> None:
    run = replace(sample_run, is_driven=True)
    assert status_text(run).endswith("left: about 9 s")  # 11.4 s each, 1.5 trials, two at a time
    unknown = replace(run, trials=(), driver=DriverFacts(target=3))
    assert status_text(unknown).endswith("left: about ?")


def test_a_trial_says_how_long_it_took(sample_run: Run) -> None:
    trial = replace(sample_run.trials[0], duration_s=67.0)
    assert "attempts: 1, 1 min 7 s" in lines_of(trial_text(sample_run, trial))


def test_a_sparkline_goes_from_the_lowest_to_the_highest_sign() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([1.0, math.nan, math.inf, 0.0]) == "█··▁"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([math.nan]) == "·"
