"""Start a cluster, run sweeps on it as jobs, look at it and end it, through Ray's own command line."""

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from core.errors import UserError
from tuning.cluster.commands import (
    ASKING,
    BEGIN,
    Asked,
    Command,
    Site,
    asking,
    asking_script,
    job_id,
    jobs_command,
    nodes_command,
    stop_command,
    submit_command,
    sweep_script,
    tunnel_command,
)
from tuning.cluster.prices import Machine
from tuning.cluster.shipping import stage
from tuning.cluster.there import read_states

_TUNNEL_TIMEOUT_S = 90.0
_AGENT_TIMEOUT_S = 90.0
_TURN_S = 1.0
_GIVEN_UP_S = 3600.0
_NO_AGENT = "No available agent"
"""What Ray says of a head that has just started."""
_LAST_LINES = 3
ENDED_ITSELF = (0, 2, 3, 4)
"""Exit statuses of a sweep that another attempt would not change; see ``unlearn-tune --help``."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job of a cluster.

    Attributes:
        name: Its id.
        status: Ray's word: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        exit_code: Of its command; ``None`` while it runs, and of one that was killed with its head.
        began: When, in seconds since 1970.
    """

    name: str
    status: str
    exit_code: int | None
    began: float

    @property
    def goes_on(self) -> bool:
        """Whether it has not ended."""
        return self.status in ("PENDING", "RUNNING")

    @property
    def died(self) -> bool:
        """Whether it ended without having come to an end of its own."""
        return self.status == "FAILED" and self.exit_code not in ENDED_ITSELF


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What a cluster is found to be.

    Attributes:
        nodes: Ray's records of them, those that are gone included.
        jobs: The latest last.
        runs: How they stand, as ``status --json`` has it; ``None`` if the head did not say.
    """

    nodes: list[dict[str, Any]]
    jobs: list[Job]
    runs: list[dict[str, Any]] | None

    @property
    def machines(self) -> list[Machine]:
        """The nodes, as they are paid for."""
        return [machine_of(node, now=datetime.now()) for node in self.nodes]

    @property
    def seconds_left(self) -> float | None:
        """Until the last run has ended; ``None`` if that is not known."""
        going_on = [run for run in self.runs or [] if run["state"] == "running"]
        known = [run["eta_s"] for run in going_on if run.get("eta_s") is not None]
        return max(known) if known and len(known) == len(going_on) else None


def machine_of(node: Mapping[str, Any], *, now: datetime) -> Machine:
    """A node of ``ray list nodes --detail`` as it is paid for. Ray gives times of this machine's zone."""
    began = datetime.fromisoformat(node["start_time_ms"])
    is_alive = node["state"] == "ALIVE"
    ended = now if is_alive else datetime.fromisoformat(node["end_time_ms"])
    total = node["resources_total"]
    return Machine(
        resources={kind: float(total.get(kind, 0.0)) for kind in ("CPU", "GPU")},
        is_head=bool(node["is_head_node"]),
        is_alive=is_alive,
        seconds=max(0.0, (ended - began).total_seconds()),
        node_type=str(node.get("labels", {}).get("ray.io/node-group", "")),
    )


@contextmanager
def reached(site: Site) -> Iterator[None]:
    """Within the context the dashboard answers at the site's address.

    Raises:
        UserError: If the tunnel to it does not open.
    """
    if site.file is None:
        yield
        return
    command = tunnel_command(site)
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command.words,
            env=os.environ | dict(command.environment),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # with the ssh that it starts
        )
        try:
            if not _answers(site, process):
                said.seek(0)
                words = _last(said.read().decode(errors="replace"))
                raise UserError(
                    f"{site.file}: the head cannot be reached: {words}; is the cluster up, and does `ray attach "
                    f"{site.file}` work?"
                )
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _answers(site: Site, process: "subprocess.Popen[bytes]") -> bool:
    until = time.monotonic() + _TUNNEL_TIMEOUT_S
    while process.poll() is None and time.monotonic() < until:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", int(site.port)), timeout=_TURN_S).close()
            return True
        time.sleep(_TURN_S)
    return False


