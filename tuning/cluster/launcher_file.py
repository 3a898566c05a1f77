"""Check a Ray cluster file on the laptop, before any machine is started.

Ray validates the shape of the file; this module adds what Ray lets through although it opens the
cluster to strangers or wastes money. Nothing here touches the network, and Ray is imported only
when a file is checked.
"""

import contextlib
import copy
import io
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from core.errors import ConfigError, foreign, in_a_line
from core.store.texts import read_text
from core.text.redaction import secrets_in
from tuning.cluster.prices import price_problems
from tuning.cluster.problems import LOOPBACK_HOSTS, WORKER_PORTS, problem
from tuning.cluster.reading import read_mapping

LOCK_NAME = "requirements.lock"

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
_PORT = re.compile(r"--port(?:\s*=\s*|\s+)(\d+)")
_LOCKED_INSTALL = re.compile(r"\binstall\b.*(?:-r|--requirement)[\s=]*\S*\.(?:lock|txt)\b")
_STORAGE = re.compile(r"^(?:(?:s3|gs)://[a-z0-9][\w.-]+|/)")
_LOCKED_RAY = re.compile(r"^ray(?:\[[^\]]*\])?==([^\s;#]+)", re.MULTILINE)


def launcher_problems(path: Path) -> list[str]:
    """Check a cluster file with Ray's own validation and with our rules on safety and cost.

    Args:
        path: The YAML file; a ``requirements.lock`` beside it is compared with the installed Ray.

    Returns:
        Every problem as ``key.path: rule, got VALUE, do X``; empty if the file is valid. A secret
        that is found is named, never repeated.
    """
    config, problems = read_mapping(path, model="cluster.yaml")
    if config is None:
        return problems
    shape = _shape_problems(config)
    problems += shape or _ray_problems(config)
    problems += _start_problems(config)
    problems += _head_problems(config)
    problems += _cost_problems(config)
    problems += _installation_problems(config)
    problems += _storage_problems(config)
    problems += _secret_problems(config)
    problems += _version_problems(path.parent / LOCK_NAME)
    return problems


def _shape_problems(config: Mapping[str, Any]) -> list[str]:
    """Check the few shapes without which Ray's validation stops with a Python error."""
    problems = []
    provider = config.get("provider")
    if not isinstance(provider, dict) or not isinstance(provider.get("type"), str):
        problems.append(
            problem("provider.type", "must name a provider", provider, "write `type: aws`")
        )
    node_types = config.get("available_node_types", {})
    if not isinstance(node_types, dict):
        rule = "must map names to node types"
        return [*problems, problem("available_node_types", rule, node_types, "name each type")]
    for name, node_type in node_types.items():
        if not isinstance(node_type, dict):
            key = f"available_node_types.{name}"
            rule = "must be a mapping"
            problems.append(problem(key, rule, node_type, "give resources and node_config"))
    return problems


