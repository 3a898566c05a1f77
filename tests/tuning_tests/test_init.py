"""``init`` writes a sweep file that validates, for one's own model and data."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from command_line import Command, is_refused
from data_roles import ROLES

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


def test_files_are_found_from_a_sweep_file_in_another_folder(
    tune: Command, mine: dict[str, str], tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "sweeps").mkdir()
    relative = {role: Path(path).name for role, path in mine.items() if role != "model"}
    relative |= {"model": os.path.relpath(tiny_model, tmp_path)}
    done = tune("init", "sweeps/mine.yaml", *options(relative))
    assert done.status == 0, done.err
    spec = load_sweep(tmp_path / "sweeps/mine.yaml")
    assert spec.data["forget"]["source"] == mine["forget"]
    assert spec.model["source"] == str(tiny_model.resolve())
    assert "source: ../forget.jsonl" in (tmp_path / "sweeps/mine.yaml").read_text("utf-8")


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
        ({"model": "m" * 5000}, "model.source"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_is_written(
    tune: Command, mine: dict[str, str], tmp_path: Path, changes: dict[str, str | None], said: str
) -> None:
    out = tmp_path / "mine.yaml"
    given = {k: v for k, v in (mine | changes).items() if v is not None}
    is_refused(tune("init", out, *options(given)), said)
    assert not out.exists()


# Columns


PAIR = ("--prompt-field", "ask", "--answer-field", "reply")
DOCUMENTS = ("--text-field", "body")


def renamed(mine: dict[str, str], role: str, names: dict[str, str]) -> None:
    """Give the columns of a role's file other names."""
    path = Path(mine[role])
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    changed = [{names.get(name, name): value for name, value in row.items()} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in changed), encoding="utf-8")


@pytest.fixture
def foreign(mine: dict[str, str]) -> dict[str, str]:
    """The forget file has a pair of columns of its own, the retain file a document, the approximate file known ones."""
    renamed(mine, "forget", {"question": "ask", "answer": "reply"})
    renamed(mine, "retain", {"question": "body", "answer": "source"})
    return mine


def written_fields(out: Path) -> dict[str, object]:
    """Role to its ``fields`` in a sweep file."""
    data = load_sweep(out).data
    return {role: data[role].get("fields") for role in ROLES}


def test_named_columns_become_fields_of_the_roles_whose_files_have_them(
    tune: Command, foreign: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "mine.yaml"
    done = tune("init", out, *options(foreign), *PAIR, *DOCUMENTS)
    assert done.status == 0, done.err
    assert "a valid sweep" in validate_file(out)
    assert written_fields(out) == {
        "forget": {"prompt": "ask", "answer": "reply"},
        "retain": {"text": "body"},
        "approximate": None,
        "general": None,
    }


def test_a_named_column_goes_before_a_known_one(
    tune: Command, mine: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "mine.yaml"
    assert tune("init", out, *options(mine), "--text-field", "answer").status == 0
    assert written_fields(out)["forget"] == {"text": "answer"}


def test_files_without_known_columns_are_refused_with_the_flags_and_what_was_found(
    tune: Command, foreign: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "mine.yaml"
    flags = "name them: --prompt-field and --answer-field, or --text-field"
    is_refused(
        tune("init", out, *options(foreign)),
        "mine.yaml: 2 problems",
        f"data.forget: {foreign['forget']} has the columns 'ask', 'reply', and none is known to hold its text; {flags}",
        f"data.retain: {foreign['retain']} has the columns 'body', 'source', and none",
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (PAIR[:2], "--prompt-field: got 'ask' without --answer-field; give both, or --text-field"),
        (PAIR[2:], "--answer-field: got 'reply' without --prompt-field; give both"),
        (
            (*PAIR, "--text-field", "bdy"),
            "--text-field: no file has 'bdy'; columns are 'ask', 'reply', 'body', 'source', 'question', 'answer'",
        ),
        (
            ("--prompt-field", "ask", "--answer-field", "answer", *DOCUMENTS),
            "--prompt-field and --answer-field: no file has 'ask' and 'answer'; columns are",
        ),
    ],
)
def test_a_column_that_no_file_has_is_refused(
    tune: Command, foreign: dict[str, str], tmp_path: Path, given: tuple[str, ...], said: str
) -> None:
    out = tmp_path / "mine.yaml"
    is_refused(tune("init", out, *options(foreign), *given), said)
    assert not out.exists()


def test_a_data_set_of_the_hub_gets_the_columns_that_no_file_has(
    tune: Command, foreign: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "mine.yaml"
    given = options(foreign | {"general": "hub:org/prose"})
    assert tune("init", out, *given, *PAIR, *DOCUMENTS).status == 0
    assert written_fields(out)["general"] is None
    renamed(foreign, "retain", {"body": "text"})
    out.unlink()
    assert tune("init", out, *given, *PAIR, *DOCUMENTS).status == 0
    assert written_fields(out)["retain"] is None
    assert written_fields(out)["general"] == {"text": "body"}


class Terminal(io.StringIO):
    """Where somebody sits and types."""

    def isatty(self) -> bool:
        return True


def test_at_a_terminal_columns_are_asked_for_until_they_are_some_of_the_files(
    tune: Command, foreign: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = ["", "ihl", "aks", "ask", "reply", "-", "body"]  # general set and method come first
    monkeypatch.setattr("sys.stdin", Terminal("\n".join(typed) + "\n"))
    out = tmp_path / "mine.yaml"
    done = tune("init", out, *options(foreign))
    assert done.status == 0, done.err
    assert f"{foreign['forget']} has the columns 'ask', 'reply', and none is known" in done.err
    assert "one of 'ask', 'reply', '-' expected, got 'aks'" in done.err
    found = written_fields(out)
    assert found["forget"] == {"prompt": "ask", "answer": "reply"}
    assert (found["retain"], found["approximate"]) == ({"text": "body"}, None)


def test_a_file_that_exists_stays(tune: Command, mine: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    out.write_text("mine", encoding="utf-8")
    is_refused(tune("init", out, *options(mine)), "exists already")
    assert out.read_text("utf-8") == "mine"
