"""Many trials: sweeps of unlearning trials on Ray Tune, searched and pruned by Optuna."""

from typing import Any

import core

if getattr(core, "DISTRIBUTION", None) != "unlearn-tune":
    raise ImportError(
        f"the package 'core' that Python finds ({core.__file__}) belongs to another distribution, not to "
        "unlearn-tune; uninstall that distribution, or install unlearn-tune in an environment of its own"
    )

_PUBLIC = {
    "SweepSpec": "tuning.config",
    "run_sweep": "tuning.sweep",
    "resume_sweep": "tuning.sweep",
    "load_run": "tuning.run",
    "Run": "tuning.run",
    "load_sweep": "tuning.files",
    "TrialRecord": "tuning.records",
    "Advice": "tuning.advice",
    "advise": "tuning.advice",
    "pooled": "tuning.pool",
    "write_report": "tuning.report",
    "export_trial": "tuning.export",
}

__all__ = [
    "Advice",
    "Run",
    "SweepSpec",
    "TrialRecord",
    "advise",
    "export_trial",
    "load_run",
    "load_sweep",
    "pooled",
    "resume_sweep",
    "run_sweep",
    "write_report",
]


def __dir__() -> list[str]:
    """The public names alone."""
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: ``--help`` and ``status`` need neither Ray nor torch."""
    from importlib import import_module

    if name not in _PUBLIC:
        raise AttributeError(f"module 'tuning' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
