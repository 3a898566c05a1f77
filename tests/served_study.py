"""A run whose ledger is a study on a PostgreSQL server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import optuna

from core.store.durable import commit_yaml
from tuning.config import SweepSpec
from tuning.database import Place, open_server, released
from tuning.ledger import Ledger, create_study
from tuning.records import SPEC_FILE, RunFacts

Opened = Callable[..., Ledger]


def begun(run_dir: Path, spec: SweepSpec, place: Place) -> Path:
    """A run folder as a driver leaves it when it has made the study."""
    run_dir.mkdir(exist_ok=True)
    facts = RunFacts(ledger=place.plain())
    commit_yaml(run_dir / SPEC_FILE, {"sweep": spec.plain(), **asdict(facts)})
    create_study(run_dir, spec, place=place)
    return run_dir


def on_server(place: Place) -> list[tuple[object, ...]]:
    """What is told, as Optuna itself reads it there."""
    with released(open_server(place)) as storage:
        study = optuna.load_study(study_name=place.study, storage=storage)
        return [told(t) for t in study.trials]


def told(trial: optuna.trial.FrozenTrial) -> tuple[object, ...]:
    return (
        *(trial.number, trial.state, trial.params, trial.values, trial.intermediate_values),
        *(trial.user_attrs, trial.system_attrs),
    )
