"""A ledger that is lost or damaged is mended from what the trials committed: samplers see the same study."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from analytic_study import SPACE, spec_of, study_in
from command_line import Command, is_refused
from driven_sweep import conclusions, drive, every_kill, unsynced
from small_sweep import WHY

from core.store.durable import commit_lines, commit_yaml, read_lines
from core.store.locks import try_lock
from tuning.config import SweepSpec
from tuning.records import LEDGER_FILE, LOCK_FILE, SPEC_FILE, attempt_folder
from tuning.repair import repair
from tuning.run import Run, load_run

GRID = {
    "optimizer.learning_rate": {"categorical": [1e-4, 1e-3, 5e-3]} | WHY,
    "adapter.rank": {"categorical": [4, 16]} | WHY,
}
START = {"source": "a paper", "values": {"adapter.rank": 16}}


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """No test here is about what the disk has when the power goes."""
    with unsynced():
        yield


def sweep(sampler: str, ranking: str = "none") -> SweepSpec:
    """Some trials that the guard, or a ranking pruner, stops, and some that it does not."""
    return spec_of(
        space=GRID if sampler == "grid" else SPACE,
        start_from=[] if sampler == "grid" else [START],
        sampler={"name": sampler, "seed": 4, "n_startup_trials": 2},
        pruning={
            "retain": {"limit": 0.1, "hard_limit": 0.5, "patience": 2, "grace_steps": 0},
            "ranking": ranking,
            "startup_trials": 1,
            "warmup_steps": 1,
            "reduction_factor": 2,
        },
        budget={"trials": 4, "max_steps": 3},
    )


def begun(folder: Path, spec: SweepSpec, **how: Any) -> Path:
    """A run folder whose sweep was driven, as far as is asked."""
    folder.mkdir(parents=True, exist_ok=True)
    commit_yaml(folder / SPEC_FILE, {"sweep": spec.plain()})
    drive(spec, folder, **how)
    return folder


def study(folder: Path) -> list[dict[str, Any]]:
    """All that Optuna reads of each trial, but when it was."""
    found = study_in(folder)
    return [
        {
            "number": t.number,
            "state": t.state,
            "values": t.values,
            "params": t.params,
            "distributions": t.distributions,
            "user_attrs": {k: v for k, v in t.user_attrs.items() if k != "duration_s"},
            "system_attrs": t.system_attrs,
            "intermediate_values": t.intermediate_values,
        }
        for t in found.trials
    ]


@pytest.mark.parametrize(
    ("sampler", "ranking"),
    [
        ("tpe", "median"),
        ("grid", "successive_halving"),
        pytest.param("qmc", "hyperband", marks=pytest.mark.matrix),
        pytest.param("auto", "none", marks=pytest.mark.matrix),
        pytest.param("nsga2", "none", marks=pytest.mark.matrix),
    ],
)
def test_a_ledger_that_is_lost_comes_back_as_it_was(
    tmp_path: Path, sampler: str, ranking: str
) -> None:
    spec = sweep(sampler, ranking)
    run = begun(tmp_path / "run", spec)
    before, name = study(run), study_in(run).study_name
    (run / LEDGER_FILE).unlink()
    made = repair(run)
    assert made.ledger == "missing" and len(made.steps) == spec.budget.trials
    assert study(run) == before
    assert study_in(run).study_name == name
    longer = spec.model_copy(update={"budget": spec.budget.model_copy(update={"trials": 5})})
    expected = begun(tmp_path / "expected", longer)
    drive(longer, run)
    assert conclusions(run) == conclusions(expected)


def test_a_ledger_that_is_lost_at_any_moment_loses_no_result(tmp_path: Path) -> None:
    """At each kill, the repaired run goes on to the same conclusions as one that nobody kills."""
    spec = sweep("tpe")
    whole = tmp_path / "whole"
    whole.mkdir()
    commit_yaml(whole / SPEC_FILE, {"sweep": spec.plain()})
    with every_kill(whole, tmp_path / "kills") as kills:
        drive(spec, whole)
    expected = conclusions(whole)
    for killed in kills.taken[5::18]:
        (killed / LEDGER_FILE).unlink(missing_ok=True)
        repair(killed)
        drive(spec, killed)
        assert conclusions(killed) == expected, killed.name


def cut(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])


def zeroed(path: Path) -> None:
    """A page in the middle is lost, as a disk loses it."""
    with path.open("rb+") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(bytes(4096))


def changed(statement: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute(statement)

    return damage


DAMAGE = [
    pytest.param(cut, id="torn", marks=pytest.mark.matrix),
    pytest.param(zeroed, id="a-page-lost"),
    pytest.param(changed("UPDATE trial_user_attributes SET value_json = '{'"), id="no-json"),
    pytest.param(
        changed("DROP TABLE trial_user_attributes"), id="no-table", marks=pytest.mark.matrix
    ),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_ledger_is_copied_aside_and_made_anew(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    run = begun(tmp_path / "run", sweep("random"))
    before = study(run)
    damage(run / LEDGER_FILE)
    content = (run / LEDGER_FILE).read_bytes()
    made = repair(run)
    assert made.copied_to is not None and made.copied_to.read_bytes() == content
    assert study(run) == before
    assert not repair(run).is_needed


def test_a_committed_result_is_told_and_a_missing_row_made(tmp_path: Path) -> None:
    """The ledger of a backup knows less than the files: what they know more is added, the rest is left."""
    spec = sweep("random")
    run = begun(tmp_path / "run", spec, up_to=2)
    backup = (run / LEDGER_FILE).read_bytes()
    drive(spec, run)
    before = study(run)
    (run / LEDGER_FILE).write_bytes(backup)
    made = repair(run)
    assert made.ledger == "whole"
    assert [step.trial for step in made.steps] == [2, 3]
    assert study(run) == before


def test_what_the_ledger_says_of_a_trial_that_ended_stays(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", sweep("random"))
    before = study(run)
    path = run / attempt_folder(0, 1) / "result.json"
    other = json.loads(path.read_text()) | {"state": "PRUNED", "value": -9.0}
    path.write_text(json.dumps(other))
    made = repair(run)
    assert [(s.trial, s.is_lost) for s in made.steps] == [(0, True)]
    assert "left as it is, COMPLETE" in made.steps[0].did
    assert not made.is_needed and study(run) == before


@pytest.mark.parametrize("name", ["result.json", "history.jsonl"])
def test_a_file_that_cannot_be_read_is_named_and_its_trial_goes_on(
    tmp_path: Path, name: str
) -> None:
    spec = sweep("random")
    run = begun(tmp_path / "run", spec)
    expected = conclusions(run)
    damaged = run / attempt_folder(1, 1) / name
    damaged.write_bytes(b"\xff\xfe{")
    (run / LEDGER_FILE).unlink()
    made = repair(run)
    assert any(str(damaged) in s.did and s.is_lost and s.trial == 1 for s in made.steps)
    state = study(run)[1]["state"].name
    assert state == ("RUNNING" if name == "result.json" else "COMPLETE")
    drive(spec, run)
    keys = ("state", "recorded.params", "recorded.value", "told.0")
    assert [{k: t.get(k) for k in keys} for t in conclusions(run)] == [
        {k: t.get(k) for k in keys} for t in expected
    ]


def set_in(name: str, *path: str, value: object) -> Callable[[Path], Path]:
    """Damages a file of a trial: one of its values is another one; the file."""

    def damage(trial: Path) -> Path:
        (file,) = trial.rglob(name)
        content = json.loads(file.read_text())
        place = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        file.write_text(json.dumps(content))
        return file

    return damage


def other_adapter(trial: Path) -> Path:
    (history,) = trial.rglob("history.jsonl")
    lines = read_lines(history)
    lines[-1]["adapter_sha256"] = "0" * 64
    commit_lines(history, lines)
    return history.parent / "adapter"


def renamed_parameter(trial: Path) -> Path:
    path = trial / "proposal.json"
    path.write_text(path.read_text().replace("adapter.rank", "adapter.rang"))
    return path


WRONG = [
    pytest.param(set_in("result.json", "state", value="COMPLATE"), id="state"),
    pytest.param(set_in("result.json", "value", value="nan"), id="value"),
    pytest.param(set_in("result.json", "decisions", "guard:1:1", value="?"), id="decision"),
    pytest.param(set_in("proposal.json", "params", "adapter.rank", value=5), id="no-choice"),
    pytest.param(set_in("proposal.json", "params", "adapter.rank", value="four"), id="a-text"),
    pytest.param(renamed_parameter, id="renamed"),
    pytest.param(other_adapter, id="another-adapter"),
]


@pytest.mark.parametrize("damage", WRONG)
def test_a_file_that_no_sweep_wrote_is_named_and_its_trial_runs_again(
    tmp_path: Path, damage: Callable[[Path], Path]
) -> None:
    spec = sweep("grid")
    run = begun(tmp_path / "run", spec)
    expected = conclusions(run)
    damaged = damage(run / "trials" / "0001")
    (run / LEDGER_FILE).unlink()
    made = repair(run)
    assert any(str(damaged) in s.did and s.is_lost and s.trial == 1 for s in made.steps), made.steps
    drive(spec, run)
    keys = ("state", "recorded.params", "recorded.value", "told.0")
    assert [{k: t.get(k) for k in keys} for t in conclusions(run)] == [
        {k: t.get(k) for k in keys} for t in expected
    ]


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"kind": "X"}'])
def test_a_damaged_word_on_why_an_attempt_broke_stops_nobody(tmp_path: Path, content: str) -> None:
    spec = sweep("grid")
    run = begun(tmp_path / "run", spec, up_to=2)
    for number in (0, 1):
        (run / attempt_folder(number, 1) / "failure.json").write_text(content)
    drive(spec, run)
    assert [t["state"].name for t in study(run)] == ["COMPLETE"] * 4
    (run / LEDGER_FILE).unlink()
    made = repair(run)
    assert sum("failure.json" in step.did for step in made.steps) == 2
    assert [t["state"].name for t in study(run)] == ["COMPLETE"] * 4


def test_a_run_of_an_earlier_release_has_its_parameters_from_its_trials(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", sweep("random"))
    before = study(run)
    for path in run.rglob("proposal.json"):
        path.unlink()
    (run / LEDGER_FILE).unlink()
    repair(run)
    for name in ("state", "values", "params", "distributions", "intermediate_values"):
        assert [t[name] for t in study(run)] == [t[name] for t in before], name


def test_a_trial_of_which_nothing_is_left_is_asked_for_anew(tmp_path: Path) -> None:
    spec = sweep("grid")
    run = begun(tmp_path / "run", spec)
    shutil.rmtree(run / "trials" / "0002")
    cut(run / LEDGER_FILE)
    repair(run)
    assert [t["state"].name for t in study(run)] == ["COMPLETE", "COMPLETE", "WAITING", "COMPLETE"]
    drive(spec, run)
    assert [t["state"].name for t in study(run)] == ["COMPLETE"] * 4
    assert len({str(t["params"]) for t in study(run)}) == 4


def test_the_command_says_what_it_did(tune: Command, sample_run: Run) -> None:
    run = sample_run.path
    assert "nothing to repair" in tune("repair", run).out
    (run / LEDGER_FILE).write_bytes(b"")
    said = tune("status", run).err
    assert f"`unlearn-tune repair {run}`" in said
    dry: Mapping[str, Any] = tune("repair", run, "--dry-run", "--json").json
    assert dry["ledger"] == "unreadable" and dry["dry_run"] and dry["copied_to"] is None
    done = tune("repair", run)
    assert done.status == 0
    assert f"ledger.db: copied to {run / 'ledger.db.before-repair-1'}" in done.out
    assert f"go on with: unlearn-tune resume {run}" in done.out
    (run / LEDGER_FILE).unlink()
    is_refused(tune("status", run), "the ledger is missing", f"unlearn-tune repair {run}")


def test_a_run_that_is_driven_or_has_no_spec_is_refused(tune: Command, sample_run: Run) -> None:
    run = sample_run.path
    with (run / LOCK_FILE).open("a+") as file:
        assert try_lock(file)
        is_refused(tune("repair", run), f"{run}: a driver holds this run")
    (run / SPEC_FILE).unlink()
    is_refused(tune("repair", run), "no run is there to repair (spec.yaml is expected")


def test_what_nobody_drives_is_interrupted_wherever_it_is_shown(
    tune: Command, sample_run: Run
) -> None:
    run = sample_run.path
    with (run / LOCK_FILE).open("a+") as file:
        assert try_lock(file)
        assert load_run(run).trials[8].state == "RUNNING"
    listed = {t["number"]: t["state"] for t in tune("best", run, "--format", "json").json["trials"]}
    assert listed[8] == "INTERRUPTED"
    assert tune("status", run, "--json").json["counts"]["interrupted"] == 1
    assert "interrupted" in tune("show", run, "8").out
