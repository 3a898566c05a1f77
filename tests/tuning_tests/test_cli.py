"""The command line: results on stdout, refusals with status 2 and a reason on stderr, and nothing left behind."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from core.config import parse_trial
from core.store.durable import append_line, commit_yaml
from tuning import cli
from tuning.config import read_yaml
from tuning.records import LOCK_FILE, SPEC_FILE, Run
from tuning.space import bind

ROOT = Path(__file__).resolve().parents[2]
COMMANDS: Mapping[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
VERBS = sorted(verb for verb, command in COMMANDS.items() if not hasattr(command, "commands"))


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def tune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run ``unlearn-tune`` through its entry point, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["unlearn-tune", *map(str, arguments)])
        capsys.readouterr()
        status: object = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        assert isinstance(status, int)
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return command


@pytest.fixture
def values(tiny_model: Path, tiny_data: Mapping[str, Path]) -> dict[str, Any]:
    """A sweep over the tiny model; valid."""
    why = {"why": "it matters"}
    return {
        "schema": 1,
        "name": "tiny",
        "model": {"source": str(tiny_model)},
        "data": {role: {"source": str(path)} for role, path in tiny_data.items()}
        | {"probe_rows": 6, "report_rows": 6},
        "method": {"forget_loss": "ihl"},
        "space": {
            "optimizer.learning_rate": {"float": {"low": 1e-4, "high": 1e-2, "log": True}} | why,
            "adapter.rank": {"categorical": [2, 4]} | why,
        },
        "start_from": [{"source": "a paper", "values": {"adapter.rank": 4}}],
        "budget": {"trials": 3, "max_steps": 4},
        "engine": {"dtype": "fp32", "device": "cpu"},
    }


def changed(values: Mapping[str, Any], path: str, value: object) -> dict[str, Any]:
    """``values`` with a dotted path replaced, and ``space`` entries by their whole name."""
    result: dict[str, Any] = json.loads(json.dumps(values))
    head, _, rest = path.partition(".")
    parts = [head, rest] if head == "space" else path.split(".")
    place = result
    for part in parts[:-1]:
        place = place.setdefault(part, {})
    place[parts[-1]] = value
    return result


def write(values: object, path: Path = Path("sweep.yaml")) -> Path:
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def left_in_runs() -> list[str]:
    return [p.name for p in Path("runs").iterdir()] if Path("runs").exists() else []


def is_refused(done: Done, *expected: str, after_it_began: bool = False) -> None:
    assert done.status == 2, done
    assert done.out == ""
    assert "\nerror: " in done.err if after_it_began else done.err.startswith("error: ")
    assert "Traceback" not in done.err
    for part in expected:
        assert part in done.err


# Help


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_two_examples_that_the_parser_takes(tune: Command, verb: str) -> None:
    done = tune(verb, "--help")
    assert (done.status, done.err) == (0, "")
    examples = re.findall(rf"^ *unlearn-tune ({verb}\b.*?) *$", done.out, flags=re.MULTILINE)
    assert len(set(examples)) >= 2
    for example in examples:
        COMMANDS[verb].make_context(verb, shlex.split(example)[1:])


def test_help_names_every_verb(tune: Command) -> None:
    done = tune("--help")
    assert done.status == 0
    for verb in COMMANDS:
        assert verb in done.out


def test_an_unknown_verb_is_refused(tune: Command) -> None:
    done = tune("swep", "x.yaml")
    assert (done.status, done.out) == (2, "")
    assert "No such command 'swep'" in done.err


# Refused before anything starts


def range_of(low: float, high: float) -> dict[str, Any]:
    return {"float": {"low": low, "high": high}, "why": "x"}


WRONG = [
    pytest.param(
        "budjet", {}, ["sweep.yaml: 1 problem", "budjet: unknown key; did you mean 'budget'?"],
        id="misspelt-key",
    ),
    pytest.param(
        "space.optimizer.learning_rat", range_of(0.1, 0.2),
        ["space.optimizer.learning_rat", "did you mean 'optimizer.learning_rate'?"],
        id="misspelt-field",
    ),
    pytest.param(
        "space.optimizer.learning_rate", range_of(0.1, 3.0),
        ["space.optimizer.learning_rate: must be <= 1.0, got 3.0"],
        id="range-outside-limits",
    ),
    pytest.param(
        "model.source", "package:nope",
        ["model.source: no packaged model 'package:nope'; known: package:smollm2"],
        id="unknown-packaged-model",
    ),
    pytest.param(
        "model.source", "./nowhere", ["model.source: './nowhere' is no folder"], id="no-model-folder"
    ),
    pytest.param(
        "data.forget.source", "embedded:nope",
        ["data.forget.source: no embedded text 'embedded:nope'; known: ", "embedded:forget"],
        id="unknown-embedded-data",
    ),
    pytest.param(
        "data.retain.source", "gone.jsonl",
        ["data.retain.source: file 'gone.jsonl' does not exist"],
        id="missing-data-file",
    ),
    pytest.param(
        "method.forget_loss", "ihll",
        ["method.forget_loss: unknown choice, got 'ihll'; did you mean 'ihl'?"],
        id="unknown-loss",
    ),
    pytest.param(
        "start_from", [{"source": "x", "values": {"adapter.rank": 3}}],
        ["start_from.0.values: adapter.rank = 3 lies outside the space (2, 4)"],
        id="start-outside-the-space",
    ),
    pytest.param("name", "../up", ["name: ", "got '../up'"], id="name-leaves-the-folder"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "expected"), WRONG)
@pytest.mark.parametrize("verb", ["validate", "sweep"])
def test_a_wrong_sweep_file_is_refused(
    tune: Command, values: dict[str, Any], verb: str, path: str, value: object, expected: list[str]
) -> None:
    is_refused(tune(verb, write(changed(values, path, value))), *expected)
    assert left_in_runs() == []


@pytest.mark.parametrize("name", ["..", "../up", "a/b", ".hidden", "-x y"])
def test_a_run_name_that_leaves_the_folder_is_refused(
    tune: Command, values: dict[str, Any], name: str
) -> None:
    is_refused(tune("sweep", write(values), f"--name={name}"), f"--name: {name!r} must be 1 to 64")
    assert left_in_runs() == []


@pytest.mark.parametrize("extra", [[], ["--dry-run"]], ids=["sweep", "dry-run"])
def test_resources_that_are_not_there_are_refused(
    tune: Command, values: dict[str, Any], extra: list[str]
) -> None:
    file = write(changed(values, "resources", {"ranks_per_trial": 4, "cpus_per_rank": 1024}))
    done = tune("sweep", file, *extra)
    is_refused(
        done,
        "resources: a trial needs 4096 CPUs and 0 GPUs (4 ranks x 1024 CPUs, 0 GPUs), but only ",
        after_it_began=not extra,
    )
    assert left_in_runs() == []


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        pytest.param("trials", "--set: key=value is expected, got 'trials'", id="no-value"),
        pytest.param("=3", "--set: key=value is expected, got '=3'", id="no-key"),
        pytest.param("adapter.rank=[1", "--set adapter.rank: 1 problem", id="no-yaml"),
        pytest.param("budget.trails=1", "did you mean 'trials'?", id="unknown"),
        pytest.param("space.adapter.rank=4", "change the search space in the file", id="space"),
        pytest.param("adapter.rank=8", "space.adapter.rank: is also fixed", id="searched"),
    ],
)
def test_a_wrong_override_is_refused(
    tune: Command, values: dict[str, Any], pair: str, expected: str
) -> None:
    is_refused(tune("sweep", write(values), "--set", pair), expected)


@pytest.mark.parametrize("trials", ["0", "many"])
def test_a_number_of_trials_is_a_number(tune: Command, values: dict[str, Any], trials: str) -> None:
    done = tune("sweep", write(values), "--trials", trials)
    assert (done.status, done.out) == (2, "")
    assert "--trials" in done.err and "Traceback" not in done.err


@pytest.mark.parametrize(
    "verb", ["sweep", "validate", "status", "best", "resume", "report", "train"]
)
def test_what_is_not_there_is_refused(tune: Command, verb: str) -> None:
    extra = ["--out", "x"] if verb == "train" else []
    is_refused(tune(verb, "runs/nowhere", *extra), "runs/nowhere: ")
    assert left_in_runs() == []


def test_the_installed_command_ends_with_status_2_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tuning.cli", "status", str(tmp_path / "none")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    is_refused(Done(done.returncode, done.stdout, done.stderr), "none: no run is there")


# A run that is there already


def specification(run: Run) -> dict[str, Any]:
    return run.spec.plain()


def test_an_existing_run_is_refused_and_resume_is_named(tune: Command, sample_run: Run) -> None:
    done = tune("sweep", write(specification(sample_run)))
    is_refused(done, "runs/sample exists already", "`unlearn-tune resume runs/sample`")
    assert "differs" not in done.err


def test_what_the_hardware_decided_is_no_difference(tune: Command, sample_run: Run) -> None:
    """A driver writes the resolved dtype and device into the run; the sweep file leaves them open."""
    file = write(specification(sample_run))
    resolved = changed(specification(sample_run), "engine", {"dtype": "fp32", "device": "cpu"})
    commit_yaml(sample_run.path / SPEC_FILE, {"sweep": resolved})
    assert "differs" not in tune("sweep", file).err
    assert '+  "dtype": "bf16"' in tune("sweep", file, "--set", "engine.dtype=bf16").err


def test_an_existing_run_is_refused_with_what_differs(tune: Command, sample_run: Run) -> None:
    file = write(changed(specification(sample_run), "method.forget_loss", "ga"))
    done = tune("sweep", file, "--set", "budget.max_steps=9")
    is_refused(done, "The sweep file differs from the run's:", "resume runs/sample")
    for line in ('-  "forget_loss": "ihl"', '+  "forget_loss": "ga"', '+  "max_steps": 9'):
        assert line in done.err


def test_a_folder_that_is_no_run_is_not_overwritten(tune: Command, values: dict[str, Any]) -> None:
    kept = Path("runs/tiny/notes.txt")
    file = write(values)
    kept.parent.mkdir(parents=True)
    kept.write_text("mine", encoding="utf-8")
    is_refused(tune("sweep", file), "runs/tiny exists already")
    assert kept.read_text(encoding="utf-8") == "mine"


def test_resume_refuses_a_changed_file(tune: Command, sample_run: Run) -> None:
    file = write(changed(specification(sample_run), "sampler.seed", 99))
    done = tune("resume", "runs/sample", "--spec", file)
    expected = ["the sweep file changed since the run began", '-  "seed": 3', '+  "seed": 99']
    is_refused(done, *expected, after_it_began=True)


def test_resume_refuses_a_run_that_another_driver_holds(tune: Command, sample_run: Run) -> None:
    with (sample_run.path / LOCK_FILE).open("w") as file:
        file.write("pid 1 on here")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        done = tune("resume", "runs/sample")
    expected = "error: runs/sample: another driver holds this run (pid 1 on here)"
    is_refused(done, expected, after_it_began=True)


# Results


def test_status_says_how_it_stands(tune: Command, sample_run: Run) -> None:
    done = tune("status", sample_run.path)
    assert (done.status, done.err) == (0, "")
    assert (
        "sample: done, 8 of 10 trials (5 complete, 2 pruned, 1 failed, 1 running, 1 waiting)"
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
    assert "COMPLETE" in first and "0.900" in first and "rank=" in first
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
        pytest.param("8", "it has not", id="running"),
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


# Export


@pytest.fixture
def exportable(sample_run: Run) -> Run:
    """The sample with the files that a worker leaves beside its history."""
    for trial in sample_run.trials:
        if trial.adapter is None:
            continue
        folder = sample_run.path / trial.adapter
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_model.safetensors").write_bytes(b"weights of %d" % trial.number)
        config = {"peft_type": "LORA", "base_model_name_or_path": "/cache/smollm2"}
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        made = bind(sample_run.spec, trial.params, where="test")
        commit_yaml(folder.parent / "trial.yaml", made.model_dump(mode="json"))
    return sample_run


def test_export_writes_adapter_card_and_trial(tune: Command, exportable: Run) -> None:
    done = tune("export", exportable.path, "--out", "best")
    assert (done.status, done.out) == (0, "best\n")
    assert "wrote trial 0 to best" in done.err
    out = Path("best")
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "trial.yaml",
    ]
    assert (out / "adapter_model.safetensors").read_bytes() == b"weights of 0"
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "/cache/smollm2"
    card = (out / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert header == {
        "base_model": "/cache/smollm2",
        "library_name": "peft",
        "tags": ["unlearning", "lora"],
    }
    assert "| retain drop (nats per token) | - | 0.060 | 0.050 |" in card
    for name in exportable.spec.space:
        assert f"`{name}`" in card


def test_an_exported_trial_is_a_trial_file(tune: Command, exportable: Run) -> None:
    tune("export", exportable.path, "--trial", 3, "--out", "three")
    text = Path("three/trial.yaml").read_text(encoding="utf-8")
    assert text.startswith("# Trial 3 of sample. Run it again: unlearn-tune train trial.yaml")
    trial = parse_trial(read_yaml(Path("three/trial.yaml")), where="test")
    assert trial == bind(exportable.spec, exportable.trials[3].params, where="test")
    done = tune("validate", "three/trial.yaml")
    assert (done.status, done.out) == (0, "three/trial.yaml: a valid trial\n")


def test_export_records_another_base(tune: Command, exportable: Run) -> None:
    tune("export", exportable.path, "--out", "x", "--base", "org/model")
    config = json.loads(Path("x/adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "org/model"
    assert "Base model: `org/model`" in Path("x/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("trial", "expected"),
    [
        pytest.param("1", "exceeds the hard limit", id="pruned"),
        pytest.param("5", "CUDA out of memory", id="failed"),
        pytest.param("8", "RUNNING", id="running"),
    ],
)
def test_a_trial_without_an_adapter_is_not_exported(
    tune: Command, exportable: Run, trial: str, expected: str
) -> None:
    done = tune("export", exportable.path, "--trial", trial, "--out", "x")
    is_refused(done, f"trial {trial} has no adapter: ", expected, "choose another with --trial")
    assert not Path("x").exists()


def test_export_does_not_overwrite(tune: Command, exportable: Run) -> None:
    Path("there").mkdir()
    is_refused(tune("export", exportable.path, "--out", "there"), "--out: there exists already")
    assert list(Path("there").iterdir()) == []


def test_export_from_a_run_without_its_trials_is_refused(tune: Command, sample_run: Run) -> None:
    done = tune("export", sample_run.path, "--out", "x")
    is_refused(done, "trials/0000/attempt-1/adapter: the adapter is not there")
    assert not Path("x").exists()


# Trial files


def test_train_refuses_a_wrong_trial_file(tune: Command, make_trial: Callable[..., Any]) -> None:
    plain = make_trial().model_dump(mode="json")
    file = write(changed(changed(plain, "method.forget_loss", "ihll"), "adapter.rnk", 4))
    expected = ["sweep.yaml: 2 problems", "method.forget_loss: ", "did you mean 'rank'?"]
    is_refused(tune("train", file, "--out", "x"), *expected)
    is_refused(tune("validate", file), *expected)
    assert not Path("x").exists()


def test_train_does_not_overwrite(tune: Command, make_trial: Callable[..., Any]) -> None:
    Path("there").mkdir()
    file = write(make_trial().model_dump(mode="json"))
    is_refused(tune("train", file, "--out", "there"), "--out: there exists already")


# Validate, doctor, dry run


def test_validate_takes_what_we_ship(tune: Command) -> None:
    demo = tune("validate", ROOT / "search_spaces" / "demo.yaml")
    assert demo.status == 0
    assert (
        "a valid sweep of 12 trials over optimizer.learning_rate: 0.0001 to 0.01, log; " in demo.out
    )
    cluster = tune("validate", ROOT / "cluster.yaml")
    assert (cluster.status, cluster.out.endswith(": a valid cluster file\n")) == (0, True)


def test_validate_names_model_and_data_together(tune: Command, values: dict[str, Any]) -> None:
    wrong = changed(
        changed(values, "model.source", "package:x"), "data.forget.source", "embedded:y"
    )
    is_refused(
        tune("validate", write(wrong)), "2 problems", "model.source: ", "data.forget.source: "
    )


def test_doctor_names_each_thing_with_a_fix(tune: Command) -> None:
    done = tune("doctor", "--json")
    checks = json.loads(done.out)
    names = {c["name"] for c in checks}
    assert {"python", "torch", "ray", "optuna", "compiler", "devices", "package:smollm2"} <= names
    assert all(set(c) == {"name", "status", "found", "fix"} for c in checks)
    assert all(c["fix"] for c in checks if c["status"] != "ok")
    has_error = any(c["status"] == "error" for c in checks)
    assert done.status == (2 if has_error else 0)
    lines = tune("doctor").out.splitlines()
    assert len(lines) == len(checks)


def test_dry_run_shows_space_samples_and_needs(tune: Command, values: dict[str, Any]) -> None:
    done = tune("sweep", write(values), "--dry-run", "--trials", 2, "--name", "other")
    assert done.status == 0
    assert "sweep tiny -> runs/other: 2 trials of at most 4 steps" in done.out
    for part in (
        "0.0001 to 0.01, log",
        "2 sample configurations (start_from first):",
        "rank=4",
        "memory: about ",
        "disk: about ",
        "time: very roughly ",
    ):
        assert part in done.out
    assert left_in_runs() == []


def test_dry_run_as_json(tune: Command, values: dict[str, Any]) -> None:
    done = tune("sweep", write(values), "--dry-run", "--json", "--set", "adapter.scaling=1.0")
    shown = json.loads(done.out)
    assert (done.status, list(shown)) == (0, ["run", "space", "samples", "estimate", "spec"])
    assert shown["run"] == "runs/tiny"
    assert shown["space"]["adapter.rank"] == "2, 4"
    assert len(shown["samples"]) == 3 and shown["samples"][0]["adapter.rank"] == 4
    assert shown["spec"]["adapter"] == {"scaling": 1.0}
    estimate = shown["estimate"]
    assert estimate["concurrent"] >= 1
    assert estimate["parameters"] > 0 and estimate["adapter_parameters"] > 0
    assert estimate["memory_gib"] > 0 and estimate["disk_gib"] > 0
    low, high = estimate["time_s"]
    assert 0 < low < high
    assert left_in_runs() == []


def test_dry_run_proposes_what_the_sweep_would(tune: Command, values: dict[str, Any]) -> None:
    file = write(changed(values, "sampler", {"name": "random", "seed": 4}))
    first, second = (tune("sweep", file, "--dry-run", "--json").out for _ in range(2))
    assert first == second
    assert (
        json.loads(tune("sweep", file, "--dry-run", "--json", "--set", "sampler.seed=5").out)[
            "samples"
        ]
        != json.loads(first)["samples"]
    )


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