def ran(command: Command) -> str:
    """Run a command of Ray's; what it wrote.

    Raises:
        UserError: If it failed, with the end of what it said.
    """
    done = subprocess.run(
        command.words,
        env=os.environ | dict(command.environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UserError(f"{command.shown}: {_last(done.stderr + done.stdout)}")
    return done.stdout


def passed_on(command: Command) -> int:
    """Run a command of Ray's on this terminal; its exit status."""
    return subprocess.run(
        command.words, env=os.environ | dict(command.environment), check=False
    ).returncode


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[-_LAST_LINES:]) or "it says nothing"


def _listed(command: Command) -> list[dict[str, Any]]:
    text = ran(command)
    begin = text.find("[")
    if begin < 0:  # Ray's words for none
        return []
    found: list[dict[str, Any]] = json.JSONDecoder().raw_decode(text[begin:])[0]
    return found


def jobs_of(site: Site) -> list[Job]:
    """Jobs that were submitted to a cluster that is reached, the latest last; not those that only ask."""
    found = [
        Job(
            name=job["submission_id"],
            status=job["status"],
            exit_code=job.get("driver_exit_code"),
            began=(job.get("start_time") or 0) / 1000,
        )
        for job in _listed(jobs_command(site))
        if job.get("submission_id") and not job["submission_id"].startswith(ASKING)
    ]
    return sorted(found, key=lambda job: job.began)


def look(site: Site) -> Looked:
    """What a cluster that is reached is found to be."""
    nodes, jobs = _listed(nodes_command(site)), jobs_of(site)
    return Looked(nodes=nodes, jobs=jobs, runs=runs_of(site))


def runs_of(site: Site) -> list[dict[str, Any]] | None:
    """How the runs of a cluster that is reached stand."""
    with tempfile.TemporaryDirectory(prefix="unlearn-tune-") as folder:
        (Path(folder) / BEGIN).write_text(asking_script(site), encoding="utf-8")
        name = f"{ASKING}-{time.time_ns()}"
        submit, logs, delete = asking(site, Asked(verb="status", job=name, folder=folder))
        try:
            _submitted(submit)
            return read_states(ran(logs))
        except UserError:
            return None
        finally:
            with suppress(UserError):
                ran(delete)


def begin(
    site: Site, spec: Path, *, name: str, options: Sequence[str], goes_on: bool = False
) -> str:
    """Ship a sweep file to a cluster that is reached, and have a job run it; the job's id.

    Args:
        site: The cluster.
        spec: The sweep file.
        name: Of the run.
        options: Of the verb ``sweep``, as words.
        goes_on: An earlier job may have begun the run.

    Raises:
        UserError: If a job that runs it goes on, or it cannot be shipped.
    """
    before = [job for job in jobs_of(site) if _is_of(job, name)]
    for other in before:
        if other.goes_on:
            raise UserError(
                f"--name: job {other.name} runs {name} already; wait for it, or end it: "
                f"{stop_command(site, other.name).shown}"
            )
    job = job_id(name, len(before) + 1)
    with tempfile.TemporaryDirectory(prefix="unlearn-tune-") as folder:
        below = stage(spec, Path(folder))
        script = sweep_script(site, spec=below, name=name, options=options, goes_on=goes_on)
        (Path(folder) / BEGIN).write_text(script, encoding="utf-8")
        _submitted(submit_command(site, job, folder))
    return job


def _submitted(command: Command) -> None:
    """Submit a job; a head that has just started is given time."""
    until = time.monotonic() + _AGENT_TIMEOUT_S
    while True:
        try:
            ran(command)
        except UserError as err:
            if _NO_AGENT not in str(err) or time.monotonic() > until:
                raise
            time.sleep(_TURN_S)
        else:
            return


def supervise(
    site: Site,
    spec: Path,
    *,
    name: str,
    options: Sequence[str],
    most: int,
    every_s: float,
    say: Callable[[str], None],
) -> Job:
    """Wait until a run's job has ended; have another job go on with it each time that one dies.

    Args:
        site: The cluster.
        spec: The sweep file.
        name: Of the run.
        options: Of the verb ``sweep``.
        most: Jobs of the run, at most.
        every_s: How often to look.
        say: Takes what happens, in words.

    Returns:
        The last job, which has ended.

    Raises:
        UserError: If the cluster has not answered for an hour.
    """
    answered = time.monotonic()
    while True:
        time.sleep(every_s)
        try:
            with reached(site):
                job = [job for job in jobs_of(site) if _is_of(job, name)][-1]
                answered = time.monotonic()
                if job.goes_on:
                    continue
                n_jobs = int(job.name.rpartition("-")[2])
                if not job.died or n_jobs >= most:
                    return job
                again = begin(site, spec, name=name, options=options, goes_on=True)
                say(f"job {job.name} died (exit status {job.exit_code}); {again} goes on")
        except (UserError, IndexError) as err:
            if time.monotonic() - answered > _GIVEN_UP_S:
                raise UserError(
                    f"{name}: the cluster has not answered for an hour: {err}; start it again, then go on with "
                    "`unlearn-tune cluster submit SPEC --resume --supervise`"
                ) from err
            say(f"the cluster does not answer, looking again in {every_s:g} s: {err}")


def _is_of(job: Job, name: str) -> bool:
    return job.name.rpartition("-attempt-")[0] == name


def latest(jobs: Sequence[Job], name: str | None) -> Job:
    """The latest job, of a run if one is named.

    Raises:
        UserError: If there is none.
    """
    found = [job for job in jobs if name is None or name == job.name or _is_of(job, name)]
    if not found:
        known = ", ".join(job.name for job in jobs) or "none"
        raise UserError(f"NAME: no job of {name or 'any run'} is there; jobs: {known}")
    return found[-1]


def only_there(runs: Sequence[Mapping[str, Any]], *, site: Site, here: Path) -> list[str]:
    """Names of runs whose results lie on the head alone: on no storage, and not copied here since."""
    if site.storage is not None:
        return []
    found = []
    for run in runs:
        copied = _counts_here(here / str(run["run"]))
        if copied is None or copied != run.get("counts"):
            found.append(str(run["run"]))
    return found


def _counts_here(run: Path) -> dict[str, int] | None:
    from tuning.results import counts
    from tuning.run import load_run

    try:
        return counts(load_run(run))
    except (UserError, OSError):
        return None
