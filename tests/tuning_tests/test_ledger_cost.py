"""What a trial asks of the ledger's database does not grow with the number of trials, whoever proposes and prunes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from analytic_study import run_trial, spec_of, study_in
from driven_sweep import unsynced

from tuning.ledger import Ledger


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Within the context, statements by their first word, and transactions that change something."""
    found: Counter[str] = Counter()
    is_changed = False

    def executed(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
        nonlocal is_changed
        verb = statement.split(maxsplit=1)[0]
        found[verb] += 1
        is_changed = is_changed or verb in ("INSERT", "UPDATE")

    def committed(conn: Any) -> None:
        nonlocal is_changed
        found["changes"] += is_changed
        is_changed = False

    sqlalchemy.event.listen(sqlalchemy.Engine, "after_cursor_execute", executed)
    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", committed)
    try:
        yield found
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "after_cursor_execute", executed)
        sqlalchemy.event.remove(sqlalchemy.Engine, "commit", committed)


@pytest.mark.parametrize(
    ("sampler", "ranking"), [("random", "none"), ("tpe", "median"), ("tpe", "successive_halving")]
)
def test_a_trial_costs_as_many_statements_after_many_as_after_few(
    tmp_path: Path, sampler: str, ranking: str
) -> None:
    spec = spec_of(
        sampler={"name": sampler, "seed": 1, "n_startup_trials": 2},
        pruning={"retain": None, "ranking": ranking, "startup_trials": 99},
        budget={"trials": 40, "max_steps": 2},
    )
    with unsynced():
        ledger = Ledger(tmp_path, spec, create=True)
        counts = []
        for _ in range(24):
            with counted() as found:
                run_trial(ledger, spec, lambda _: 0.5)
            counts.append(found)
    assert counts[3] == counts[-1]
    assert counts[-1]["changes"] == 5  # a proposal, an attempt, two reports, an outcome


def test_what_was_decided_on_is_what_the_study_holds(tmp_path: Path) -> None:
    """A ledger that stayed open goes on as one that is opened anew: they read the same trials."""
    spec = spec_of(sampler={"name": "tpe", "seed": 2, "n_startup_trials": 2})
    stayed = Ledger(tmp_path, spec, create=True)
    for _ in range(4):
        run_trial(stayed, spec)
    stayed.begin_attempt(stayed.ask()[0])
    opened = Ledger(tmp_path, spec, create=False)
    assert (stayed.running(), stayed.n_begun()) == (opened.running(), opened.n_begun())
    assert [t.state.name for t in study_in(tmp_path).trials][-1] == "RUNNING"
    assert opened.ask() == (stayed.n_begun(), opened.running()[-1][1])
