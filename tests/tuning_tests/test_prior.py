"""A prior of the sampler: it helps where it is right, and is given up where it is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from analytic_study import closure, run_trial, spec_of
from small_sweep import problems

from tuning.config import Choice, SweepSpec
from tuning.ledger import Ledger
from tuning.prior import FIRST_SHARE, drawn_here, share
from tuning.records import LEDGER_FILE, read_ledger
from tuning.space import contains

RATE, RANK = "optimizer.learning_rate", "adapter.rank"
RIGHT: dict[str, Choice] = {RATE: 1.2e-3, RANK: 16}
WRONG: dict[str, Choice] = {RATE: 1.5e-5, RANK: 4}


def with_prior(values: dict[str, Choice], **changes: Any) -> SweepSpec:
    points = [{"source": "expected", "values": values}]
    seed = changes.pop("seed", 3)
    sampler = {"name": "random", "seed": seed, "prior": {"points": points} | changes}
    return spec_of(sampler=sampler, budget={"trials": 30, "max_steps": 1})


def proposals(spec: SweepSpec, folder: Path, n: int) -> list[tuple[str, dict[str, Choice]]]:
    folder.mkdir()
    ledger = Ledger(folder, spec, create=True)
    for _ in range(n):
        run_trial(ledger, spec)
    trials, _ = read_ledger(folder / LEDGER_FILE)
    return [(str(t.proposed_by), dict(t.params)) for t in trials]


def best(found: Sequence[tuple[str, dict[str, Choice]]]) -> float:
    return max(closure(params) for _, params in found)


def test_a_right_prior_brings_good_trials_sooner_than_chance(tmp_path: Path) -> None:
    sooner = 0
    for seed in range(8):
        budget = {"trials": 30, "max_steps": 1}
        plain = spec_of(sampler={"name": "random", "seed": seed}, budget=budget)
        expected = with_prior(RIGHT, confidence="high", seed=seed)
        with_it = proposals(expected, tmp_path / f"with{seed}", 5)
        without = proposals(plain, tmp_path / f"without{seed}", 5)
        sooner += best(with_it) > best(without)
    assert sooner >= 6


def test_a_wrong_prior_is_given_up(tmp_path: Path) -> None:
    found = proposals(with_prior(WRONG, confidence="high"), tmp_path / "wrong", 30)
    by_prior = [who == "prior" for who, _ in found]
    assert any(by_prior[:8])
    assert sum(by_prior[15:]) <= 2
    assert best(found) > 0.7  # chance alone went on


def test_a_sweep_with_a_prior_proposes_the_same_after_it_was_opened_again(tmp_path: Path) -> None:
    spec = with_prior(RIGHT)
    whole = proposals(spec, tmp_path / "whole", 8)
    again = tmp_path / "again"
    again.mkdir()
    for i in range(8):
        ledger = Ledger(again, spec, create=i == 0)
        run_trial(ledger, spec)
    trials, _ = read_ledger(again / LEDGER_FILE)
    assert [(str(t.proposed_by), dict(t.params)) for t in trials] == whole


@pytest.mark.parametrize("confidence", FIRST_SHARE)
def test_what_is_drawn_lies_within_the_space(confidence: str) -> None:
    spec = with_prior(RIGHT, confidence=confidence)
    drawn = [drawn_here(spec, number=n, drawn=[], others=[]) for n in range(60)]
    assert any(drawn)
    assert all(contains(spec.space[name], v) for point in drawn for name, v in point.items())


@pytest.mark.parametrize(
    ("drawn", "others", "factor"),
    [
        pytest.param([], [], 1.0, id="nothing-known"),
        pytest.param([0.9, 0.8], [0.1, 0.2], 1.0, id="better"),
        pytest.param([0.5, 0.5], [0.5, 0.5], 1.0, id="equal"),
        pytest.param([0.1, 0.2], [0.9, 0.8], 0.0, id="worse"),
        pytest.param([0.1, 0.9], [0.5, 0.95], 0.5, id="mostly-worse"),
    ],
)
def test_the_share_follows_what_drawn_trials_are_worth(
    drawn: list[float], others: list[float], factor: float
) -> None:
    found = share("medium", n_trials=10, drawn=drawn, others=others)
    assert found == pytest.approx(0.25 * factor)


def test_the_share_falls_with_the_number_of_trials() -> None:
    shares = [share("high", n_trials=n, drawn=[], others=[]) for n in (0, 10, 30)]
    assert shares == pytest.approx([0.7, 0.35, 0.175])
    assert math.isfinite(shares[-1])


def test_a_prior_outside_of_the_space_is_refused() -> None:
    prior = {"points": [{"source": "a paper", "values": {RATE: 1.0}}]}
    (problem,) = problems({"sampler": {"prior": prior}})
    assert problem.startswith(
        "sampler.prior.points.0.values: optimizer.learning_rate = 1.0 lies outside"
    )


@pytest.mark.parametrize("name", ["grid", "qmc"])
def test_evenly_placed_points_take_no_prior(name: str) -> None:
    prior = {"points": [{"source": "a paper", "values": {RANK: 8}}]}
    found = problems({"sampler": {"name": name, "prior": prior}})
    assert any("sampler.prior" in problem and "evenly placed" in problem for problem in found)
