"""A damaged run folder: every verb says what is damaged and goes on with the rest, or refuses with one message.

``make mutations`` does the same on a thousand folders; here are some of each kind, and what it has found.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mutation.campaign import belongs_to_nobody, workplace
from mutation.folders import DAMAGE, damaged, good_run
from mutation.judging import of_call, of_command
from mutation.verbs import begin_again, looked_at

from core.errors import FileError
from tuning.damage import left_out
from tuning.records import EVENTS_FILE, LEDGER_FILE, LOCK_FILE, history_lines
from tuning.run import load_run
from tuning.samples import SAMPLES_FILE

_SEEDS = range(len(DAMAGE))
"""One of each kind."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with workplace() as made:
        yield made


@pytest.fixture(scope="module")
def good(folder: Path) -> Path:
    return belongs_to_nobody(good_run(folder / "good"))


@pytest.fixture
def run(good: Path) -> Iterator[Path]:
    copy = good.with_name("copy")
    shutil.copytree(good, copy)
    yield copy
    shutil.rmtree(copy)


@pytest.fixture(scope="module")
def whole(good: Path) -> dict[str, str]:
    """How each verb ends on a whole folder, once it has everything imported."""
    copy = belongs_to_nobody(shutil.copytree(good, good.with_name("whole")))
    return {
        name: ending.verdict for name, ending in looked_at(copy, good, seed=0, with_report=True)
    }


def test_a_whole_folder_is_read_by_every_verb(whole: dict[str, str]) -> None:
    assert set(whole.values()) == {"accepted"}, whole


@pytest.mark.parametrize("seed", _SEEDS)
def test_a_damaged_folder_is_read_or_refused_with_one_message(
    seed: int, good: Path, whole: dict[str, str]
) -> None:
    bad = damaged(good, good.with_name(f"run-{seed}"), seed)
    belongs_to_nobody(bad.path)
    is_closed = "unreadable" in bad.kinds
    for verb, ending in looked_at(
        bad.path, good, seed=seed, with_report=False, is_closed=is_closed
    ):
        assert not ending.is_fault, (
            f"seed {seed}: {verb}: {bad.what}: {ending.place}\n{ending.said}"
        )
    shutil.rmtree(bad.path)


# What was found


