"""Names that others wrote stay names: of runs, of adapters in a copied run folder, of models and data."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, Done, changed, ends_refused, is_refused, left_in_runs, write
from hypothesis import given
from hypothesis import strategies as st

from core.config import ModelConfig, SourceConfig
from core.data.sources import source_problem
from core.errors import FileError
from core.model.source import problem
from core.store.confinement import inside, refuse_links_out
from tuning.records import OWN_FILES, attempt_folder
from tuning.run import Run

SECRET = "a secret of this machine"

BAD_NAMES = (
    *("../evil", "..", ".", "/tmp/evil", "a/b", "a\\b", "", " ", "a b", "a\nb", "a\n", "-rf"),
    *(
        ".hidden",
        "x" * 65,
        "name\0",
        "\u202eemit",
        "ｆｕｌｌ",
        "$(id)",
        "`id`",
        "%2e%2e",
        "~",
        "a;b",
    ),
)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_run_has_a_name_and_no_path(
    tune: Command, tiny_sweep: dict[str, Any], name: str, tmp_path: Path
) -> None:
    if name and "\0" not in name:  # an empty one is none, and no command line holds the other
        done = tune("sweep", write(tiny_sweep), f"--name={name}", "--dry-run")
        is_refused(done, "--name: ")
    is_refused(tune("validate", write(changed(tiny_sweep, "name", name))), "name: ")
    assert left_in_runs() == []
    assert not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize("name", ["../up", "..", "../../etc", "./here", ".", "-x/y", "/etc"])
def test_a_name_of_a_hub_is_no_path(name: str) -> None:
    assert problem(f"hub:{name}", field="model.source")
    assert source_problem(SourceConfig(source=f"hub:{name}"))
    assert problem(ModelConfig(source=f"package:{name}").source, field="model.source")


@given(parts=st.lists(st.sampled_from(["..", ".", "a", "b", "", "up"]), max_size=6))
def test_a_name_that_is_let_through_ends_inside(
    parts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "confined"
    (folder / "a" / "b").mkdir(parents=True, exist_ok=True)
    if not (folder / "up").is_symlink():
        (folder / "up").symlink_to("..")
    name = "/".join(parts)
    try:
        found = inside(folder, name)
    except FileError as err:
        assert "leads out of" in str(err)
        assert not (folder / name).resolve().is_relative_to(folder)
    else:
        assert found.resolve().is_relative_to(folder)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with what looks like an adapter, and a file, that are no part of any run."""
    folder = tmp_path / "outside"
    folder.mkdir()
    about = {
        "base_model_name_or_path": "x",
        "r": 2,
        "lora_alpha": 2,
        "target_modules": ["q"],
        "fan_in_fan_out": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "adapter_model.safetensors").write_text(SECRET, encoding="utf-8")
    return folder


def saved(run: Run) -> Path:
    """The adapter's folder of trial 0, made with a configuration; the weights are for the test."""
    folder = run.path / attempt_folder(0, 1) / "adapter"
    folder.mkdir(parents=True)
    return folder


def told_adapter(run: Run, name: str) -> None:
    """Have the ledger say where the adapter of trial 0 is."""
    with sqlite3.connect(run.path / "ledger.db") as database:
        found = database.execute(
            "UPDATE trial_user_attributes SET value_json = ? WHERE key = 'adapter' AND trial_id = "
            "(SELECT trial_id FROM trials WHERE number = 0)",
            (json.dumps(name),),
        )
        assert found.rowcount == 1


def by_name(name: Callable[[Path], str]) -> Callable[[Run, Path], None]:
    return lambda run, outside: told_adapter(run, name(outside))


def linked_folder(run: Run, outside: Path) -> None:
    saved(run).rmdir()
    (run.path / attempt_folder(0, 1) / "adapter").symlink_to(outside)


def linked_weights(run: Run, outside: Path) -> None:
    folder = saved(run)
    text = (outside / "adapter_config.json").read_text(encoding="utf-8")
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    (folder / "adapter_model.safetensors").symlink_to(outside / "adapter_model.safetensors")


def linked_in_a_model(run: Run, outside: Path) -> None:
    folder = saved(run)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "deep").mkdir()
    (folder / "deep" / "notes.txt").symlink_to(outside / "adapter_model.safetensors")


WAYS_OUT = [
    pytest.param(by_name(lambda outside: f"../../{outside.name}"), id="up"),
    pytest.param(by_name(lambda outside: f"trials/../../../{outside.name}"), id="down-and-up"),
    pytest.param(by_name(str), id="absolute"),
    pytest.param(linked_folder, id="linked-folder"),
    pytest.param(linked_weights, id="linked-weights"),
    pytest.param(linked_in_a_model, id="linked-in-a-model"),
]


@pytest.mark.parametrize("lead_out", WAYS_OUT)
def test_what_leads_out_of_a_copied_run_is_not_exported(
    tune: Command, sample_run: Run, outside: Path, lead_out: Callable[[Run, Path], None]
) -> None:
    lead_out(sample_run, outside)
    for option in ([], ["--rank", "1"]):
        done = tune("export", sample_run.path, "--trial", 0, "--out", "out", *option)
        is_refused(done)
        assert any(rule in done.err for rule in ("leads out of", "cannot be read: trial 0")), done
    assert not Path("out").exists()


@pytest.mark.parametrize("name", OWN_FILES)
def test_a_file_of_a_copied_run_that_is_a_link_out_of_it_is_refused(
    tune: Command, sample_run: Run, outside: Path, name: str
) -> None:
    """Neither read, and shown, nor written to."""
    place = sample_run.path / name
    target = outside / name
    if place.exists():
        place.rename(target)
    else:
        target.write_text(SECRET, encoding="utf-8")
    before = target.read_bytes() if target.is_file() else b""
    place.symlink_to(target)
    for verb in (["status"], ["best"], ["report"], ["resume"], ["show", 0], ["advise"]):
        is_refused(tune(verb[0], sample_run.path, *verb[1:]), f"{name}: leads out of", "links")
    assert (target.read_bytes() if target.is_file() else b"") == before


def test_the_history_and_the_file_of_a_trial_are_the_runs_own(
    tune: Command, sample_run: Run, outside: Path
) -> None:
    secret = outside / "adapter_model.safetensors"
    secret.write_text(json.dumps({"step": 0, "metrics": {}, "seconds": 0, "x": SECRET}) + "\n")
    history = sample_run.path / attempt_folder(0, 1) / "history.jsonl"
    history.unlink()
    history.symlink_to(secret)
    done = tune("show", sample_run.path, 0)
    assert SECRET not in done.out + done.err
    with pytest.raises(FileError, match=r"history\.jsonl: leads out of"):
        sample_run.history(0)
    ends_refused(tune("resume", sample_run.path), "history.jsonl: leads out of")
    ends_refused(tune("retry", sample_run.path, "--failed"), "history.jsonl: leads out of")


@pytest.mark.parametrize("number", ["../../../etc", "x", ""])
def test_a_number_of_a_trial_is_a_number(tune: Command, sample_run: Run, number: str) -> None:
    with sqlite3.connect(sample_run.path / "ledger.db") as database:
        database.execute("UPDATE trials SET number = ? WHERE number = 8", (number,))
    is_refused(tune("status", sample_run.path), "the ledger cannot be read")


def test_a_run_folder_may_itself_be_a_link(tune: Command, sample_run: Run, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(sample_run.path)
    (sample_run.path / "beside").symlink_to("spec.yaml")
    refuse_links_out(tmp_path / "linked")
    done: Done = tune("status", "linked")
    assert done.status == 0, done.err
