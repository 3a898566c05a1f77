"""Tables of a report by the choices of categorical fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from small_sweep import spec_of

from tuning.records import TrialRecord
from tuning.report import write_report
from tuning.report.choices import choice_tables
from tuning.run import Run

INIT = "method.adapter_init"
EXPONENT = "fisher.exponent"
SPEC = spec_of(
    space={
        INIT: {"categorical": ["lora", "fila"], "why": "both"},
        EXPONENT: {"categorical": [0.0, 0.5], "when": {INIT: "fila"}, "why": "both"},
    }
)


@pytest.fixture
def trial(sample_run: Run) -> Callable[..., TrialRecord]:
    like = sample_run.trials[0]

    def make(number: int, value: float | None, **params: Any) -> TrialRecord:
        named = {INIT: params.pop("init"), "adapter.rank": params.pop("rank", 4)} | (
            {EXPONENT: params.pop("exponent")} if "exponent" in params else {}
        )
        return replace(
            like,
            number=number,
            value=value,
            feasible=value is not None,
            state="PRUNED" if value is None else "COMPLETE",
            params=named,
            value_interval=None,
        )

    return make


def test_a_row_is_by_hand(trial: Callable[..., TrialRecord]) -> None:
    trials = [
        trial(0, 0.5, init="lora"),
        trial(1, 0.9, init="lora"),
        trial(2, 0.6, init="lora"),
        trial(3, None, init="lora"),
        trial(4, None, init="fila", exponent=0.5),
    ]
    lora, fila = choice_tables(SPEC, trials)[INIT]
    assert (lora.choice, lora.n_trials, lora.n_feasible) == ("lora", 4, 3)
    assert (lora.median, lora.low, lora.high) == (0.6, 0.5, 0.9)
    assert lora.best is not None and lora.best.number == 1
    assert (fila.choice, fila.n_trials, fila.n_feasible, fila.best) == ("fila", 1, 0, None)
    assert (fila.median, fila.low, fila.high) == (None, None, None)


def test_what_was_tried_in_one_way_alone_has_no_table(trial: Callable[..., TrialRecord]) -> None:
    trials = [trial(0, 0.5, init="fila", exponent=0.5), trial(1, 0.4, init="fila", exponent=0.0)]
    assert list(choice_tables(SPEC, trials)) == [EXPONENT]


def test_a_trial_without_the_field_is_in_no_row_of_it(trial: Callable[..., TrialRecord]) -> None:
    trials = [
        trial(0, 0.5, init="lora"),
        trial(1, 0.4, init="fila", exponent=0.0),
        trial(2, 0.3, init="fila", exponent=0.5),
    ]
    assert [row.n_trials for row in choice_tables(SPEC, trials)[EXPONENT]] == [1, 1]


def test_the_report_shows_the_tables(sample_run: Run) -> None:
    tables = choice_tables(sample_run.spec, sample_run.trials)
    page = write_report(sample_run)
    text = page.with_name("report.md").read_text(encoding="utf-8")
    assert tables
    for name, rows in tables.items():
        assert f"| {name} | trials | feasible |" in text
        assert all(f"| {row.n_trials} | {row.n_feasible} |" in text for row in rows)
    assert ", by choice</h3>" in page.read_text(encoding="utf-8")
