"""Suites of ``evaluate`` on finalists: what a sweep file may ask, and what a broken limit does."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, get_args

import pytest
from rich.console import Console
from small_sweep import problems, spec_of

from core.errors import ConfigError
from core.suites import SUITES
from tuning.evaluation_limits import EvaluationLimit, EvaluationSpec, SuiteName
from tuning.finalist_evaluation import refuse_unknown_metrics
from tuning.ledger import Ledger
from tuning.report import write_report
from tuning.results import best_json
from tuning.run import Run, load_run
from tuning.views import status_text, trial_text

LIMIT = {"metric": "mia.min_k_auc", "at_most": 0.6}
KEPT: Mapping[str, float] = {"retain_drop": 0.05, "general_drop": 0.05}


def test_the_suites_that_a_file_may_name_are_those_that_there_are() -> None:
    assert get_args(SuiteName) == tuple(SUITES)


def test_a_limit_brings_its_suite_and_each_runs_once() -> None:
    found = spec_of({"evaluation": {"suites": ["memorization"], "constraints": [LIMIT, LIMIT]}})
    assert found.evaluation.all_suites == ("memorization", "mia")
    assert spec_of().evaluation.all_suites == ()


@pytest.mark.parametrize(
    ("limit", "value", "expected"),
    [
        pytest.param({"at_most": 0.6}, 0.7, 0.1, id="too-high"),
        pytest.param({"at_most": 0.6}, 0.5, -0.1, id="low-enough"),
        pytest.param({"at_least": 0.6}, 0.5, 0.1, id="too-low"),
    ],
)
def test_a_violation_is_how_far_a_value_lies_beyond(
    limit: dict[str, float], value: float, expected: float
) -> None:
    made = EvaluationLimit(metric="mia.min_k_auc", **limit)
    assert made.violation(value) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        pytest.param(
            {"metric": "mia.x"}, "needs one of at_most and at_least, got neither", id="no"
        ),
        pytest.param(LIMIT | {"at_least": 0.1}, "at_least, got both", id="both"),
        pytest.param(
            {"metric": "mai.x", "at_most": 1}, "begins with the name of a suite", id="name"
        ),
        pytest.param({"metric": "auc", "at_most": 1}, "pattern", id="no-suite"),
    ],
)
def test_a_limit_that_is_none_is_refused_at_its_place(limit: dict[str, Any], said: str) -> None:
    (problem,) = problems({"evaluation": {"constraints": [limit]}})
    assert problem.startswith("evaluation.constraints.0")
    assert said in problem


def test_suites_hold_no_quantised_model() -> None:
    (problem,) = problems({"evaluation": {"suites": ["mia"]}, "model.quantisation": "nf4"})
    assert "got model.quantisation=nf4" in problem


def test_a_metric_that_the_suite_has_not_is_refused_with_the_nearest() -> None:
    asked = EvaluationSpec(constraints=(EvaluationLimit(metric="mia.min_auc", at_most=0.5),))
    with pytest.raises(ConfigError, match=r"no metric 'mia.min_auc'; did you mean 'mia.min_k_auc'"):
        refuse_unknown_metrics(asked, {"mia.min_k_auc": 0.5, "mia.loss_auc": 0.5})


@pytest.fixture
def evaluated(build_run: Callable[..., Run], trial_script: Any) -> Run:
    """Two finalists that tie; the one that comes first by probes breaks a limit of its evaluation."""
    scripts = [
        trial_script(probes=[(forget, 0.02 * i, 0.02)], half_width=0.1)
        for i, forget in enumerate((2.9, 2.8), start=1)
    ]
    run = build_run(
        scripts=scripts,
        changes={
            "budget": {"trials": 2, "max_steps": 1},
            "evaluation": {"suites": ["mia"], "constraints": [LIMIT]},
        },
        notes={"report:0": KEPT, "report:1": KEPT, "evaluation": {"mia.min_k_auc": 0.9}},
    )
    ledger = Ledger(run.path, run.spec, create=False)
    limit = run.spec.evaluation.constraints[0]
    for number, value in ((0, 0.8), (1, 0.5)):
        found = {"mia.loss_auc": 0.7, "mia.min_k_auc": value}
        ledger.set_evaluation(number, found, violations={limit.metric: limit.violation(value)})
    return load_run(run.path)


def test_a_finalist_that_breaks_a_limit_stands_behind_one_that_keeps_it(evaluated: Run) -> None:
    first, second = best_json(evaluated)["trials"]
    assert (first["number"], second["number"]) == (1, 0)
    assert (first["reported_feasible"], second["reported_feasible"]) == (True, False)
    assert first["evaluation"] == {"mia.loss_auc": 0.7, "mia.min_k_auc": 0.5}
    assert (
        "trial 0 would come first on the probe split, but breaks a constraint in its evaluation: "
        "mia.min_k_auc 0.8000 (at most 0.6)"
    ) in status_text(evaluated)


def test_what_was_measured_is_shown_beside_the_untouched_model(evaluated: Run) -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(trial_text(evaluated, evaluated.trials[0]))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "mia.min_k_auc = 0.8000 (0.9000)   at most 0.6, broken" in shown
    assert "mia.loss_auc = 0.7000 (-)" in shown
    page = write_report(evaluated)
    assert "<h3>Evaluation</h3>" in page.read_text(encoding="utf-8")
    assert "| mia.min_k_auc | 0.9" in page.with_name("report.md").read_text(encoding="utf-8")
