"""Which kind of cluster file one is, and the check for it."""

from collections.abc import Mapping
from pathlib import Path

SCRIPT_SUFFIXES = (".sbatch", ".slurm", ".sh")


def is_script(path: Path) -> bool:
    """Whether a file is a batch script, by its name: its content is then no YAML."""
    return path.suffix in SCRIPT_SUFFIXES


def is_manifest(mapping: Mapping[str, object]) -> bool:
    """Whether a loaded YAML mapping means a resource of Kubernetes."""
    return "apiVersion" in mapping and "kind" in mapping


def is_cluster_file(mapping: Mapping[str, object]) -> bool:
    """Return whether a loaded YAML mapping means a cluster, rather than a sweep or a trial."""
    is_launched = any(k in mapping for k in ("cluster_name", "provider", "available_node_types"))
    return is_launched or is_manifest(mapping)


def described(path: Path, mapping: Mapping[str, object] | None) -> str:
    """What kind of cluster file one is, in words; ``mapping`` is ``None`` for a script."""
    if mapping is None:
        return "batch script of Slurm"
    return "RayJob of Kubernetes" if is_manifest(mapping) else "cluster file"


def validate_cluster_file(path: Path, mapping: Mapping[str, object] | None = None) -> list[str]:
    """Check a cluster file of any kind with its own schema, and with our rules on safety and cost.

    Args:
        path: The file.
        mapping: What is known to stand in it, to tell a manifest from a file of Ray's launcher.

    Returns:
        Every problem as ``place: rule, got VALUE, do X``; empty if the file is valid. A secret
        that is found is named, never repeated.
    """
    if is_script(path):
        from tuning.cluster.slurm_script import script_problems

        return script_problems(path)
    if mapping is not None and is_manifest(mapping):
        from tuning.cluster.ray_job import manifest_problems

        return manifest_problems(path)
    from tuning.cluster.launcher_file import launcher_problems

    return launcher_problems(path)