def test_a_damaged_history_is_left_out_of_the_report_and_named(run: Path) -> None:
    history = run / "trials/0003/attempt-1/history.jsonl"
    history.write_bytes(b'{"step": 0, "metrics": 3}\n')
    (run / SAMPLES_FILE).write_text("[]", encoding="utf-8")
    (run / EVENTS_FILE).write_bytes(b"\xff\n")
    found = left_out(load_run(run))
    assert [line.split(":")[0] for line in found] == [
        "without the curves of trial 3", "without the timeline", "without the samples",
    ]  # fmt: skip
    assert "metrics: must be numbers by name, got 3" in found[0]
    ending = of_command("report", run, names=[run.name])
    assert ending.verdict == "accepted"
    assert all(f"warning: {line}" in ending.said for line in found)
    page = (run / "report/report.md").read_text(encoding="utf-8")
    assert "This page is without the curves of trial 3" in page


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        pytest.param([{"step": 0, "metrics": {}}, {"step": 0, "metrics": {}}], "step: must grow", id="twice"),
        pytest.param([{"step": -1, "metrics": {}}], "step: must be a whole number, got -1", id="negative"),
        pytest.param([{"step": 1}], "metrics: must be numbers by name, got None", id="without"),
        pytest.param([{"step": 1, "metrics": {}, "seconds": "x"}], "seconds: is not what", id="seconds"),
        pytest.param([{"step": 1, "metrics": {}, "stopped_by": "me"}], "stopped_by: is not what", id="stop"),
        pytest.param([{"step": 1, "metrics": {}, "landed": {}}], "landed: is not what", id="landed"),
    ],
)  # fmt: skip
def test_a_history_that_no_worker_wrote_is_refused(
    lines: list[dict[str, object]], said: str, tmp_path: Path
) -> None:
    (tmp_path / "history.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    with pytest.raises(FileError, match=f"history.jsonl: record {len(lines)}: {said}"):
        history_lines(tmp_path)


def test_a_trial_with_a_damaged_history_runs_again_and_that_is_said(run: Path) -> None:
    (run / "trials/0008/attempt-1/history.jsonl").write_bytes(b'{"step": 1, "metrics": {}}\n')
    begin_again(run)
    events = [json.loads(line) for line in (run / EVENTS_FILE).read_text().splitlines()]
    (warned,) = (event["text"] for event in events if event["event"] == "Warned")
    assert warned.startswith("trial 8 runs again, nothing of this attempt is taken: ")
    assert any(
        e["event"] == "TrialBegan" and e["number"] == 8 and e["attempt"] == 2 for e in events
    )


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(run: Path) -> None:
    for name in ("trials/0000/attempt-1/history.jsonl", LOCK_FILE):
        (run / name).unlink()
        os.mkfifo(run / name)
    ending = of_command("show", run, "0", names=[run.name])
    assert "history.jsonl: cannot be read: it is a pipe or a device" in ending.said


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        pytest.param("DELETE FROM trials WHERE number = 3", "trial 3 is missing", id="row"),
        pytest.param("DELETE FROM trials WHERE number > 3", "trials after the first 4 are missing", id="rows"),
        pytest.param("UPDATE trials SET state = 'ODD' WHERE number = 2", "trial 2: its state must be", id="state"),
        pytest.param(
            "UPDATE trial_user_attributes SET value_json = '\"../x\"' WHERE key = 'adapter'",
            "adapter: must be a folder below the run folder, got '../x'", id="outside",
        ),
        pytest.param(
            "UPDATE trial_user_attributes SET value_json = '\"x\"' WHERE key = 'value'",
            "value: must be a number, got 'x'", id="text",
        ),
        pytest.param(
            "UPDATE trial_user_attributes SET value_json = '{\"a.b\": 1}' WHERE key = 'params'",
            "are of different runs, or damaged: trial 0 has a.b, which spec.yaml does not search", id="foreign",
        ),
    ],
)  # fmt: skip
def test_a_damaged_ledger_is_refused_with_the_trial(run: Path, statement: str, said: str) -> None:
    change(run, statement)
    ending = of_command("status", run, names=[run.name])
    assert (ending.verdict, said in ending.said) == ("refused", True), ending.said


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM trial_values",
        "DELETE FROM trial_params",
        "UPDATE trial_params SET param_value = 3.5e-3 WHERE param_name = 'optimizer.learning_rate'",
        "UPDATE trial_user_attributes SET value_json = '3' WHERE key LIKE 'verdict:%'",
        "UPDATE trial_user_attributes SET value_json = '[]' WHERE key LIKE 'guard:%'",
        "UPDATE trials SET state = 'WAITING' WHERE number = 0",
        "DROP TABLE study_directions",
        "DELETE FROM studies",
    ],
)
def test_what_only_a_driver_reads_is_refused_before_it_begins(run: Path, statement: str) -> None:
    change(run, statement)
    ending = of_call(lambda: begin_again(run), names=[run.name])
    assert (ending.verdict, "the ledger cannot be read" in ending.said) == ("refused", True), ending


def test_a_run_that_has_begun_no_trial_is_shown(run: Path) -> None:
    for table in ("trials", "trial_user_attributes", "trial_params"):
        change(run, f"DELETE FROM {table}")
    verbs: list[Callable[[], object]] = [load_run(run).to_dataframe, load_run(run)._repr_html_]
    for verb in verbs:
        verb()
    assert of_command("best", run, "--format", "csv", names=[run.name]).verdict == "accepted"


def change(run: Path, statement: str) -> None:
    with closing(sqlite3.connect(run / LEDGER_FILE)) as database, database:
        database.execute(statement)
