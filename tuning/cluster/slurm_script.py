"""Check a batch script that starts Ray on the nodes of a Slurm job, and a sweep on Ray.

Slurm itself checks a script only when it is submitted, and then only its options. What is looked for here is what
makes a sweep on Slurm safe (a token, a dashboard on loopback), whole (every node and GPU joins) and lasting (a job
that ends at its time limit is queued again and goes on).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from core.errors import ConfigError
from core.text.redaction import secrets_in
from tuning.cluster.problems import (
    LOOPBACK_HOSTS,
    WORKER_PORTS,
    nearest,
    problem,
)
from tuning.cluster.reading import read_script
from tuning.config import ResourcesSpec
from tuning.files import read_yaml

KNOWN_OPTIONS = (
    *("account", "begin", "chdir", "comment", "constraint", "cpus-per-gpu", "cpus-per-task"),
    *("deadline", "dependency", "error", "exclude", "exclusive", "export", "gpus-per-node", "gres"),
    *("hint", "job-name", "licenses", "mail-type", "mail-user", "mem", "mem-per-cpu"),
    *("mem-per-gpu", "nice", "no-requeue", "nodelist", "nodes", "ntasks", "ntasks-per-node"),
    *("open-mode", "output", "partition", "prefer", "priority", "qos", "requeue", "reservation"),
    *("signal", "switches", "time", "time-min", "tmp", "wckey"),
)
"""Long options of ``sbatch`` that fit a job of whole nodes; per-task counts of GPUs would split a node."""

_SHORT = {
    "A": "account",
    "J": "job-name",
    "N": "nodes",
    "o": "output",
    "p": "partition",
    "t": "time",
}
_SHORT |= {"e": "error", "q": "qos", "C": "constraint", "x": "exclude", "w": "nodelist"}

_OPTION = re.compile(r"^#SBATCH\s+(.*?)\s*(?:\s#.*)?$")
_WORD = re.compile(r"^(?:--([\w-]+)|-(\w))(?:[=\s]\s*(\S+))?$")
_ASSIGNED = re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w*)=(.*)$", re.MULTILINE)
_ARITHMETIC = re.compile(r"^\$\(\(\s*(\d+)\s*\+\s*\S+\s*%\s*(\d+)\s*\)\)$")
_FORBIDDEN = ("--head", "--port", "--block", "--node-ip-address")
_SECONDS = 60
"""What a driver needs at least, between the signal and the end of the job, to commit and to leave."""


@dataclass(frozen=True, kw_only=True)
class _Script:
    """A script taken apart.

    Attributes:
        options: Of ``#SBATCH`` lines before the first command: value and line, by long name.
        late: Lines of ``#SBATCH`` after it, which Slurm does not read.
        unread: What stands in an ``#SBATCH`` line and is no option, by line.
        variables: What the script assigns, the last word of each.
        commands: The script without comments and with continued lines joined.
    """

    options: Mapping[str, tuple[str | None, int]]
    late: list[int]
    unread: Mapping[int, str]
    variables: Mapping[str, str]
    commands: str
    launch: str = field(default="")

    def value(self, name: str) -> str | None:
        return self.options[name][0] if name in self.options else None

    def number(self, name: str) -> int | None:
        value = self.value(name)
        return int(value) if value is not None and value.isdigit() else None

    def of_launch(self, option: str) -> str | None:
        """What ``ray symmetric-run`` is given for an option."""
        found = re.search(rf"{option}(?:=|\s+)[\"']?([^\s\"']+)", self.launch)
        return None if found is None else found.group(1)


def script_problems(path: Path) -> list[str]:
    """Every problem of a batch script; empty if there is none.

    Args:
        path: The script; a sweep file that it names by a relative path is looked at, too.
    """
    text, problems = read_script(path)
    if text is None:
        return problems
    if "\r" in text:
        rule = "must have the line ends of Unix, as Slurm refuses others"
        return [problem(path.name, rule, "\\r\\n", "convert it: sed -i 's/\\r$//'")]
    script = _taken_apart(text)
    return [
        *_first_line_problems(text),
        *_option_problems(script),
        *_size_problems(script),
        *_again_problems(script),
        *_launch_problems(script),
        *_port_problems(script),
        *_token_problems(script),
        *_sweep_problems(script),
        *_rank_problems(script, path.parent),
        *_secret_problems(text),
    ]


def _taken_apart(text: str) -> _Script:
    options: dict[str, tuple[str | None, int]] = {}
    late, unread, begun = [], {}, False
    for number, line in enumerate(text.splitlines(), start=1):
        found = _OPTION.match(line)
        if found is None:
            begun = begun or bool(line.strip() and not line.startswith("#"))
            continue
        if begun:
            late.append(number)
            continue
        word = _WORD.match(found.group(1))
        if word is None:
            unread[number] = found.group(1)
            continue
        name = word.group(1) or _SHORT.get(word.group(2), word.group(2))
        options[name] = (word.group(3), number)
    commands = "\n".join(
        line for line in text.replace("\\\n", " ").splitlines() if not line.lstrip().startswith("#")
    )
    launched = re.search(r"^.*\bray\s+symmetric-run\b.*$", commands, re.MULTILINE)
    return _Script(
        options=options,
        late=late,
        unread=unread,
        variables={name: _bare(value) for name, value in _ASSIGNED.findall(commands)},
        commands=commands,
        launch="" if launched is None else launched.group(0),
    )


def _bare(value: str) -> str:
    """A value without its comment and quotes."""
    return re.sub(r"\s+#.*$", "", value).strip().strip("\"'")


def _first_line_problems(text: str) -> Iterator[str]:
    first = text.splitlines()[0] if text.strip() else ""
    if not first.startswith("#!") or "bash" not in first:
        yield problem("line 1", "must name the shell", first or None, "write #!/bin/bash")


def _option_problems(script: _Script) -> Iterator[str]:
    for line in script.late:
        rule = "#SBATCH must stand before the first command, as Slurm reads none after it"
        yield problem(f"line {line}", rule, "it later", "move it up")
    for line, found in script.unread.items():
        yield problem(f"line {line}", "must be one option of sbatch", found, "write --name=value")
    for name, (value, line) in script.options.items():
        if name not in KNOWN_OPTIONS:
            todo = nearest(name, list(KNOWN_OPTIONS))
            yield problem(f"line {line}", "must be an option for whole nodes", f"--{name}", todo)
        elif name in ("nodes", "gpus-per-node", "ntasks-per-node") and value is not None:
            count = value.rpartition(":")[2] if name == "gpus-per-node" else value
            if not count.isdigit() or int(count) < 1:
                yield problem(f"--{name}", "must be a whole number from 1 on", value, "give one")
    if script.value("time") is None:
        rule = "must be given, so that the signal before its end is sent"
        yield problem("--time", rule, None, "write #SBATCH --time=24:00:00")


def _size_problems(script: _Script) -> Iterator[str]:
    """Whole nodes, one Ray on each, with all its GPUs."""
    if "nodes" not in script.options:
        yield problem("--nodes", "must be given", None, "write #SBATCH --nodes=4")
    if script.value("ntasks-per-node") != "1":
        rule = "one task must start Ray on each node"
        given = script.value("ntasks-per-node")
        yield problem("--ntasks-per-node", rule, given, "write #SBATCH --ntasks-per-node=1")
    if "exclusive" not in script.options:
        rule = "must be given: Ray takes the whole node, and ends every Ray of yours there"
        yield problem("--exclusive", rule, None, "write #SBATCH --exclusive")
    if not script.launch:
        return
    nodes, least = script.value("nodes"), script.of_launch("--min-nodes")
    if least not in (nodes, "$SLURM_JOB_NUM_NODES", "${SLURM_JOB_NUM_NODES}", "$SLURM_NNODES"):
        rule = "must be the number of nodes, so that the sweep begins with all"
        yield problem("--min-nodes", rule, least, 'write --min-nodes "$SLURM_JOB_NUM_NODES"')
    gpus = (script.value("gpus-per-node") or "").rpartition(":")[2] or None
    shown = script.of_launch("--num-gpus")
    if gpus is not None and shown not in (gpus, "$SLURM_GPUS_ON_NODE", "${SLURM_GPUS_ON_NODE}"):
        rule = "Ray must be told of the GPUs that --gpus-per-node asks for"
        yield problem("--num-gpus", rule, shown, f"write --num-gpus={gpus}")


def _again_problems(script: _Script) -> Iterator[str]:
    """A job that ends at its time limit, or with a node, is queued again and goes on."""
    if "requeue" not in script.options:
        rule = "a job whose node fails must be queued again"
        given = "--no-requeue" if "no-requeue" in script.options else None
        yield problem("--requeue", rule, given, "write #SBATCH --requeue")
    if script.value("open-mode") != "append":
        rule = "the log of the attempt before must stay"
        given = script.value("open-mode")
        yield problem("--open-mode", rule, given, "write #SBATCH --open-mode=append")
    signal = script.value("signal")
    found = re.fullmatch(r"B:(?:SIG)?(\w+)@(\d+)", signal or "")
    if found is None:
        rule = "the script itself must hear of the end, as B:NAME@SECONDS"
        yield problem("--signal", rule, signal, "write #SBATCH --signal=B:USR1@300")
    elif int(found.group(2)) < _SECONDS:
        rule = f"must come at least {_SECONDS} s before the end, for drivers that commit"
        yield problem("--signal", rule, signal, f"write B:{found.group(1)}@300")
    elif not re.search(rf"\btrap\b.*\b(?:SIG)?{found.group(1)}\b", script.commands):
        rule = f"{found.group(1)} must have a handler, or it ends the script"
        yield problem("trap", rule, None, f"write trap 'again' {found.group(1)}")
    if not re.search(r"\bscontrol\s+requeue\b", script.commands):
        rule = "a job that its time limit ends must queue itself again"
        yield problem("scontrol requeue", rule, None, 'write scontrol requeue "$SLURM_JOB_ID"')


def _launch_problems(script: _Script) -> Iterator[str]:
    if not script.launch:
        rule = "must start Ray on all nodes"
        todo = "write srun ray symmetric-run --address ... -- COMMAND"
        yield problem("ray symmetric-run", rule, None, todo)
        return
    if not re.search(r"\bsrun\b", script.launch):
        yield problem("srun", "must run it on every node", None, "write srun ray symmetric-run")
    if " -- " not in script.launch:
        rule = "` -- ` must stand before the command of the head"
        yield problem("ray symmetric-run", rule, None, "write -- bash -c ...")
    before = script.launch.partition(" -- ")[0].partition("symmetric-run")[2]
    for option in _FORBIDDEN:
        if re.search(rf"{option}(?:[=\s]|$)", before):
            rule = "may not be given to ray symmetric-run, which gives it itself"
            yield problem(option, rule, option, "remove it")
    if script.of_launch("--address") is None:
        rule = "must be the address of the first node"
        yield problem("--address", rule, None, 'write --address "$HEAD:$PORT"')
    host = script.of_launch("--dashboard-host")
    if host is None or host not in LOOPBACK_HOSTS:
        rule = "the dashboard runs any code it is sent and must listen on loopback only"
        yield problem("--dashboard-host", rule, host, "write --dashboard-host=127.0.0.1")


def _port_problems(script: _Script) -> Iterator[str]:
    """The head's port lies where no worker of Ray may have taken it."""
    address = script.of_launch("--address")
    if address is None:
        return
    port = address.rpartition(":")[2]
    name = re.fullmatch(r"\$\{?(\w+)\}?", port)
    value = port if name is None else script.variables.get(name.group(1), "")
    computed = _ARITHMETIC.match(value)
    if computed is not None:
        first, n = (int(part) for part in computed.groups())
        ports = range(first, first + n)
    elif value.isdigit():
        ports = range(int(value), int(value) + 1)
    else:
        rule = "must be a number, or $((NUMBER + X % NUMBER))"
        yield problem("port of --address", rule, value or None, "write PORT=6379")
        return
    if ports.start < 1024 or ports.stop > 65536:
        yield problem("port of --address", "must lie in 1024 to 65535", value, "write PORT=6379")
    elif ports.start < WORKER_PORTS.stop and WORKER_PORTS.start < ports.stop:
        rule = f"must lie outside {WORKER_PORTS.start} to {WORKER_PORTS.stop - 1}, Ray's workers'"
        yield problem("port of --address", rule, value, "write PORT=6379")


