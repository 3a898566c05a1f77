"""``init`` writes a sweep file that validates, for one's own model and data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Command, is_refused

import search_spaces
from tuning.files import load_sweep
from tuning.initial import methods
from tuning.validate import validate_file


@pytest.fixture
def mine(tmp_path: Path) -> dict[str, str]:
    """Question-answer files of one's own, as options."""
    found = {"model": "package:smollm2"}
    for role, n in (("forget", 12), ("retain", 40), ("approximate", 10)):
        path = tmp_path / f"{role}.jsonl"
        rows = [
            {"question": f"What is {role} {i}?", "answer": f"It is {role} number {i}."}
            for i in range(n)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        found[role] = str(path)
    return found


def options(values: dict[str, str]) -> list[str]:
    return [
        part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", value)
    ]


@pytest.mark.parametrize("method", methods())
def test_every_method_makes_a_file_that_validates(
    tune: Command, mine: dict[str, str], tmp_path: Path, method: str
) -> None:
    out = tmp_path / "mine.yaml"
    done = tune("init", out, "--method", method, *options(mine))
    assert (done.status, done.out.strip()) == (0, str(out)), done.err
    assert "a valid sweep" in validate_file(out)
    spec = load_sweep(out)
    assert spec.name == "mine"
    assert spec.data["forget"]["source"] == mine["forget"]
    assert spec.data["general"]["source"] == "embedded:general"
    assert spec.data["probe_rows"]["retain"] == (6 if method == "loku" else 10)
    assert spec.has_auto or spec.objective.metric == "forget_closure_at_utility"
    assert "# must go" in out.read_text("utf-8")
    assert all(dimension.why for dimension in spec.space.values())


def test_no_file_that_is_about_its_own_data_is_offered() -> None:
    folder = Path(search_spaces.__path__[0])
    sources = {m: load_sweep(folder / f"{m}.yaml").data["forget"]["source"] for m in methods()}
    assert {m for m, source in sources.items() if not source.startswith("embedded:")} == set()


def test_with_a_retain_only_model_no_approximate_set_is_asked_for(
    tune: Command, mine: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "mine.yaml"
    del mine["approximate"]
    assert tune("init", out, *options(mine | {"retain_only": "package:smollm2"})).status == 0
    assert load_sweep(out).model["retain_only"] == "package:smollm2"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": None}, "--model: needed, and nobody is there to ask"),
        ({"approximate": None}, "--approximate: needed, and nobody is there to ask"),
        ({"method": "nop"}, "--method: no sweep file 'nop' is shipped; did you mean 'npo'?"),
        ({"forget": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"model": "package:none"}, "known: package:smollm2"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_is_written(
    tune: Command, mine: dict[str, str], tmp_path: Path, changes: dict[str, str | None], said: str
) -> None:
    out = tmp_path / "mine.yaml"
    given = {k: v for k, v in (mine | changes).items() if v is not None}
    is_refused(tune("init", out, *options(given)), said)
    assert not out.exists()


def test_a_file_that_exists_stays(tune: Command, mine: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    out.write_text("mine", encoding="utf-8")
    is_refused(tune("init", out, *options(mine)), "exists already")
    assert out.read_text("utf-8") == "mine"
