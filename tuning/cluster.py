"""Check a Ray cluster file on the laptop, before any machine is started.

Ray validates the shape of the file; this module adds what Ray lets through although it opens the
cluster to strangers or wastes money. Nothing here touches the network, and Ray is imported only
when a file is checked.
"""

from __future__ import annotations

import contextlib
import copy
import io
import re
import reprlib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from tuning import strict_yaml

MAX_BYTES = 1 << 20
"""A cluster file larger than this is refused unread; real ones have a few kilobytes."""

LOCK_NAME = "requirements.lock"
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})

_COMMAND_KEYS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
_DOCKER_OPTION_KEYS = ("run_options", "head_run_options", "worker_run_options")

_RAY_START = re.compile(r"\bray\s+start\b")
_AUTH_MODE = re.compile(r"\bRAY_AUTH_MODE=[\"']?([^\s\"';&|]*)")
_DASHBOARD_HOST = re.compile(r"--dashboard-host(?:\s*=\s*|\s+)[\"']?([^\s\"';&|]+)")
_LOCKED_RAY = re.compile(r"^ray(?:\[[^\]]*\])?==([^\s;#]+)", re.MULTILINE)

_NAMED_SECRET = re.compile(
    r"\b([A-Z0-9_]*(?:SECRET|TOKEN|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY)[A-Z0-9_]*)"
    r"=[\"']?(?![$`\s])[^\s\"';&|]+",
    re.IGNORECASE,
)
_NOT_SECRET_ENDINGS = ("_PATH", "_FILE", "_DIR", "_MODE", "_ID")
_SECRET_SHAPES = {
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    "a GitHub token": re.compile(r"\b(?:gh[opsu]_|github_pat_)[A-Za-z0-9_]{16,}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a password in a URL": re.compile(r"://[^\s/:@]+:[^\s/@$]+@"),
}


def is_cluster_file(mapping: Mapping[str, object]) -> bool:
    """Return whether a loaded YAML mapping means a Ray cluster, rather than a sweep or a trial."""
    return any(key in mapping for key in ("cluster_name", "provider", "available_node_types"))


def validate_cluster_file(path: Path) -> list[str]:
    """Check a cluster file with Ray's own validation and with our rules on safety and cost.

    Args:
        path: The YAML file; a ``requirements.lock`` beside it is compared with the installed Ray.

    Returns:
        Every problem as ``key.path: rule, got VALUE, do X``; empty if the file is valid. A secret
        that is found is named, never repeated.
    """
    config, problems = _load(path)
    if config is None:
        return problems
    shape = _shape_problems(config)
    problems += shape or _ray_problems(config)
    problems += _start_problems(config)
    problems += _head_problems(config)
    problems += _secret_problems(config)
    problems += _version_problems(path.parent / LOCK_NAME)
    return problems


def _load(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Read the file strictly; the mapping is ``None`` if nothing more can be said about it."""
    try:
        n_bytes = path.stat().st_size
        if n_bytes > MAX_BYTES:
            return None, [
                f"{path.name}: must have at most {MAX_BYTES} bytes, got {n_bytes}, "
                "keep only the cluster configuration"
            ]
        content = path.read_bytes()
    except OSError as err:
        return None, [f"{path.name}: must be a readable file, got {err.strerror}, check the path"]
    try:
        loaded, duplicates = strict_yaml.load(content, allows_aliases=False)
    except yaml.MarkedYAMLError as err:
        line = err.problem_mark.line + 1 if err.problem_mark else 1
        return None, [f"line {line}: must be plain YAML, got {err.problem}, correct the line"]
    except (yaml.YAMLError, ValueError, RecursionError) as err:
        return None, [f"{path.name}: must be plain YAML, got {err}, correct the file"]
    if not isinstance(loaded, dict):
        return None, [_problem(path.name, "must be a mapping", loaded, "start from cluster.yaml")]
    return loaded, [
        f"{again.written}: a key may stand once in a mapping, got it again on line {again.line}, "
        "merge the two"
        for again in duplicates
    ]


def _shape_problems(config: Mapping[str, Any]) -> list[str]:
    """Check the few shapes without which Ray's validation stops with a Python error."""
    problems = []
    provider = config.get("provider")
    if not isinstance(provider, dict) or not isinstance(provider.get("type"), str):
        problems.append(
            _problem("provider.type", "must name a provider", provider, "write `type: aws`")
        )
    node_types = config.get("available_node_types", {})
    if not isinstance(node_types, dict):
        rule = "must map names to node types"
        return [*problems, _problem("available_node_types", rule, node_types, "name each type")]
    for name, node_type in node_types.items():
        if not isinstance(node_type, dict):
            key = f"available_node_types.{name}"
            rule = "must be a mapping"
            problems.append(_problem(key, rule, node_type, "give resources and node_config"))
    return problems


def _ray_problems(config: Mapping[str, Any]) -> list[str]:
    """Run Ray's offline validation: its schema, provider defaults and node type rules."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        # Ray prints its advice to stdout, which belongs to our results.
        with contextlib.redirect_stdout(io.StringIO()):
            validate_config(prepare_config(copy.deepcopy(dict(config))))
    except ValidationError as err:
        key = ".".join(str(part) for part in err.absolute_path) or "top level"
        return [f"{key}: must follow Ray's cluster schema, got {err.message}, correct it"]
    except KeyError as err:
        return [f"{err.args[0]}: must be given, got nothing, add the key"]
    except NotImplementedError as err:
        return [f"provider.type: must be a provider that Ray knows, got {err}, correct the name"]
    except (ValueError, TypeError, AttributeError, AssertionError, RuntimeError, OSError) as err:
        return [f"top level: must satisfy Ray's validation, got {err}, correct it"]
    return []


def _start_problems(config: Mapping[str, Any]) -> list[str]:
    """Require token authentication on every node and a dashboard that only the head can reach."""
    problems = []
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [(at, c) for at, c in _commands(config, key) if _RAY_START.search(c)]
        if not starts:
            rule = "must hold a `ray start` command"
            todo = "write it out, because the provider's default has no token and an open dashboard"
            problems.append(_problem(key, rule, config.get(key), todo))
        for at, command in starts:
            problems += _auth_problems(at, command)
            if key.startswith("head"):
                problems += _dashboard_problems(at, command)
    return problems


def _auth_problems(at: str, command: str) -> list[str]:
    modes = _AUTH_MODE.findall(command)
    if modes and set(modes) == {"token"}:
        return []
    given = f"RAY_AUTH_MODE={modes[-1]}" if modes else None
    rule = "`ray start` must run with token authentication"
    return [_problem(at, rule, given, "put `RAY_AUTH_MODE=token` before it")]


def _dashboard_problems(at: str, command: str) -> list[str]:
    hosts = _DASHBOARD_HOST.findall(command)
    if hosts and LOOPBACK_HOSTS.issuperset(hosts):
        return []
    given = f"--dashboard-host={hosts[-1]}" if hosts else None
    rule = "the dashboard runs any code it is sent and must listen on loopback only"
    return [_problem(at, rule, given, "write `--dashboard-host=127.0.0.1`")]


def _head_problems(config: Mapping[str, Any]) -> list[str]:
    """Require a head that runs no trials and that the provider does not take away."""
    name = config.get("head_node_type")
    node_types = config.get("available_node_types")
    head = node_types.get(name) if isinstance(node_types, dict) else None
    if not isinstance(head, dict):
        return []
    key = f"available_node_types.{name}"
    problems = []
    resources = head.get("resources")
    given = resources if isinstance(resources, dict) else {}
    if given.get("CPU") != 0:
        rule = "the head must run no trials"
        problems.append(_problem(f"{key}.resources.CPU", rule, given.get("CPU"), "write `CPU: 0`"))
    if given.get("GPU", 0) != 0:
        rule = "the head must run no trials"
        problems.append(_problem(f"{key}.resources.GPU", rule, given["GPU"], "remove it"))
    for place, value in _spot_settings(head.get("node_config")):
        rule = "the head holds the study and must be on demand"
        problems.append(_problem(f"{key}.node_config.{place}", rule, value, "remove it"))
    return problems


def _spot_settings(node_config: object) -> Iterator[tuple[str, object]]:
    """Yield the settings of AWS, GCP and Azure that make a machine interruptible."""
    if not isinstance(node_config, dict):
        return
    market = node_config.get("InstanceMarketOptions")
    if market:
        yield "InstanceMarketOptions", market
    scheduling = node_config.get("scheduling")
    for entry in scheduling if isinstance(scheduling, list) else [scheduling]:
        if isinstance(entry, dict):
            spot = str(entry.get("provisioningModel", "")).upper() == "SPOT"
            if spot or entry.get("preemptible"):
                yield "scheduling", entry
    azure = node_config.get("azure_arm_parameters")
    if isinstance(azure, dict) and str(azure.get("priority", "")).lower() in {"spot", "low"}:
        yield "azure_arm_parameters.priority", azure["priority"]


def _secret_problems(config: Mapping[str, Any]) -> list[str]:
    """Find secrets in commands and container options, which everybody on the cluster can read."""
    rule = "must hold no secret"
    todo = "use an instance profile, or a file from file_mounts"
    return [
        f"{at}: {rule}, got {found}, {todo}"
        for at, text in _all_texts(config)
        for found in _secrets(text)
    ]


def _secrets(text: str) -> list[str]:
    names = [match.group(1) for match in _NAMED_SECRET.finditer(text)]
    named = [f"{n}=***" for n in names if not n.upper().endswith(_NOT_SECRET_ENDINGS)]
    return named or [what for what, shape in _SECRET_SHAPES.items() if shape.search(text)]


def _all_texts(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every command and container option with its place."""
    for key in _COMMAND_KEYS:
        yield from _commands(config, key)
    yield from _docker_options(config, "")
    node_types = config.get("available_node_types")
    for name, node_type in node_types.items() if isinstance(node_types, dict) else ():
        if not isinstance(node_type, dict):
            continue
        prefix = f"available_node_types.{name}."
        for key in ("initialization_commands", "worker_setup_commands"):
            yield from _commands(node_type, key, prefix)
        yield from _docker_options(node_type, prefix)


def _docker_options(owner: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    docker = owner.get("docker")
    if isinstance(docker, dict):
        for key in _DOCKER_OPTION_KEYS:
            yield from _commands(docker, key, f"{prefix}docker.")


def _commands(owner: Mapping[str, Any], key: str, prefix: str = "") -> list[tuple[str, str]]:
    """Return the strings of a list with their places; other shapes are for Ray to refuse."""
    commands = owner.get(key)
    if not isinstance(commands, list):
        return []
    return [(f"{prefix}{key}[{i}]", c) for i, c in enumerate(commands) if isinstance(c, str)]


def _version_problems(lock: Path) -> list[str]:
    """Compare the Ray that the nodes will install with the one that will talk to them."""
    if not lock.is_file():
        return []
    installed = metadata.version("ray")
    locked = _LOCKED_RAY.search(lock.read_text(encoding="utf-8"))
    if locked and locked.group(1) == installed:
        return []
    rule = f"must pin the installed ray, {installed}"
    given = f"ray=={locked.group(1)}" if locked else None
    return [_problem(f"{lock.name}.ray", rule, given, "run `make setup`")]


def _problem(key: str, rule: str, given: object, todo: str) -> str:
    shown = "nothing" if given is None else given if isinstance(given, str) else reprlib.repr(given)
    return f"{key}: {rule}, got {shown}, {todo}"