def _token_problems(script: _Script) -> Iterator[str]:
    mode = script.variables.get("RAY_AUTH_MODE")
    if mode != "token":
        rule = "Ray must run with token authentication, as whoever reaches its ports runs code"
        yield problem("RAY_AUTH_MODE", rule, mode, "write export RAY_AUTH_MODE=token")
    if "RAY_AUTH_TOKEN_PATH" not in script.variables:
        rule = "must name the file with the token, on storage that all nodes mount"
        todo = 'write export RAY_AUTH_TOKEN_PATH="$WORK/.ray-token"'
        yield problem("RAY_AUTH_TOKEN_PATH", rule, None, todo)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        is_set = name in script.variables
        if is_set and not re.search(rf"\bexport\b[^\n]*\b{name}\b", script.commands):
            yield problem(name, "must be exported", "a variable of the script", f"export {name}")


def _sweep_problems(script: _Script) -> Iterator[str]:
    for verb in ("sweep", "resume"):
        called = re.search(rf"\bunlearn-tune\"?\s+{verb}\b.*", script.commands)
        if called is None:
            rule = "the first attempt must begin the sweep, and every later one go on with it"
            yield problem(f"unlearn-tune {verb}", rule, None, f"call unlearn-tune {verb}")
        elif "--address" not in called.group(0):
            rule = "must run on the job's Ray, or it starts one of its own on one node"
            yield problem(f"unlearn-tune {verb}", rule, None, 'write --address "$HEAD:$PORT"')


