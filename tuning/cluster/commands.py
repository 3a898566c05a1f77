"""The commands that the verbs of a cluster run: those of Ray's launcher and of its jobs, composed and nothing else.

Ray's command line speaks with the cluster through its dashboard, which listens on loopback there; where a file says
which cluster, ``ray dashboard`` forwards a port of this machine to it through SSH.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

BEGIN = "begin.sh"
"""Name of the script that a job runs, in the folder that is shipped with it."""
ASKING = "ask-runs"
"""Beginning of the ids of jobs that only ask how runs stand."""
SUBMITTED = "submitted"
"""Folder of the work folder that shipped sweep files lie in."""
_MOST = "1000"
"""Jobs and nodes that Ray lists."""

Verb = Literal["up", "submit", "status", "logs", "down"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """A cluster, as its commands name it.

    Attributes:
        file: Its file for Ray's launcher; ``None`` where the dashboard can be reached already.
        address: Of its dashboard, on this machine.
        work_folder: Where runs lie on the head.
        program: The command line there.
        storage: Where trials are committed, by URL; ``None`` for the work folder.
        token_file: The token, on this machine; ``None`` to leave it to Ray.
        ray: Ray's command line on this machine.
    """

    file: Path | None
    address: str
    work_folder: str
    program: str
    storage: str | None = None
    token_file: Path | None = None
    ray: str = "ray"

    @property
    def port(self) -> str:
        """Port of this machine at which the dashboard is reached."""
        return self.address.rpartition(":")[2]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of this machine.

    Attributes:
        words: As the system takes them.
        environment: What is set for it.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """As a shell takes it."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.words)])


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a cluster.

    Attributes:
        verb: The verb.
        job: Id of the job that it is about.
        folder: What is shipped with a job.
        follows: Whether a log is followed to its end.
        running: Ids of jobs that are to be ended first.
    """

    verb: Verb
    job: str = ""
    folder: str = ""
    follows: bool = False
    running: Sequence[str] = ()


def composed(asked: Asked, site: Site) -> list[Command]:
    """All commands of a verb, in the order in which they run.

    A tunnel stays open until the last command after it has ended.
    """
    tunnel = [] if site.file is None else [tunnel_command(site)]
    file = str(site.file)
    match asked.verb:
        case "up":
            return [_command(site, "up", "--yes", file)]
        case "submit":
            return [*tunnel, jobs_command(site), submit_command(site, asked.job, asked.folder)]
        case "logs":
            return [*tunnel, jobs_command(site), logs_command(site, asked.job, asked.follows)]
        case "status":
            return [*tunnel, nodes_command(site), jobs_command(site), *asking(site, asked)]
        case "down":
            stops = [stop_command(site, job) for job in asked.running]
            ending = _command(site, "down", "--yes", file)
            return [*tunnel, jobs_command(site), *asking(site, asked), *stops, ending]


def asking(site: Site, asked: Asked) -> list[Command]:
    """How runs stand is asked by a job that ends at once, whose log is read."""
    return [
        submit_command(site, asked.job, asked.folder, waits=True),
        logs_command(site, asked.job, follows=False),
        _of_jobs(site, "delete", asked.job),
    ]


def tunnel_command(site: Site) -> Command:
    """Forward a port of this machine to the dashboard; runs until it is ended."""
    return _command(site, "dashboard", str(site.file), "--port", site.port)


def nodes_command(site: Site) -> Command:
    """List nodes, those that are gone included, as JSON."""
    return _listed(site, "nodes")


def jobs_command(site: Site) -> Command:
    """List jobs as JSON."""
    return _listed(site, "jobs")


def submit_command(site: Site, job: str, folder: str, *, waits: bool = False) -> Command:
    """Ship a folder, and run its script on the head."""
    wait = [] if waits else ["--no-wait"]
    given = ("--submission-id", job, *wait, "--working-dir", folder, "--", "bash", BEGIN)
    return _of_jobs(site, "submit", *given)


def logs_command(site: Site, job: str, follows: bool) -> Command:
    """Print what a job has written."""
    return _of_jobs(site, "logs", *(["--follow"] if follows else []), job)


def stop_command(site: Site, job: str) -> Command:
    """End a job: its driver commits what it has and leaves."""
    return _of_jobs(site, "stop", job)


def fetch_command(site: Site, run: str) -> Command:
    """Copy a run folder from the head."""
    there = f"{site.work_folder}/runs/{run}/"
    return _command(site, "rsync-down", str(site.file), there, f"runs/{run}/")


def sweep_script(
    site: Site, *, spec: str, name: str, options: Sequence[str] = (), goes_on: bool
) -> str:
    """The script of a job that begins a sweep, or goes on with it.

    Args:
        site: The cluster.
        spec: The sweep file, below what is shipped.
        name: Of the run.
        options: Of the verb ``sweep``, as words.
        goes_on: An earlier job may have begun the run; else a run of this name is refused.
    """
    work, folder = shlex.quote(site.work_folder), f"{SUBMITTED}/{name}"
    on = ["--address", "auto", *(["--storage", site.storage] if site.storage else [])]
    begins = [site.program, "sweep", f"{folder}/{spec}", "--name", name, *on, *options]
    resumes = [site.program, "resume", f"runs/{name}", *on]
    goes = f"exec {shlex.join(resumes)}"
    if site.storage is None:  # a head that was lost left nothing here, but on storage
        goes = f"if [ -f runs/{name}/ledger.db ]; then {goes}; fi"
    python = shlex.quote(str(Path(site.program).parent / "python"))
    return "\n".join(
        [
            "set -eu",
            f"mkdir -p {work}",
            f'{python} -m tuning.cluster.spreading "$PWD" {work}/{folder}',
            f"cd {work}",
            *([goes] if goes_on else []),
            f"exec {shlex.join(begins)}",
            "",
        ]
    )


def asking_script(site: Site) -> str:
    """The script of a job that says how the runs of the work folder stand."""
    work, python = shlex.quote(site.work_folder), Path(site.program).parent / "python"
    return f"set -eu\nmkdir -p {work}\ncd {work}\nexec {shlex.quote(str(python))} -m tuning.cluster.there runs\n"


def job_id(name: str, attempt: int) -> str:
    """Id of the job that is a run's attempt."""
    return f"{name}-attempt-{attempt}"


def _listed(site: Site, what: str) -> Command:
    given = ("--address", site.address, "--detail", "--format", "json", "--limit", _MOST)
    return _command(site, "list", what, *given)


def _of_jobs(site: Site, verb: str, *words: str) -> Command:
    return _command(site, "job", verb, "--address", site.address, *words)


def _command(site: Site, *words: str) -> Command:
    token = {} if site.token_file is None else {"RAY_AUTH_TOKEN_PATH": str(site.token_file)}
    return Command(words=(site.ray, *words), environment={"RAY_AUTH_MODE": "token"} | token)
