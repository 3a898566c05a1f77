"""A valid sweep file binds to trials, survives a round trip, and shows what binds a run to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from small_sweep import WHY, conditional, spec_of

from core.config import TrialConfig
from core.errors import ConfigError
from tuning.config import SweepSpec, specification_changes
from tuning.files import load_sweep, parse_sweep, read_yaml
from tuning.space import bind, corner_proposals

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(
    p for p in (ROOT / "search_spaces").rglob("*.yaml") if p.parent.name != "guidelines"
)


# Round trips and comparisons


RICH = {
    "start_from": [{"source": "a paper", "values": {"adapter.rank": 8}}],
    "sampler": {"name": "tpe", "seed": 7, "n_startup_trials": 3},
    "pruning": {"retain": None, "ranking": "median"},
    "stop": {"past_target": None},
    "constraints": [],
    "resources": {"max_concurrent": 2, "cpus_per_rank": 2},
    "adapter": {"scaling": 1.0},
}


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(spec_of(), id="defaults"),
        pytest.param(spec_of(RICH, space=conditional({"method.adapter_init": "fila"})), id="rich"),
    ],
)
def test_plain_values_make_the_same_sweep(spec: SweepSpec) -> None:
    plain = spec.plain()
    assert parse_sweep(plain, where="test") == spec
    assert parse_sweep(yaml.safe_load(yaml.safe_dump(plain)), where="test") == spec
    assert parse_sweep(json.loads(json.dumps(plain)), where="test") == spec


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"name": "other"}, id="name"),
        pytest.param({"budget.trials": 40}, id="trials"),
        pytest.param({"resources": {"max_concurrent": 3}}, id="resources"),
        pytest.param({"budget.max_attempts": 9}, id="attempts"),
    ],
)
def test_what_does_not_change_results_does_not_bind(changes: Mapping[str, Any]) -> None:
    assert specification_changes(spec_of().binding(), spec_of(changes).binding()) == []


@pytest.mark.parametrize(
    ("changes", "before", "now"),
    [
        pytest.param({"budget.max_steps": 7}, '"max_steps": 6', '"max_steps": 7', id="steps"),
        pytest.param({"sampler": {"seed": 5}}, '"seed": 0', '"seed": 5', id="seed"),
        pytest.param({"method.forget_loss": "ga"}, '"ihl"', '"ga"', id="method"),
        pytest.param(
            {"pruning": {"retain": {"limit": 0.2}}}, '"limit": 0.1', '"limit": 0.2', id="guard"
        ),
    ],
)
def test_a_change_that_binds_is_shown_as_a_difference(
    changes: Mapping[str, Any], before: str, now: str
) -> None:
    lines = specification_changes(spec_of().binding(), spec_of(changes).binding())
    assert lines[:2] == ["--- when the run began", "+++ now"]
    assert any(line.startswith("-") and before in line for line in lines[2:])
    assert any(line.startswith("+") and now in line for line in lines[2:])


# Binding


def test_a_trial_holds_fixed_and_proposed_values() -> None:
    spec = spec_of(
        {
            "seed": 11,
            "adapter": {"scaling": 1.5},
            "resources": {"ranks_per_trial": 2, "cpus_per_rank": 3},
            "objective": {"metric": "accuracy_closure"},
            "budget": {"trials": 1, "max_steps": 6, "probe_every": 2},
        }
    )
    trial = bind(spec, {"optimizer.learning_rate": 3e-4, "adapter.rank": 16}, where="test")
    assert isinstance(trial, TrialConfig)
    assert (trial.optimizer.learning_rate, trial.adapter.rank) == (3e-4, 16)
    assert (trial.adapter.scaling, trial.seed, trial.method.forget_loss) == (1.5, 11, "ihl")
    assert (trial.engine.ranks, trial.engine.threads) == (2, 3)
    assert (trial.selection.max_steps, trial.selection.probe_every) == (6, 2)
    assert trial.selection.metric == "accuracy_closure"
    assert trial.selection.constraints == spec.constraints
    assert trial.selection.retain_guard == spec.pruning.retain


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, ("auto", "auto"), id="the-worker-resolves-auto-by-device"),
        pytest.param({"pruning": {"ranking": "median"}}, ("all", False), id="trials-are-compared"),
        pytest.param(
            {"budget.rows_per_probe": "adaptive", "budget.skip_probes": False},
            ("adaptive", False),
            id="asked-for",
        ),
    ],
)
def test_a_trial_is_told_how_much_its_probes_measure(
    changes: dict[str, Any], expected: tuple[str, bool | str]
) -> None:
    selection = spec_of(changes).trial_selection()
    assert (selection.rows_per_probe, selection.skip_probes) == expected


def test_rules_that_are_switched_off_are_off_in_the_trial() -> None:
    spec = spec_of({"pruning": {"retain": None}, "stop": {"past_target": None}})
    selection = bind(spec, next(corner_proposals(spec)), where="test").selection
    assert selection.retain_guard is None and selection.past_target is None


def test_binding_leaves_the_sweep_as_it_was() -> None:
    spec = spec_of()
    before = spec.plain()
    bind(spec, {"optimizer.learning_rate": 3e-4, "adapter.rank": 16, "seed": 4}, where="test")
    assert spec.plain() == before


def test_a_proposal_that_is_no_trial_is_refused() -> None:
    proposal = {"optimizer.learning_rate": 2.0, "adapter.rank": 4}
    with pytest.raises(ConfigError, match=r"trial 3: .*\n.*optimizer\.learning_rate: .*got 2\.0"):
        bind(spec_of(), proposal, where="trial 3")


@given(
    st.lists(st.sampled_from([4, 8, 16, 32]), min_size=1, max_size=4, unique=True),
    st.floats(1e-6, 1e-3),
    st.floats(1.0, 100.0),
)
def test_corners_hold_every_choice_and_both_ends(
    ranks: list[int], low: float, factor: float
) -> None:
    spec = spec_of(
        space={
            "adapter.rank": {"categorical": ranks} | WHY,
            "optimizer.learning_rate": {"float": {"low": low, "high": low * factor}} | WHY,
        }
    )
    corners = list(corner_proposals(spec))
    assert {c["adapter.rank"] for c in corners} == set(ranks)
    assert {c["optimizer.learning_rate"] for c in corners} == {low, low * factor}


# What we ship


def test_search_spaces_are_shipped() -> None:
    assert any(path.name == "demo.yaml" for path in SHIPPED)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(ROOT / "search_spaces")))
def test_a_shipped_file_binds_at_every_corner_and_gives_its_reasons(path: Path) -> None:
    assert {"schema", "space"} <= set(read_yaml(path))
    spec = load_sweep(path)
    assert all(
        d.why.strip() and (d.source is None or d.source.strip()) for d in spec.space.values()
    )
    assert all(start.source.strip() for start in spec.start_from)
    for corner in corner_proposals(spec):
        bind(spec, corner, where=str(path))
    for start in spec.start_from:
        assert set(start.values) <= set(spec.space)