def _ray_problems(config: Mapping[str, Any]) -> list[str]:
    """Run Ray's offline validation: its schema, provider defaults and node type rules."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        # Ray prints its advice to stdout, which belongs to our results.
        with foreign(_refused_by_ray), contextlib.redirect_stdout(io.StringIO()):
            validate_config(prepare_config(copy.deepcopy(dict(config))))
    except ConfigError as err:
        return list(err.problems)
    return []


def _refused_by_ray(err: Exception) -> ConfigError:
    """What Ray says of a file in our words; its providers raise what their own libraries raise."""
    from jsonschema import ValidationError

    if isinstance(err, ValidationError):
        key = ".".join(str(part) for part in err.absolute_path) or "top level"
        said = f"{key}: must follow Ray's cluster schema, got {err.message}, correct it"
    elif isinstance(err, KeyError):
        said = f"{err.args[0]}: must be given, got nothing, add the key"
    elif isinstance(err, NotImplementedError):
        said = f"provider.type: must be a provider that Ray knows, got {err}, correct the name"
    else:
        said = f"top level: must satisfy Ray's validation, got {in_a_line(err)}, correct it"
    return ConfigError("cluster file", [said])


def _start_problems(config: Mapping[str, Any]) -> list[str]:
    """Require token authentication on every node and a dashboard that only the head can reach."""
    problems = []
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [(at, c) for at, c in _commands(config, key) if _RAY_START.search(c)]
        if not starts:
            rule = "must hold a `ray start` command"
            todo = "write it out, because the provider's default has no token and an open dashboard"
            problems.append(problem(key, rule, config.get(key), todo))
        for at, command in starts:
            problems += _auth_problems(at, command)
            problems += _port_problems(at, command)
            if key.startswith("head"):
                problems += _dashboard_problems(at, command)
    return problems


def _auth_problems(at: str, command: str) -> list[str]:
    modes = _AUTH_MODE.findall(command)
    if modes and set(modes) == {"token"}:
        return []
    given = f"RAY_AUTH_MODE={modes[-1]}" if modes else None
    rule = "`ray start` must run with token authentication"
    return [problem(at, rule, given, "put `RAY_AUTH_MODE=token` before it")]


def _dashboard_problems(at: str, command: str) -> list[str]:
    hosts = _DASHBOARD_HOST.findall(command)
    if hosts and LOOPBACK_HOSTS.issuperset(hosts):
        return []
    given = f"--dashboard-host={hosts[-1]}" if hosts else None
    rule = "the dashboard runs any code it is sent and must listen on loopback only"
    return [problem(at, rule, given, "write `--dashboard-host=127.0.0.1`")]


def _port_problems(at: str, command: str) -> list[str]:
    rule = f"must lie outside {WORKER_PORTS.start} to {WORKER_PORTS.stop - 1}, the ports of Ray's workers"
    return [
        problem(at, rule, found, "write `--port=6379`")
        for found in _PORT.findall(command)
        if int(found) in WORKER_PORTS
    ]


def _cost_problems(config: Mapping[str, Any]) -> list[str]:
    """Require what bounds the cost: an idle timeout, no stopped machines, and prices that fit the types."""
    provider = config.get("provider")
    problems = price_problems(config)
    if not isinstance(provider, dict) or provider.get("type") == "local":
        return problems
    if not isinstance(config.get("idle_timeout_minutes"), int | float):
        rule = "must say when a worker without a trial is given back"
        given = config.get("idle_timeout_minutes")
        problems.append(problem("idle_timeout_minutes", rule, given, "write 10"))
    if provider.get("cache_stopped_nodes", True) is not False:
        rule = "must be false, as the disks of stopped machines go on costing money"
        given = provider.get("cache_stopped_nodes")
        problems.append(problem("provider.cache_stopped_nodes", rule, given, "write `false`"))
    return problems


def _installation_problems(config: Mapping[str, Any]) -> list[str]:
    """Require locked packages on every node, and on AWS credentials that only a session gives."""
    problems = []
    texts = [text for key in _COMMAND_KEYS for _, text in _commands(config, key)]
    if not config.get("docker") and not any(_LOCKED_INSTALL.search(text) for text in texts):
        rule = "every node must install the locked versions"
        problems.append(
            problem("setup_commands", rule, None, f"write `pip install -r {LOCK_NAME}`")
        )
    provider = config.get("provider")
    node_types = config.get("available_node_types")
    if not isinstance(provider, dict) or provider.get("type") != "aws":
        return problems
    for name, node_type in node_types.items() if isinstance(node_types, dict) else ():
        node = node_type.get("node_config") if isinstance(node_type, dict) else None
        options = node.get("MetadataOptions") if isinstance(node, dict) else None
        tokens = options.get("HttpTokens") if isinstance(options, dict) else None
        if isinstance(node, dict) and tokens != "required":
            key = f"available_node_types.{name}.node_config.MetadataOptions.HttpTokens"
            rule = "a program must open a session before it reads the machine's credentials"
            problems.append(problem(key, rule, tokens, "write `required`"))
    return problems


def _storage_problems(config: Mapping[str, Any]) -> list[str]:
    """Require what the verbs read from ``metadata`` to be of their kind."""
    data = config.get("metadata")
    if data is None:
        return []
    if not isinstance(data, dict):
        return [problem("metadata", "must be a mapping", data, "give price_per_hour")]
    storage = data.get("storage")
    if storage is None or (isinstance(storage, str) and _STORAGE.match(storage)):
        return []
    rule = "must be a folder of a bucket or of storage that all nodes mount"
    return [problem("metadata.storage", rule, storage, "write s3://BUCKET/FOLDER")]


def _head_problems(config: Mapping[str, Any]) -> list[str]:
    """Require a head that runs no trials and that the provider does not take away."""
    name = config.get("head_node_type")
    node_types = config.get("available_node_types")
    if not isinstance(node_types, dict) or not isinstance(name, str):
        return []  # for Ray to refuse
    head = node_types.get(name)
    if not isinstance(head, dict):
        return []
    key = f"available_node_types.{name}"
    problems = []
    resources = head.get("resources")
    given = resources if isinstance(resources, dict) else {}
    if given.get("CPU") != 0:
        rule = "the head must run no trials"
        problems.append(problem(f"{key}.resources.CPU", rule, given.get("CPU"), "write `CPU: 0`"))
    if given.get("GPU", 0) != 0:
        rule = "the head must run no trials"
        problems.append(problem(f"{key}.resources.GPU", rule, given["GPU"], "remove it"))
    for place, value in _spot_settings(head.get("node_config")):
        rule = "the head holds the study and must be on demand"
        problems.append(problem(f"{key}.node_config.{place}", rule, value, "remove it"))
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
        for found in secrets_in(text)
    ]


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
    locked = _LOCKED_RAY.search(read_text(lock))
    if locked and locked.group(1) == installed:
        return []
    rule = f"must pin the installed ray, {installed}"
    given = f"ray=={locked.group(1)}" if locked else None
    return [problem(f"{lock.name}.ray", rule, given, "run `make setup`")]
