"""The commands of the cluster's verbs, word by word, and what is shipped with a sweep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from command_line import Command, is_refused

from core.errors import UserError
from tuning.cluster import shipping
from tuning.cluster.commands import Asked, Site, composed, fetch_command, sweep_script
from tuning.cluster.control import Job, latest
from tuning.cluster.shipping import stage
from tuning.cluster.sites import local_token, make_token, site_of
from tuning.cluster.there import MARK, read_states

ROOT = Path(__file__).resolve().parents[2]
AT = "--address http://127.0.0.1:8265"
LISTED = f"{AT} --detail --format json --limit 1000"
FAR = Site(
    file=Path("my cluster.yaml"),
    address="http://127.0.0.1:8265",
    work_folder="/home/me/work",
    program="/venv/bin/unlearn-tune",
    token_file=Path("/keys/token"),
)
NEAR = replace(FAR, file=None, token_file=None)
ASK = [
    f"ray job submit {AT} --submission-id ask --working-dir /tmp/x -- bash begin.sh",
    f"ray job logs {AT} ask",
    f"ray job delete {AT} ask",
]
TUNNEL = "ray dashboard 'my cluster.yaml' --port 8265"


@pytest.mark.parametrize(
    ("asked", "commands"),
    [
        pytest.param(Asked(verb="up"), ["ray up --yes 'my cluster.yaml'"], id="up"),
        pytest.param(
            Asked(verb="submit", job="a-attempt-1", folder="/tmp/x"),
            [
                TUNNEL,
                f"ray list jobs {LISTED}",
                f"ray job submit {AT} --submission-id a-attempt-1 --no-wait --working-dir /tmp/x -- bash begin.sh",
            ],
            id="submit",
        ),
        pytest.param(
            Asked(verb="status", job="ask", folder="/tmp/x"),
            [TUNNEL, f"ray list nodes {LISTED}", f"ray list jobs {LISTED}", *ASK],
            id="status",
        ),
        pytest.param(
            Asked(verb="logs", job="a-attempt-1", follows=True),
            [TUNNEL, f"ray list jobs {LISTED}", f"ray job logs {AT} --follow a-attempt-1"],
            id="logs",
        ),
        pytest.param(
            Asked(verb="down", job="ask", folder="/tmp/x", running=["a-attempt-1"]),
            [
                *(TUNNEL, f"ray list jobs {LISTED}", *ASK),
                *(f"ray job stop {AT} a-attempt-1", "ray down --yes 'my cluster.yaml'"),
            ],
            id="down",
        ),
    ],
)
def test_a_verb_runs_these_commands_with_the_token(asked: Asked, commands: list[str]) -> None:
    before = "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/keys/token "
    assert [command.shown for command in composed(asked, FAR)] == [before + c for c in commands]


def test_a_dashboard_that_is_reached_needs_no_tunnel() -> None:
    first, _ = composed(Asked(verb="submit", job="a", folder="x"), NEAR)[:2]
    assert first.words[:3] == ("ray", "list", "jobs")
    assert first.environment == {"RAY_AUTH_MODE": "token"}


def test_results_are_copied_by_the_launcher() -> None:
    assert fetch_command(FAR, "demo").words == (
        *("ray", "rsync-down", "my cluster.yaml"),
        *("/home/me/work/runs/demo/", "runs/demo/"),
    )


@pytest.mark.parametrize(
    ("site", "goes_on", "lines"),
    [
        pytest.param(
            FAR,
            False,
            ["exec /venv/bin/unlearn-tune sweep submitted/n/s.yaml --name n --address auto --set 'a=b c'"],
            id="begins",
        ),
        pytest.param(
            FAR,
            True,
            [
                "if [ -f runs/n/ledger.db ]; then exec /venv/bin/unlearn-tune resume runs/n --address auto; fi",
                "exec /venv/bin/unlearn-tune sweep submitted/n/s.yaml --name n --address auto --set 'a=b c'",
            ],
            id="goes-on-if-it-was-begun",
        ),
        pytest.param(
            replace(FAR, storage="s3://b/f"),
            True,
            [
                "exec /venv/bin/unlearn-tune resume runs/n --address auto --storage s3://b/f",
                "exec /venv/bin/unlearn-tune sweep submitted/n/s.yaml --name n --address auto "
                "--storage s3://b/f --set 'a=b c'",
            ],
            id="goes-on-from-storage",
        ),
    ],
)  # fmt: skip
def test_a_job_begins_a_sweep_or_goes_on(site: Site, goes_on: bool, lines: list[str]) -> None:
    script = sweep_script(
        site, spec="s.yaml", name="n", options=["--set", "a=b c"], goes_on=goes_on
    )
    assert script.splitlines()[:4] == [
        "set -eu",
        "mkdir -p /home/me/work",
        '/venv/bin/python -m tuning.cluster.spreading "$PWD" /home/me/work/submitted/n',
        "cd /home/me/work",
    ]
    assert script.splitlines()[4:] == lines


def write_sweep(folder: Path, source: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "s.yaml"
    data = {"forget": {"source": source}, "retain": {"source": "embedded:retain"}}
    path.write_text(yaml.safe_dump({"data": data}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("source", "shipped", "spec"),
    [
        pytest.param("d/rows.jsonl", ["d/rows.jsonl", "s.yaml"], "s.yaml", id="below"),
        pytest.param("../rows.jsonl", ["rows.jsonl", "x/s.yaml"], "x/s.yaml", id="above"),
        pytest.param("absent.jsonl", ["s.yaml"], "s.yaml", id="not-here"),
    ],
)
def test_relative_data_is_shipped_as_it_lies(
    tmp_path: Path, source: str, shipped: list[str], spec: str
) -> None:
    sweep = write_sweep(tmp_path / "here" / "x", source)
    for rows in (tmp_path / "here" / "rows.jsonl", sweep.parent / "d" / "rows.jsonl"):
        rows.parent.mkdir(exist_ok=True)
        rows.write_text("{}\n", encoding="utf-8")
    there = tmp_path / "there"
    there.mkdir()
    assert stage(sweep, there) == spec
    found = sorted(p.relative_to(there).as_posix() for p in there.rglob("*") if p.is_file())
    assert found == shipped


def test_more_than_ray_ships_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "MOST_BYTES", 10)
    with pytest.raises(UserError, match="put them on storage that all nodes mount"):
        stage(write_sweep(tmp_path, "absent"), tmp_path)


def test_the_shipped_file_says_where_the_token_is() -> None:
    site, config = site_of(ROOT / "cluster.yaml", address=None)
    assert site.token_file == Path.home() / ".ray" / "cluster-token" / "auth_token"
    assert local_token(config) == site.token_file
    assert (site.work_folder, site.storage) == (
        "/home/ubuntu/unlearn-tune",
        "s3://choose-a-bucket/unlearn-tune",
    )


def test_a_token_is_made_once_and_for_this_user_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys" / "token"
    assert make_token(file)
    made = file.read_text(encoding="utf-8")
    assert (len(made), file.stat().st_mode & 0o777) == (64, 0o600)
    file.chmod(0o644)
    assert not make_token(file)
    assert (file.read_text(encoding="utf-8"), file.stat().st_mode & 0o777) == (made, 0o600)


def test_the_states_of_runs_are_found_among_other_lines() -> None:
    assert read_states(f'2026 INFO starting\n{MARK}[{{"run": "a"}}]\nbye\n') == [{"run": "a"}]
    assert read_states("nothing\n") is None


def test_the_latest_job_of_a_run_is_found() -> None:
    jobs = [
        Job(name=n, status="FAILED", exit_code=1, began=0.0)
        for n in ("a-attempt-1", "b-attempt-1", "a-attempt-2")
    ]
    assert latest(jobs, "a").name == "a-attempt-2"
    assert latest(jobs, None).name == "a-attempt-2"
    assert latest(jobs, "b-attempt-1").name == "b-attempt-1"
    with pytest.raises(UserError, match="no job of c is there; jobs: a-attempt-1"):
        latest(jobs, "c")


@pytest.mark.parametrize(
    ("status", "exit_code", "died"),
    [
        ("FAILED", -9, True),
        ("FAILED", None, True),
        ("FAILED", 1, True),
        ("FAILED", 2, False),
        ("FAILED", 3, False),
        ("STOPPED", None, False),
        ("SUCCEEDED", 0, False),
    ],
)
def test_only_a_job_that_came_to_no_end_of_its_own_died(
    status: str, exit_code: int | None, died: bool
) -> None:
    assert Job(name="a", status=status, exit_code=exit_code, began=0.0).died == died


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["status"], "no cluster.yaml is here", id="no-file"),
        pytest.param(["status", "--address", "auto"], "http://127.0.0.1:8265, got 'auto'", id="address"),
        pytest.param(
            ["status", "--address", "http://127.0.0.1:1", "--work-folder", "w"],
            "--work-folder: must be an absolute path on the head, got w",
            id="relative-folder",
        ),
        pytest.param(["down", ROOT / "clusters" / "rayjob.yaml"], "reached with --address", id="kind"),
        pytest.param(["up", ROOT / "clusters" / "slurm.sbatch", "--dry-run"], "slurm.sbatch", id="script"),
        pytest.param(["logs", "--follow", "--json", "--address", "http://a:1"], "--json: a log", id="both"),
    ],
)  # fmt: skip
def test_what_no_cluster_can_be_reached_by_is_refused(
    tune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[object], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    is_refused(tune("cluster", *words), said)


def test_a_file_with_problems_starts_no_machine(tune: Command, tmp_path: Path) -> None:
    text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    path = tmp_path / "cluster.yaml"
    path.write_text(text.replace("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"), "utf-8")
    is_refused(tune("cluster", "up", path), "--dashboard-host=0.0.0.0")


def test_a_dry_run_prints_the_commands_and_what_is_shipped(tune: Command) -> None:
    spec = ROOT / "search_spaces" / "demo.yaml"
    words = ("cluster", "submit", spec, "--cluster", ROOT / "cluster.yaml", "--name", "mine")
    found = tune(*words, "--dry-run", "--json").json
    assert found["shipped"] == [str(spec)]
    assert " job submit " in found["commands"][-1]
    assert "--submission-id mine-attempt-1" in found["commands"][-1]
    assert "sweep submitted/mine/demo.yaml --name mine" in found["script"]
