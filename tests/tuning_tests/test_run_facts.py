"""What is known of a run as a whole, also of older and damaged ones; and the sections that all its trials share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from tuning import Run as PublicRun
from tuning import SweepSpec, load_run, resume_sweep, run_sweep
from tuning.files import load_sweep
from tuning.records import SPEC_FILE, DriverFacts, Note, RunFacts
from tuning.run import Run
from tuning.space import bind, corner_proposals

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(
    p for p in (ROOT / "search_spaces").rglob("*.yaml") if p.parent.name != "guidelines"
)


def test_the_front_door_offers_what_is_documented() -> None:
    assert PublicRun is Run
    assert SweepSpec.__name__ == "SweepSpec"
    assert all(map(callable, (load_run, run_sweep, resume_sweep)))


def test_each_fact_of_the_driver_is_a_note_of_the_ledger() -> None:
    assert [field.name for field in fields(DriverFacts)] == list(get_args(Note))


def test_the_names_in_spec_yaml_are_kept() -> None:
    names = [
        "identity",
        "rows",
        "data_counts",
        "baseline",
        "report_baseline",
        "versions",
        "created",
        "file",
        "scale",
        "warnings",
        "evaluation",
        "ledger",
    ]
    assert [field.name for field in fields(RunFacts)] == names


@pytest.mark.parametrize("values", [{}, dict.fromkeys((f.name for f in fields(RunFacts)), None)])
def test_a_run_without_facts_has_empty_ones(values: dict[str, Any]) -> None:
    assert RunFacts.read(values) == RunFacts()


def test_facts_that_are_not_known_are_left_out() -> None:
    assert RunFacts.read({"rows": {"forget": 8}, "other": 1}) == RunFacts(rows={"forget": 8})


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ({}, DriverFacts()),
        ({"target": 3, "report:1": {}, "other": 1}, DriverFacts(target=3)),
        ({"ended": "done", "elapsed_s": 1.5}, DriverFacts(ended="done", elapsed_s=1.5)),
        ({"ended": "nobody knows", "concurrent": None}, DriverFacts()),
    ],
)
def test_notes_of_older_and_damaged_runs_are_read(
    notes: dict[str, Any], expected: DriverFacts
) -> None:
    assert DriverFacts.read(notes) == expected


def test_a_run_of_which_nothing_was_recorded_is_read(build_run: Callable[..., Run]) -> None:
    run = build_run(notes={})
    assert (run.facts, run.driver) == (RunFacts(), DriverFacts())
    assert (run.state, run.target, run.elapsed_s) == ("interrupted", 10, None)


def test_facts_that_were_edited_away_are_empty(sample_run: Run) -> None:
    path = sample_run.path / SPEC_FILE
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    del values["baseline"]
    values["versions"] = None
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    found = load_run(sample_run.path).facts
    assert (found.baseline, found.versions) == ({}, {})
    assert found.identity == sample_run.facts.identity != {}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT)))
def test_sections_of_a_sweep_are_those_of_each_of_its_trials(path: Path) -> None:
    spec = load_sweep(path)
    own = (
        spec.trial_model(),
        spec.trial_data(),
        spec.trial_engine(),
        spec.trial_selection(),
    )
    for corner in corner_proposals(spec, limit=4):
        trial = bind(spec, corner, where="test")
        assert (trial.model, trial.data, trial.engine, trial.selection) == own
