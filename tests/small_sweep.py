"""A small, valid sweep file as plain values, with changes; and what is refused about it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import ConfigError
from tuning.config import SweepSpec
from tuning.files import parse_sweep

BASE: Mapping[str, Any] = {
    "schema": 1,
    "name": "small",
    "model": {"source": "package:smollm2"},
    "data": {
        role: {"source": f"embedded:{role}"}
        for role in ("forget", "retain", "approximate", "general")
    }
    | {"probe_rows": 8, "report_rows": 8},
    "method": {"forget_loss": "ihl"},
    "space": {
        "optimizer.learning_rate": {
            "float": {"low": 1e-5, "high": 1e-2, "log": True},
            "why": "Two decades around the published one.",
        },
        "adapter.rank": {"categorical": [4, 8, 16], "why": "The paper's ranks."},
    },
    "budget": {"trials": 4, "max_steps": 6},
}
WHY = {"why": "it matters"}


def tiny_values(model: Path, data: Mapping[str, Path]) -> dict[str, Any]:
    """A sweep over a tiny model and its data, on a CPU in float32; its space and budget are given."""
    roles: dict[str, Any] = {role: {"source": str(p), "max_tokens": 64} for role, p in data.items()}
    return {
        "schema": 1,
        "name": "tiny",
        "model": {"source": str(model)},
        "data": roles | {"probe_rows": 6, "report_rows": 6},
        "method": {"forget_loss": "ihl"},
        "batch": {"global_batch_size": 4},
        "engine": {"dtype": "fp32", "device": "cpu"},
    }


ABSENT = object()
"""As a change, it removes the key."""


def values(changes: Mapping[str, Any] | None = None, *, space: Any = None) -> dict[str, Any]:
    """The base file with dotted keys replaced, and ``space`` entries added."""
    result: dict[str, Any] = copy.deepcopy(dict(BASE))
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is ABSENT:
            place.pop(last)
        else:
            place[last] = value
    result["space"] |= space or {}
    return result


def fixed_rate_values(
    changes: Mapping[str, Any], space: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """``values`` of a sweep that searches the rank alone, with dotted keys replaced and ranges added."""
    rank_only = {
        "optimizer": {"learning_rate": 1.0e-3},
        "space": {"adapter.rank": {"categorical": [4, 8]} | WHY},
        "budget": {"trials": 2, "max_steps": 4},
    }
    return values(rank_only | dict(changes), space={k: v | WHY for k, v in (space or {}).items()})


def spec_of(changes: Mapping[str, Any] | None = None, *, space: Any = None) -> SweepSpec:
    """The sweep of ``values``."""
    return parse_sweep(values(changes, space=space), where="test")


def problems(changes: Mapping[str, Any] | None = None, *, space: Any = None) -> tuple[str, ...]:
    """What is refused about ``values``."""
    with pytest.raises(ConfigError) as caught:
        spec_of(changes, space=space)
    return caught.value.problems


def write(folder: Path, content: Mapping[str, Any] | str) -> Path:
    """Write a sweep file, of plain values or as it stands."""
    path = folder / "sweep.yaml"
    text = content if isinstance(content, str) else yaml.safe_dump(dict(content))
    path.write_text(text, encoding="utf-8")
    return path


def conditional(when: Mapping[str, Any]) -> dict[str, Any]:
    """Ranges of which one is searched under a condition only."""
    return {
        "method.adapter_init": {"categorical": ["lora", "fila"]} | WHY,
        "fisher.exponent": {"float": {"low": 0.0, "high": 1.0}, "when": dict(when)} | WHY,
    }
