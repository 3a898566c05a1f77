"""A suite says how far it is, every few seconds, of whatever takes long."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from suite_inputs import ENGINE, input_of, run, tokens

from core.config import ModelConfig, SourceConfig
from core.model.loading import load_model
from core.suites import EvaluationData, Pace, Subject, SuiteInput


def ticking(*seconds: float) -> Any:
    """A clock that shows these seconds, one after the other."""
    shown: Iterator[float] = iter(seconds)
    return lambda: next(shown)


def test_a_line_names_what_is_done_and_how_long_the_rest_takes() -> None:
    said: list[str] = []
    pace = Pace(said.append, every_s=10.0, clock=ticking(0, 0, 5, 12, 13, 30))
    pace.suite = "tofu"
    with pace.stage("rows read", 16, of="mine") as done:
        done(4)  # at 5 s
        done(4)  # at 12 s
        done(4)  # at 13 s
        done(4)  # at 30 s, the last
    assert said == ["suite tofu: mine: 8 of 16 rows read, about 12 s for the others"]


@pytest.mark.parametrize(
    ("suite", "expected"),
    [
        ("memorization", ["rows read", "rows continued everywhere", "answers written"]),
        ("mia", ["rows read", "rows differentiated"]),
        ("quantisation", ["tiny, int4: 2 of 8 rows read"]),
    ],
)
def test_everything_that_takes_long_is_told_of(
    tiny_model: Path, tiny_data: dict[str, Path], suite: str, expected: list[str]
) -> None:
    model = load_model(ModelConfig(source=str(tiny_model)), ENGINE)
    roles = {"forget": "forget", "holdout": "approximate", "retain": "retain"}
    data = EvaluationData(
        **{r: SourceConfig(source=str(tiny_data[name]), n=8) for r, name in roles.items()}
    )
    quiet, said = input_of(model, data), list[str]()
    seconds = count()
    pace = Pace(said.append, every_s=1.0, clock=lambda: float(next(seconds)))
    pace.suite = suite
    told = SuiteInput(Subject(model, name="tiny", batch_size=2, pace=pace), quiet.rows)
    found = run(suite, told)
    for part in expected:
        assert any(part in line for line in said), said
    assert all(line.startswith(f"suite {suite}: tiny") for line in said)
    assert len(tokens(quiet, "forget")) == 8
    assert found.metrics.keys() == run(suite, quiet).metrics.keys()
