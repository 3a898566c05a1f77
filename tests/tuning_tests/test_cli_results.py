"""The verbs that look at a run: what they print, in which format, and that they load no framework."""

from __future__ import annotations

import csv
import io
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import ROOT, Command, is_refused
from tensorboardX.proto import event_pb2

import tuning
from core.store.durable import append_line
from tuning.files import load_sweep
from tuning.run import Run

# Results


def test_status_says_how_it_stands(tune: Command, sample_run: Run) -> None:
    done = tune("status", sample_run.path)
    assert (done.status, done.err) == (0, "")
    assert (
        "sample: done, 8 of 10 trials (5 complete, 2 pruned, 1 failed, 1 interrupted, 1 waiting)"
        in done.out
    )
    assert "3 by the retain guard, 1 past the target; 13 of 42 steps saved (31%)" in done.out
    assert "best: trial 0, forget_closure 0.900 at step 5" in done.out


@pytest.mark.parametrize("extra", [[], ["--watch"]], ids=["once", "watched-after-its-end"])
def test_status_as_json(tune: Command, sample_run: Run, extra: list[str]) -> None:
    done = tune("status", sample_run.path, "--json", *extra)
    shown = json.loads(done.out)
    assert (done.status, shown["state"], shown["best"]["number"]) == (0, "done", 0)
    assert shown["counts"]["complete"] == 5


@pytest.mark.parametrize("format_", [["--format", "json"], ["--json"]], ids=["format", "json"])
def test_best_as_json(tune: Command, sample_run: Run, format_: list[str]) -> None:
    done = tune("best", sample_run.path, "--top", 3, *format_)
    assert [t["number"] for t in json.loads(done.out)["trials"]] == [0, 3, 7]


def test_best_as_yaml(tune: Command, sample_run: Run) -> None:
    shown = yaml.safe_load(tune("best", sample_run.path, "--format", "yaml").out)
    assert shown == json.loads(tune("best", sample_run.path, "--format", "json").out)


def test_best_as_csv(tune: Command, sample_run: Run) -> None:
    done = tune("best", sample_run.path, "--format", "csv", "--top", 4)
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [row["number"] for row in rows] == ["0", "3", "7", "2"]
    assert float(rows[0]["value"]) == pytest.approx(0.9)
    assert float(rows[0]["metrics.retain_drop"]) == 0.06
    assert rows[0]["pareto"] == "True" and rows[3]["pareto"] == "False"


def test_best_as_a_table(tune: Command, sample_run: Run) -> None:
    done = tune("best", sample_run.path)
    first = next(line for line in done.out.splitlines() if line.lstrip().startswith("*0"))
    assert "COMPLETE" in first and "0.900" in first and " 0.0001 " in first
    assert "!1 " in done.out and "PRUNED" in done.out  # breaks a constraint
    assert "untouched model: forget accuracy 0.800" in done.out


def test_best_refuses_another_format(tune: Command, sample_run: Run) -> None:
    done = tune("best", sample_run.path, "--format", "xml")
    assert (done.status, done.out) == (2, "")
    assert "'xml' is not one of" in done.err


def test_show_says_everything_about_a_trial(tune: Command, sample_run: Run) -> None:
    out = tune("show", sample_run.path, 2).out
    assert "trial 2 of sample: COMPLETE" in out
    assert "why it ended: retain_guard: " in out and "above the limit 0.2" in out
    assert "at step 1 (feasible):" in out
    assert "curves over steps 0 to 4:" in out
    assert "trials/0002/attempt-1/trial.yaml --out again" in out


@pytest.mark.parametrize(
    ("trial", "expected"),
    [
        pytest.param("best", "trial 0 of sample: COMPLETE", id="best"),
        pytest.param("4", "non_finite: ", id="diverged"),
        pytest.param("5", "CUDA out of memory", id="failed"),
        pytest.param("8", "it has not; its driver has, and resume runs it", id="interrupted"),
    ],
)
def test_show_takes_every_kind_of_trial(
    tune: Command, sample_run: Run, trial: str, expected: str
) -> None:
    done = tune("show", sample_run.path, trial)
    assert done.status == 0
    assert expected in done.out


