"""Samplers learn where trials are pruned: each is shown such trials in the form that it reads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest
from analytic_study import GRID, RATE, outcome_of, probe, spec_of, study_in
from driven_sweep import unsynced
from optuna.trial import TrialState
from small_sweep import WHY

from tuning.config import SamplerName
from tuning.ledger import Ledger
from tuning.proposals import as_sampled
from tuning.samplers import SAMPLERS, kind_of

NAMES = get_args(SamplerName)
BOUNDED = {
    "optimizer.learning_rate": RATE,
    "adapter.scaling": {"float": {"low": 0.5, "high": 4.0}} | WHY,
}


def beyond(name: str, folder: Path, seed: int) -> int:
    """Of 24 proposals after 6, those in the half of the space that damages, towards which the objective rises."""
    chosen = {"name": name, "seed": seed, "n_startup_trials": 6}
    budget = {"trials": 30, "max_steps": 1}
    spec = spec_of(space=BOUNDED, sampler=chosen, budget=budget)
    folder.mkdir()
    ledger, found = Ledger(folder, spec, create=True), 0
    for n in range(30):
        number, params = ledger.ask()
        share = (math.log10(float(params["optimizer.learning_rate"])) + 5.0) / 3.0
        drop = 0.5 + share if share >= 0.5 else 0.0
        probes = [probe(1, 0.2 + 0.6 * share, drop, "budget")]
        verdict = ledger.report(number, ledger.begin_attempt(number), probes)
        ledger.finish(number, outcome_of(spec, probes, verdict), adapter=None, duration_s=1.0)
        found += n >= 6 and share >= 0.5
    states = {t.state for t in study_in(folder).trials}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED}
    return found


def test_every_model_learns_the_boundary(tmp_path: Path) -> None:
    """Samplers without a model propose beyond it by its share of the space; the others less often than chance."""
    with unsynced():
        by_chance = beyond("random", tmp_path / "random", seed=1)
        for name in (name for name, kind in SAMPLERS.items() if kind.has_model):
            counted = beyond(name, tmp_path / name, seed=1)
            assert counted < by_chance, name
            assert name not in ("auto", "gp") or counted <= 2


@pytest.mark.parametrize("name", NAMES)
def test_pruned_trials_are_shown_in_the_form_that_the_sampler_reads(
    tmp_path: Path, name: str
) -> None:
    """The ledger keeps PRUNED, whatever the sampler is shown."""
    chosen = {"name": name, "seed": 5, "n_startup_trials": 2}
    spec = spec_of(space=GRID, sampler=chosen)
    ledger = Ledger(tmp_path, spec, create=True)
    number, _ = ledger.ask()
    probes = [probe(1, 0.4, 0.9)]
    verdict = ledger.report(number, ledger.begin_attempt(number), probes)
    ledger.finish(number, outcome_of(spec, probes, verdict), adapter=None, duration_s=1.0)
    told = study_in(tmp_path).trials[0]
    assert told.state is TrialState.PRUNED
    shown = as_sampled(told, reads_pruned=kind_of(spec, number=1).reads_pruned)
    assert shown.state.name == ("COMPLETE" if name in ("auto", "gp", "nsga2") else "PRUNED")
    assert shown.value == pytest.approx(-1.8)  # the penalised score
    assert shown.constraints == pytest.approx({"retain_drop": 0.8, "general_drop": -0.1})
