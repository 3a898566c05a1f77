"""``unlearn-tune cache``: what lies there, and what is removed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import yaml
from command_line import Command, is_refused

from core.store.upkeep import held

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A cache with a decomposition of a run's model, row sums, and a converted model."""
    cache = tmp_path / "cache"
    header = json.dumps({"__metadata__": {"about": json.dumps({"model": "content-sha256:1f0e"})}})
    content = len(header).to_bytes(8, "little") + header.encode()
    for days, name in ((40, "factors/a.safetensors"), (2, "importance/b.safetensors")):
        path = cache / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        used = time.time() - days * 86400
        os.utime(path, (used, used))
    (cache / "models" / "small").mkdir(parents=True)
    (cache / "models" / "small" / "weights").write_bytes(b"x" * 2048)
    run = tmp_path / "runs" / "demo"
    run.mkdir(parents=True)
    spec = {"identity": {"model": "content-sha256:1f0e"}}
    (run / "spec.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    return cache


def left(cache: Path) -> set[str]:
    return {p.parent.name for p in cache.glob("*/*") if p.parent.name != ".in-use"}


def test_the_list_names_kind_size_use_and_what_it_belongs_to(tune: Command, filled: Path) -> None:
    lines = [" ".join(line.split()) for line in tune("cache", "list").out.splitlines()]
    assert lines[0].startswith(f"{filled}: 2.")
    assert lines[1] == "kind entries size last used of"
    assert lines[2] == "factors 1 75 B 40 days ago the model of demo"
    assert lines[3] == "importance 1 75 B 2 days ago the model of demo"
    assert lines[4] == "models 1 2.0 KiB now small"


def test_the_list_for_scripts_has_every_entry(tune: Command, filled: Path) -> None:
    found = tune("cache", "list", "--json").json
    assert (found["folder"], found["limit_bytes"]) == (str(filled), None)
    first = found["entries"][0]
    assert (first["kind"], first["name"], first["bytes"]) == ("factors", "a.safetensors", 75)
    assert (first["model"], first["runs"]) == ("content-sha256:1f0e", ["demo"])
    assert found["bytes"] == sum(e["bytes"] for e in found["entries"]) == 2198


def test_an_empty_cache_is_shown(tune: Command) -> None:
    assert tune("cache", "list").out.strip().endswith("cache: 0 B")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(["--kind", "factors"], {"importance", "models"}, id="by-kind"),
        pytest.param(["--unused-for", "30d"], {"importance", "models"}, id="by-age"),
        pytest.param(
            ["--kind", "importance", "--unused-for", "1w"],
            {"factors", "importance", "models"},
            id="both-must-hold",
        ),
        pytest.param(["--all"], set(), id="all"),
    ],
)
def test_clear_removes_what_was_asked_for_and_says_so(
    tune: Command, filled: Path, arguments: list[str], expected: set[str]
) -> None:
    done = tune("cache", "clear", *arguments, "--json").json
    assert left(filled) == expected
    assert {e["kind"] for e in done["removed"]} == {"factors", "importance", "models"} - expected
    assert done["in_use"] == []


def test_clear_keeps_what_a_sweep_that_runs_has_used(tune: Command, filled: Path) -> None:
    with held():
        (filled / "importance" / "b.safetensors").touch()
        done = tune("cache", "clear", "--all")
    assert left(filled) == {"importance"}
    assert "removed factors/a.safetensors, 75 B" in done.out
    assert "1 entries stay, 75 B: a process that runs has used them" in done.out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "give --kind, --unused-for or --all"),
        (["--all", "--kind", "factors"], "--all: it leaves nothing to --kind"),
        (
            ["--kind", "fisher"],
            "'fisher' is not in the cache; there is: factors, importance, models",
        ),
        (["--unused-for", "soon"], "such as 30d, got 'soon'"),
    ],
)
def test_clear_is_refused_with_the_reason(
    tune: Command, filled: Path, arguments: list[str], reason: str
) -> None:
    is_refused(tune("cache", "clear", *arguments), reason)
    assert left(filled) == {"factors", "importance", "models"}
