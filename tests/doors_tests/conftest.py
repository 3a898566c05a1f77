"""The command line, in a folder of its own, and a small sweep that it could run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, Done, invoked


@pytest.fixture
def tune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run ``unlearn-tune`` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> Done:
        return invoked(monkeypatch, capsys, *arguments)

    return command


@pytest.fixture
def tiny_sweep(tiny_model: Path, tiny_data: Mapping[str, Path]) -> dict[str, Any]:
    """A sweep of one trial over the tiny model."""
    return {
        "schema": 1,
        "name": "tiny",
        "model": {"source": str(tiny_model)},
        "data": {role: {"source": str(path), "max_tokens": 64} for role, path in tiny_data.items()}
        | {"probe_rows": 6, "report_rows": 6},
        "method": {"forget_loss": "ihl"},
        "space": {
            "optimizer.learning_rate": {"float": {"low": 1e-4, "high": 1e-2}, "why": "it matters"}
        },
        "budget": {"trials": 1, "max_steps": 1},
        "engine": {"dtype": "fp32", "device": "cpu"},
    }
