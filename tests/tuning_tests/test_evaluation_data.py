"""What ``evaluate --data`` takes: a file of roles, a sweep or trial file, ``spec.yaml`` of a run, a run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import ConfigError
from tuning.evaluate import read_data
from tuning.run import Run

ROLES: Mapping[str, Any] = {"forget": {"source": "mine.jsonl"}, "prompt_format": "plain"}
SWEEP: Mapping[str, Any] = {
    "data": dict(ROLES) | {"approximate": {"source": "embedded:approximate"}, "probe_rows": 6}
}


def write(folder: Path, values: object) -> Path:
    (folder / "mine.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    path = folder / "file.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(dict(ROLES), id="roles"),
        pytest.param(dict(SWEEP), id="a-sweep"),
        pytest.param({"sweep": dict(SWEEP), "identity": {}}, id="what-a-run-keeps"),
    ],
)
def test_sources_stand_beside_the_file(tmp_path: Path, values: object) -> None:
    found = read_data(write(tmp_path, values))
    assert found.forget is not None
    assert found.forget.source == str(tmp_path / "mine.jsonl")
    assert found.prompt_format == "plain"


def test_a_run_folder_is_its_sweep(build_run: Callable[..., Run]) -> None:
    run = build_run()
    found = read_data(run.path)
    assert found == read_data(run.path / "spec.yaml")
    data = run.spec.trial_data()
    assert (found.forget, found.holdout) == (data.forget, data.approximate)


def test_a_problem_is_named_where_it_stands(tmp_path: Path) -> None:
    file = write(tmp_path, {"sweep": {"data": {"forgett": {"source": "mine.jsonl"}}}})
    with pytest.raises(ConfigError, match=r"file\.yaml, sweep, data: 1 problem\n.*'forget'"):
        read_data(file)
