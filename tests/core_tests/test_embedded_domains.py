"""The shipped books and code: readable, without repeats, and no role tells anything about another."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.config import SourceConfig
from core.data.sources import EMBEDDED, read_rows

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "prepare_domains.py"
SHARED_WORDS = 12
N_ROWS = {"forget": 32, "approximate": 48, "retain": 64}
DOMAINS = ("books", "code")
NAMES = tuple(f"{domain}-{role}" for domain in DOMAINS for role in N_ROWS)
OTHERS = ("forget", "approximate", "retain", "general")

each_file = pytest.mark.parametrize("name", NAMES)
each_domain = pytest.mark.parametrize("domain", DOMAINS)


def records(name: str, *, folder: Path = EMBEDDED) -> list[dict[str, str]]:
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def runs_of_words(name: str) -> set[tuple[str, ...]]:
    """All runs of 12 words in the texts of a file."""
    found = set()
    for record in records(name):
        words = re.findall(r"[^\W_]+", record["text"].lower())
        found |= {tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1)}
    return found


def works(name: str) -> set[str]:
    """The novels or source files of a file: what stands before the place."""
    return {record["source"].rpartition(", ")[0] for record in records(name)}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@each_file
def test_a_file_is_read_as_a_source(name: str) -> None:
    role = name.partition("-")[2]
    rows = read_rows(SourceConfig(source=f"embedded:{name}"), role="forget")
    assert [row.answer for row in rows] == [record["text"] for record in records(name)]
    assert len(rows) == N_ROWS[role]
    assert all(row.prompt is None for row in rows)


@each_file
def test_every_row_says_what_it_is_and_where_it_is_from(name: str) -> None:
    found = records(name)
    assert [record["id"] for record in found] == [
        f"{name}-{i:03d}" for i in range(1, len(found) + 1)
    ]
    for record in found:
        assert list(record) == ["id", "text", "source"]
        assert 250 <= len(record["text"]) <= 800
        assert re.match(r"Jane Austen, [A-Z]|optuna/\w", record["source"])


def test_no_text_occurs_twice() -> None:
    texts = [
        re.sub(r"\W+", " ", record["text"].lower())
        for name in (*NAMES, *OTHERS)
        for record in records(name)
    ]
    assert len(set(texts)) == len(texts)


def test_no_two_files_share_12_words_in_a_row() -> None:
    seen: dict[tuple[str, ...], str] = {}
    for name in OTHERS:
        seen |= dict.fromkeys(runs_of_words(name), name)
    for name in NAMES:
        runs = runs_of_words(name)
        assert len(runs) > 1000  # there is something to compare
        assert {seen[r] for r in runs & seen.keys()} == set(), name
        seen |= dict.fromkeys(runs, name)


@each_domain
def test_no_work_serves_two_roles(domain: str) -> None:
    parts = [works(f"{domain}-{role}") for role in N_ROWS]
    assert all(parts)
    assert len(set.union(*parts)) == sum(map(len, parts))


@each_domain
def test_forget_and_approximate_are_of_similar_length(domain: str) -> None:
    """A difference in length alone would tell members from non-members."""
    means = [
        sum(len(record["text"]) for record in found) / len(found)
        for found in (records(f"{domain}-forget"), records(f"{domain}-approximate"))
    ]
    assert means[0] == pytest.approx(means[1], rel=0.1)


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("books")])
def test_a_passage_of_a_book_is_one_paragraph(name: str) -> None:
    for record in records(name):
        assert record["text"] == " ".join(record["text"].split())
        assert record["text"].isascii()
        assert not re.search(r"chapter|[_*]", record["text"], re.IGNORECASE)


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("code")])
def test_a_passage_of_code_is_one_function(name: str) -> None:
    for record in records(name):
        compile(record["text"], record["id"], "exec")
        function = record["source"].rpartition(", ")[2].rpartition(".")[2]
        assert len(re.findall(r"^def \w+", record["text"], re.MULTILINE)) == 1
        assert f"def {function}(" in record["text"]


def test_no_papers_are_shipped() -> None:
    assert not list(EMBEDDED.glob("papers*"))


def test_the_shipped_files_are_small() -> None:
    assert sum((EMBEDDED / f"{name}.jsonl").stat().st_size for name in NAMES) < 250_000


def test_the_readme_names_every_file_and_holds_the_licence_of_the_code() -> None:
    text = (EMBEDDED / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}.jsonl`" in text for name in NAMES)
    assert "Copyright (c) 2018 Preferred Networks, Inc." in text
    assert "The above copyright notice and this permission notice shall be included" in text


# The script that makes them


@each_file
def test_a_file_is_what_the_script_makes(name: str) -> None:
    digest = hashlib.sha256((EMBEDDED / f"{name}.jsonl").read_bytes()).hexdigest()
    assert f'"{name}.jsonl": "{digest}"' in SCRIPT.read_text(encoding="utf-8")


def test_the_check_passes_on_the_shipped_files() -> None:
    done = run("check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all requirements hold" in done.stdout


def test_the_check_finds_a_forget_row_among_the_retain_rows(tmp_path: Path) -> None:
    for name in NAMES:
        shutil.copy(EMBEDDED / f"{name}.jsonl", tmp_path)
    stray = records("books-forget")[0]
    kept = records("books-retain")[1:]
    text = "".join(json.dumps(record) + "\n" for record in [stray, *kept])
    (tmp_path / "books-retain.jsonl").write_text(text, encoding="utf-8")
    done = run("check", "--output", tmp_path)
    assert done.returncode == 1
    assert "FAULT: books-forget-001: shares 12 words with books-forget-001" in done.stdout


def test_the_check_finds_a_missing_file(tmp_path: Path) -> None:
    shutil.copy(EMBEDDED / "books-forget.jsonl", tmp_path)
    done = run("check", "--output", tmp_path)
    assert done.returncode == 1
    assert "books-retain.jsonl is missing" in done.stdout


def test_another_package_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "package.whl"
    package.write_bytes(b"something else")
    done = run("code", package, "--output", tmp_path)
    assert done.returncode == 1
    assert "package.whl: SHA-256 5fff892ae6baf494" in done.stderr
    assert not list(tmp_path.glob("*.jsonl"))


def test_papers_are_written_to_a_named_folder_only(tmp_path: Path) -> None:
    done = run("papers", tmp_path / "package.whl")
    assert done.returncode == 2
    assert "the following arguments are required: --output" in done.stderr