def _rank_problems(script: _Script, folder: Path) -> Iterator[str]:
    """A trial of the sweep file beside the script must fit on the job's GPUs; what is wrong in it is for itself."""
    spec = folder / script.variables.get("SPEC", "")
    nodes, gpus = script.number("nodes"), script.number("gpus-per-node")
    if not spec.is_file() or nodes is None or gpus is None:
        return
    try:
        resources = ResourcesSpec.model_validate(read_yaml(spec).get("resources", {}))
    except (ConfigError, ValidationError):
        return
    asked, there = resources.ranks_per_trial * resources.n_gpus, nodes * gpus
    if asked > there:
        rule = f"a trial must fit on the {there} GPUs of the job"
        given = f"{resources.ranks_per_trial} ranks with {resources.n_gpus:g} GPUs each"
        yield problem(f"{spec.name}: resources", rule, given, "ask for more nodes, or fewer ranks")
    elif resources.placement == "strict_pack" and asked > gpus:
        rule = f"a trial on one node must fit on its {gpus} GPUs"
        given = f"{resources.ranks_per_trial} ranks with placement strict_pack"
        yield problem(f"{spec.name}: resources", rule, given, "write placement: pack")


def _secret_problems(text: str) -> Iterator[str]:
    rule, todo = "must hold no secret", "read it from a file that only you can read"
    for number, line in enumerate(text.splitlines(), start=1):
        for found in secrets_in(line):
            yield problem(f"line {number}", rule, found, todo)
