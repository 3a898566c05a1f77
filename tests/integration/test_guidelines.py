"""Guidelines on a tiny model: real trials of every sweep, and one guideline the whole way through Ray."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.config import TrialConfig, parse_trial
from core.measuring.reporting import GuardReporter
from core.store.durable import read_lines
from core.training.warm import Warm
from core.worker import run_trial
from tuning.config import Choice, SweepSpec
from tuning.guidelines import catalogue
from tuning.guidelines.catalogue import Guideline, guidelines, pick
from tuning.guidelines.evidence import Observed, from_run, observed
from tuning.guidelines.measuring import finished, measure
from tuning.guidelines.statistics import STATISTICS
from tuning.guidelines.sweeps import run_name, sweeps_of
from tuning.plan import Launch
from tuning.space import bind
from tuning.sweep import run_sweep

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROLES = ("forget", "retain", "approximate", "general")


@pytest.fixture(scope="module")
def tiny_presets(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_data: Mapping[str, Path]
) -> Path:
    """A folder with presets whose ``quick`` is two rates, two seeds and three steps of a tiny model."""
    quick = yaml.safe_load((catalogue.FOLDER / catalogue.PRESETS_FILE).read_text("utf-8"))["quick"]
    quick |= {
        "seeds": [0, 1],
        "rates": {"lora": [3.0e-3, 3.0e-2], "full": [3.0e-4, 3.0e-3]},
    }
    quick["sweep"] |= {
        "model": {"source": str(tiny_model)},
        "data": {role: {"source": str(tiny_data[role]), "max_tokens": 64} for role in ROLES}
        | {"probe_rows": 6, "report_rows": 6},
        "engine": {"dtype": "fp32", "device": "cpu"},
        "batch": {"global_batch_size": 4},
    }
    quick["sweep"]["budget"] |= {"max_steps": 3, "probe_every": 1}
    folder = tmp_path_factory.mktemp("presets")
    (folder / catalogue.PRESETS_FILE).write_text(yaml.safe_dump({"quick": quick}), "utf-8")
    return folder


@pytest.fixture
def tiny_bases(monkeypatch: pytest.MonkeyPatch, tiny_presets: Path) -> Iterator[None]:
    """Presets are read from the tiny ones."""
    guidelines()  # before the folder is another
    monkeypatch.setattr(catalogue, "FOLDER", tiny_presets)
    catalogue.bases.cache_clear()
    yield
    catalogue.bases.cache_clear()


class Trainer:
    """Trains trials in this process, each configuration once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._warm = folder, Warm()
        self._done: dict[str, list[dict[str, Any]]] = {}

    def history(self, config: TrialConfig) -> list[dict[str, Any]]:
        """Lines of the trial's history."""
        key = config.model_dump_json()
        if key not in self._done:
            folder = self._folder / str(len(self._done))
            folder.mkdir()
            reporter = GuardReporter(config.selection)
            run_trial(config, reporter, folder=folder, warm=self._warm)
            self._done[key] = read_lines(folder / "history.jsonl")
        return self._done[key]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer(tmp_path_factory.mktemp("trials"))


def ends_of_the_grid(spec: SweepSpec) -> list[dict[str, Choice]]:
    """First and last value of every searched field, under the first seed."""
    ends: dict[str, tuple[Choice, ...]]
    ends = {name: (_values(spec, name)[0], _values(spec, name)[-1]) for name in spec.space}
    ends["seed"] = ends["seed"][:1]
    return [dict(zip(ends, chosen, strict=True)) for chosen in itertools.product(*ends.values())]


def _values(spec: SweepSpec, name: str) -> tuple[Choice, ...]:
    values = spec.space[name].categorical
    assert values is not None  # a guideline's sweep is a grid
    return values


def small(config: TrialConfig) -> TrialConfig:
    """A rank that the tiny model has room for, and at most four steps."""
    values = config.model_dump()
    values["adapter"]["rank"] = min(values["adapter"]["rank"], 8)
    values["selection"] |= {"max_steps": min(4, values["selection"]["max_steps"]), "probe_every": 1}
    return parse_trial(values, where="small")


@pytest.mark.usefixtures("tiny_bases")
@pytest.mark.parametrize(
    "guideline", [g for g in guidelines() if not g.presets["quick"].published], ids=lambda g: g.id
)
def test_every_guideline_is_tested_by_real_trials(guideline: Guideline, trainer: Trainer) -> None:
    evidence: dict[str, list[Observed]] = {}
    for name, spec in sweeps_of(guideline, "quick").items():
        trials = [
            observed(spec, point, trainer.history(small(bind(spec, point, where=name))))
            for point in ends_of_the_grid(spec)
        ]
        evidence[name] = [trial for trial in trials if trial is not None]
        assert all(math.isfinite(t.target_nll) and t.readings for t in evidence[name])
    found = STATISTICS[guideline.statistic](evidence, **guideline.settings_under("quick"))
    assert set(found.effects) == set(guideline.verdict)
    assert all(set(effect) == {"seed 0"} for effect in found.effects.values())


@pytest.mark.matrix
@pytest.mark.usefixtures("tiny_bases")
def test_a_guideline_goes_on_with_a_sweep_that_was_begun_and_reuses_one_that_ended(
    tmp_path: Path,
) -> None:
    guideline = pick("cheaper-than-retraining")
    said: list[str] = []
    begun = sweeps_of(guideline, "quick")["ga_gd_in"]
    assert begun.budget.trials == 4
    fewer = begun.model_copy(update={"budget": begun.budget.model_copy(update={"trials": 2})})
    run_sweep(fewer, tmp_path / run_name(begun))
    first = measure(
        guideline, "quick", runs=tmp_path, launch=Launch(), overrides={}, say=said.append
    )
    assert [line.partition(": ")[2] for line in said[1:]] == ["2 of 4 trials are done"]
    assert "4 trials (0 failed) of at most 3 steps over 2 seeds" in " ".join(first.subject)
    assert set(first.findings.effects) == {"chosen trial"}
    assert said[0].startswith(
        "cheaper-than-retraining: 1 sweep, 4 trials; preset quick is meant for"
    )
    said.clear()
    again = measure(
        guideline, "quick", runs=tmp_path, launch=Launch(), overrides={}, say=said.append
    )
    assert [line.partition(": ")[2] for line in said[1:]] == ["reused, 4 trials"]
    assert json.dumps(again.findings.effects) == json.dumps(first.findings.effects)
    run = finished(begun, tmp_path / run_name(begun), launch=Launch(), say=said.append)
    assert {t.unit for t in from_run(run)} == {"seed 0", "seed 1"}
