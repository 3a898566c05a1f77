"""Starting points that are the best trials of an earlier run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from small_sweep import values

from core.errors import ConfigError
from tuning.files import load_sweep
from tuning.ranking import is_candidate, ranked
from tuning.run import Run


def written(folder: Path, changes: dict[str, Any]) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values(changes)), "utf-8")
    return path


@pytest.fixture
def best(sample_run: Run) -> list[Any]:
    return [t for t in ranked(sample_run.trials) if is_candidate(t)]


def test_the_best_trials_of_a_run_are_started_from_with_their_source(
    sample_run: Run, best: list[Any], tmp_path: Path
) -> None:
    relative = Path("..") / sample_run.path.relative_to(sample_run.path.parent.parent)
    folder = sample_run.path.parent.parent / "files"
    folder.mkdir()
    spec = load_sweep(written(folder, {"start_from": {"run": str(relative), "top": 2}}))
    assert [s.source for s in spec.start_from] == [
        f"trial {t.number} of {sample_run.name}" for t in best[:2]
    ]
    shared = set(spec.space)
    assert [dict(s.values) for s in spec.start_from] == [
        {k: v for k, v in t.params.items() if k in shared} for t in best[:2]
    ]


def test_a_run_may_stand_among_other_points_and_be_a_prior(sample_run: Run, tmp_path: Path) -> None:
    own = {"source": "mine", "values": {"adapter.rank": 8}}
    run = {"run": str(sample_run.path), "top": 1}
    changes = {"start_from": [own, run], "sampler": {"prior": run | {"confidence": "low"}}}
    spec = load_sweep(written(tmp_path, changes))
    assert [s.source for s in spec.start_from] == ["mine", "trial 0 of sample"]
    assert spec.sampler.prior is not None
    assert spec.sampler.prior.confidence == "low"
    assert [p.source for p in spec.sampler.prior.points] == ["trial 0 of sample"]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        pytest.param({"run": "nowhere"}, "holds no ledger.db", id="no-run"),
        pytest.param({"run": "RUN", "top": 0}, "top: must be a whole number", id="top"),
        pytest.param({"run": "RUN", "best": 3}, "only top is known, got best", id="unknown-key"),
    ],
)
def test_what_is_wrong_with_a_run_is_said_at_its_place(
    sample_run: Run, tmp_path: Path, entry: dict[str, Any], said: str
) -> None:
    entry = {k: str(sample_run.path) if v == "RUN" else v for k, v in entry.items()}
    with pytest.raises(ConfigError) as err:
        load_sweep(written(tmp_path, {"start_from": [entry]}))
    (problem,) = err.value.problems
    assert problem.startswith("start_from: ")
    assert said in problem


def test_a_run_whose_trials_lie_outside_of_the_space_is_refused_with_a_value(
    sample_run: Run, tmp_path: Path
) -> None:
    space = {"adapter.rank": {"categorical": [512], "why": "one"}}
    path = tmp_path / "sweep.yaml"
    content = values({"optimizer.learning_rate": 1e-3, "start_from": {"run": str(sample_run.path)}})
    path.write_text(yaml.safe_dump(content | {"space": space}), "utf-8")
    with pytest.raises(ConfigError, match=r"lies within this space: adapter.rank = \d+ of trial"):
        load_sweep(path)