def test_show_as_json(tune: Command, sample_run: Run) -> None:
    shown = json.loads(tune("show", sample_run.path, 4, "--json").out)
    assert (shown["number"], shown["state"], shown["stopped_by"]) == (4, "PRUNED", "non_finite")
    assert [line["step"] for line in shown["history"]] == [0, 1, 2]
    assert shown["metrics"]["retain_drop"] == "nan"
    assert shown["proposed_by"] == "startup"


@pytest.mark.parametrize("trial", ["9", "-1", "first", "1.0", "²", ""])
def test_a_trial_that_is_not_there_is_refused(tune: Command, sample_run: Run, trial: str) -> None:
    done = tune("show", sample_run.path, "--", trial)
    is_refused(done, f"TRIAL: a number from 0 to 8, or best, is expected, got {trial!r}")


def test_best_of_a_run_without_a_feasible_trial_is_refused(
    tune: Command, build_run: Callable[..., Run], trial_script: Callable[..., Any]
) -> None:
    run = build_run(scripts=[trial_script(probes=[(4.5, 0.8, 0.6)])])
    is_refused(tune("show", run.path, "best"), "no trial is feasible yet")
    is_refused(tune("export", run.path, "--out", "x"), "no trial is feasible yet")
    assert "best: no feasible trial yet" in tune("status", run.path).out


# What the quick verbs load


