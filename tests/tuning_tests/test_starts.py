"""Starting points that are the best trials of an earlier run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripted_runs import TrialScript
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


def repeated(rank: int, seed: int) -> dict[str, Any]:
    return {"source": f"rank {rank}", "values": {"adapter.rank": rank, "seed": seed}}


def closing(closure: float) -> TrialScript:
    """A trial that keeps every limit, and whose best closure this is."""
    return TrialScript(probes=[(1.0 + 2.0 * closure * i / 6, 0.0, 0.0) for i in range(1, 7)])


@pytest.mark.parametrize("seed_is_searched", [False, True])
def test_of_repeats_over_seeds_a_configuration_is_one_point_which_its_mean_ranks(
    build_run: Callable[..., Run], tmp_path: Path, seed_is_searched: bool
) -> None:
    searched = {
        "adapter.rank": {"categorical": [4, 8], "why": "two"},
        "seed": {"categorical": [0, 1], "why": "repeats"},
    }
    run = build_run(
        "repeats",
        scripts=[closing(0.9), closing(0.3), closing(0.7), closing(0.8)],
        changes={
            "optimizer": {"learning_rate": 1e-3},
            "space": searched,
            "start_from": [repeated(r, s) for r in (4, 8) for s in (0, 1)],
        },
        notes={},
    )
    content = values({"optimizer.learning_rate": 1e-3, "start_from": {"run": str(run.path)}})
    space = {n: r for n, r in searched.items() if n != "seed" or seed_is_searched}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(content | {"space": space}), "utf-8")
    found = [(s.source, dict(s.values)) for s in load_sweep(path).start_from]
    if seed_is_searched:
        assert [source for source, _ in found] == [f"trial {n} of repeats" for n in (0, 3, 2, 1)]
    else:
        assert found == [
            ("trials 2, 3 of repeats", {"adapter.rank": 8}),
            ("trials 0, 1 of repeats", {"adapter.rank": 4}),
        ]


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