@pytest.mark.parametrize(
    "verb", [["status"], ["status", "--json"], ["best"], ["show"]], ids=" ".join
)
def test_looking_at_a_run_loads_neither_torch_nor_ray(sample_run: Run, verb: list[str]) -> None:
    script = (
        "import sys\n"
        "from tuning.cli import main\n"
        "sys.argv = ['unlearn-tune', *sys.argv[1:]]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'ray', 'optuna', 'transformers', 'pandas', 'plotly'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    name, *options = verb
    trial = ["0"] if name == "show" else []
    done = subprocess.run(
        [sys.executable, "-c", script, name, str(sample_run.path), *trial, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_a_torn_history_line_is_left_out(tune: Command, sample_run: Run) -> None:
    history = sample_run.path / "trials" / "0008" / "attempt-1" / "history.jsonl"
    whole = len(sample_run.history(8))
    with history.open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "metr')
    assert len(sample_run.history(8)) == whole
    append_line(history, {"step": 3, "metrics": {}})
    assert [line["step"] for line in sample_run.history(8)] == [0, 1, 2, 3]


# Advice


def test_advise_prints_a_guide_and_writes_the_next_sweep(
    tune: Command, sample_run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "next.yaml"
    done = tune("advise", sample_run.path, "--out", out)
    assert done.status == 0
    assert "sample: 7 finished trials" in done.out
    assert "Not enough evidence which parameters mattered" in done.out
    assert f"unlearn-tune sweep {out}" in done.err
    assert load_sweep(out).name == "sample-next"


def test_advise_as_json_names_the_trials_of_each_sentence(tune: Command, sample_run: Run) -> None:
    shown = json.loads(tune("advise", sample_run.path, "--json").out)
    assert shown["runs"] == ["sample"]
    assert all({"section", "text", "trials", "shown"} <= f.keys() for f in shown["findings"])
    assert shown["recommended"] == dict((sample_run.best or sample_run.trials[0]).params)


def test_advise_does_not_write_over_a_file(tune: Command, sample_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "next.yaml"
    out.write_text("mine", "utf-8")
    is_refused(tune("advise", sample_run.path, "--out", out), "exists already")
    assert out.read_text("utf-8") == "mine"


# TensorBoard


def test_event_files_hold_every_metric_of_each_trial(tune: Command, sample_run: Run) -> None:
    done = tune("report", sample_run.path, "--tensorboard")
    folder = sample_run.path / "report" / "tensorboard"
    assert f"tensorboard --logdir {folder}" in done.err
    assert {path.name for path in folder.iterdir()} == {f"{n:04d}" for n in range(9)}
    seen: dict[str, dict[int, float]] = {}
    (file,) = (folder / "0000").iterdir()
    for record in records_of(file):
        for value in record.summary.value:
            if value.HasField("simple_value"):
                seen.setdefault(value.tag, {})[record.step] = value.simple_value
    history = sample_run.history(0)
    expected = {line["step"]: line["metrics"]["forget_nll"] for line in history}
    assert seen["forget_nll"] == pytest.approx(expected)
    assert set(history[0]["metrics"]) == set(seen)


def records_of(file: Path) -> Iterator[Any]:
    """Events of a file: each its length, a checksum of that, its bytes, and a checksum of those."""
    content, at = file.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
        at += 12 + length + 4


# Comparison


def copy_of(run: Run, to: Path) -> Path:
    shutil.copytree(run.path, to)
    return to


def test_runs_that_found_the_same_cannot_be_told_apart(
    tune: Command, build_run: Callable[..., Run], trial_script: Any, tmp_path: Path
) -> None:
    run = build_run(scripts=[trial_script(probes=[(2.8, 0.02, 0.02)] * 6, half_width=0.1)])
    other = copy_of(run, tmp_path / "other")
    shown = json.loads(tune("compare", run.path, other, "--json").out)
    assert [r["best"]["value"] for r in shown["runs"]] == pytest.approx([0.9, 0.9])
    assert shown["differs"] == {other.as_posix(): {"measured": [], "settings": []}}
    assert shown["ties"] == [[run.path.as_posix(), other.as_posix()]]
    assert "cannot be told apart" in tune("compare", run.path, other).out


def test_runs_on_other_data_are_shown_with_what_differs_and_not_compared(
    tune: Command, sample_run: Run, tmp_path: Path
) -> None:
    other = copy_of(sample_run, tmp_path / "other")
    spec = yaml.safe_load((other / "spec.yaml").read_text("utf-8"))
    spec["identity"] = dict(spec["identity"] or {}) | {"data.forget": "sha256:other"}
    spec["sweep"]["budget"]["max_steps"] = 7
    (other / "spec.yaml").write_text(yaml.safe_dump(spec), "utf-8")
    shown = json.loads(tune("compare", sample_run.path, other, "--json").out)
    (differs,) = shown["differs"].values()
    assert differs["measured"] == ["data.forget"]
    assert [line.split() for line in differs["settings"]] == [
        ["-", '"max_steps":', "6,"],
        ["+", '"max_steps":', "7,"],
    ]
    assert shown["ties"] is None
    text = " ".join(tune("compare", sample_run.path, other).out.split())
    assert "not to be compared: data.forget" in text


def test_a_single_run_is_no_comparison(tune: Command, sample_run: Run) -> None:
    is_refused(tune("compare", sample_run.path), "at least two run folders")


# Python


def test_a_run_shows_itself_in_a_line_and_as_a_table(sample_run: Run) -> None:
    line = repr(sample_run)
    assert "done, 8 of 10 trials, best trial 0: forget_closure 0.900" in line
    assert "\n" not in line
    page = sample_run._repr_html_()
    assert page.count("<tr") > 5
    assert escape(line) in page


def test_a_run_is_loaded_by_the_name_of_its_folder(sample_run: Run) -> None:
    assert tuning.load_run(str(sample_run.path)).best == sample_run.best


def test_the_public_names_of_the_package_are_all_there() -> None:
    assert dir(tuning) == sorted(tuning.__all__)
    assert all(getattr(tuning, name) is not None for name in tuning.__all__)
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert [name for name in tuning.__all__ if f"`{name}" not in page] == []


def test_a_sweep_file_is_read_by_its_class() -> None:
    path = str(ROOT / "search_spaces" / "demo.yaml")
    assert tuning.SweepSpec.from_file(path, overrides={"budget.trials": 3}).budget.trials == 3
