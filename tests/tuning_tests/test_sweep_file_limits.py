"""Limits of a sweep file: auto waits for the baseline, contradictions are refused, late guards are warned of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import ROOT, Command, WriteSpec, ends_refused, is_refused
from small_sweep import fixed_rate_values, problems, spec_of, values

from core.config import parse_trial
from core.errors import UserError
from core.measuring.selection import guard_verdict
from core.store.durable import commit_yaml
from tuning.config import SweepSpec
from tuning.files import load_sweep, parse_sweep, read_yaml
from tuning.run import Run, load_run
from tuning.sameness import refuse_changed
from tuning.space import bind, corner_proposals
from tuning.validate import late_guard, validate_file

SHIPPED = sorted(
    str(p.relative_to(ROOT))
    for p in (ROOT / "search_spaces").rglob("*.yaml")
    if p.parent.name != "guidelines"
)
AUTO: dict[str, Any] = {
    "constraints": [
        {"metric": "auto", "at_most": 0.10},
        {"metric": "general_drop", "at_most": 0.10},
    ],
    "pruning": {"retain": {"metrics": ["auto", "general_drop"], "limit": 0.10}},
}


def limited(spec: SweepSpec) -> tuple[str, ...]:
    return spec.trial_selection().limited_metrics


# The scale of the baseline


def test_auto_becomes_one_metric_in_constraints_and_guard_and_keeps_its_limit() -> None:
    spec = spec_of(AUTO)
    assert spec.has_auto
    chosen = spec.with_auto_as("retain_forgetting")
    assert not chosen.has_auto
    assert [(c.metric, c.limit) for c in chosen.constraints] == [
        ("retain_forgetting", 0.10),
        ("general_drop", 0.10),
    ]
    trial = bind(chosen, next(iter(corner_proposals(chosen))), where="test")
    assert trial.selection.limited_metrics == ("retain_forgetting", "general_drop")
    assert trial.selection.retain_guard == chosen.pruning.retain
    assert spec_of().with_auto_as("retain_forgetting") == spec_of(), "what is named stays"


def test_before_the_baseline_is_known_auto_stands_as_the_drop_that_every_model_has() -> None:
    assert limited(spec_of(AUTO)) == ("retain_drop", "general_drop")
    assert spec_of(AUTO).plain()["constraints"][0]["metric"] == "auto"


def test_what_auto_may_be_cannot_stand_beside_it() -> None:
    beside = [{"metric": m, "at_most": 0.1} for m in ("auto", "retain_forgetting")]
    (line,) = problems({"constraints": beside})
    assert line.startswith("constraints: auto is retain_drop or retain_forgetting, so neither may")
    (line,) = problems({"pruning.retain": {"metrics": ["retain_drop", "auto"]}})
    assert line.startswith("pruning.retain.metrics: auto is retain_drop or retain_forgetting")


def test_defaults_of_a_file_without_limits_are_as_before() -> None:
    plain = spec_of().plain()
    assert plain["constraints"] == [
        {"metric": "retain_drop", "at_most": 0.10},
        {"metric": "general_drop", "at_most": 0.10},
    ]
    assert plain["pruning"]["retain"] == {
        "metrics": ["retain_drop", "general_drop"],
        "limit": 0.10,
        "patience": 2,
        "grace_steps": 2,
        "hard_limit": 0.50,
    }


@pytest.fixture
def resolved_run(sample_run: Run) -> Run:
    """A run whose file says auto, of which the baseline made the share."""
    path = sample_run.path / "spec.yaml"
    content = read_yaml(path)
    spec = parse_sweep(content["sweep"] | AUTO, where="test").with_auto_as("retain_forgetting")
    commit_yaml(path, content | {"sweep": spec.plain(), "scale": "auto is retain_forgetting: x"})
    return load_run(sample_run.path)


def test_a_resumed_run_decides_as_it_did_and_its_file_may_still_say_auto(resolved_run: Run) -> None:
    assert limited(resolved_run.spec) == ("retain_forgetting", "general_drop")
    assert resolved_run.facts.scale == "auto is retain_forgetting: x"
    file = parse_sweep(resolved_run.spec.plain() | AUTO, where="test")
    refuse_changed(file, resolved_run)
    named = file.with_auto_as("retain_drop")
    with pytest.raises(UserError, match=r'-   "metric": "retain_forgetting"'):
        refuse_changed(named, resolved_run)


# The last probe, and overshoot


def test_a_file_that_selects_the_last_probe_and_stops_past_the_target_is_refused(
    tune: Command, write_spec: WriteSpec
) -> None:
    linear = {"objective": {"select": "last"}, "optimizer.schedule": "linear"}
    file = write_spec(fixed_rate_values(linear))
    rule = "stop.past_target: past_target ends a trial before its horizon"
    ends_refused(tune("validate", file), "file.yaml: 1 problem", rule, "past_target: null")
    is_refused(tune("sweep", file, "--dry-run"), rule)
    off = write_spec(fixed_rate_values(linear | {"stop": {"past_target": None}}))
    assert load_sweep(off).trial_selection().past_target is None


def test_a_trial_file_with_the_pair_is_refused_too(
    tune: Command, tiny_sweep: dict[str, Any]
) -> None:
    spec = parse_sweep(tiny_sweep | {"objective": {"select": "last"}}, where="test")
    trial = bind(spec, next(iter(corner_proposals(spec))), where="test")
    commit_yaml(Path("trial.yaml"), trial.model_dump(mode="json"))
    rule = "selection.past_target: past_target ends a trial before its horizon"
    is_refused(tune("validate", "trial.yaml"), rule)
    is_refused(tune("train", "trial.yaml", "--out", "again"), rule)
    assert not Path("again").exists()


def test_a_run_that_has_the_pair_is_still_read(sample_run: Run) -> None:
    path = sample_run.path / "spec.yaml"
    content = read_yaml(path)
    content["sweep"]["objective"]["select"] = "last"
    commit_yaml(path, content)
    assert load_run(sample_run.path).spec.objective.select == "last"


# A guard that comes too late


@pytest.mark.parametrize(
    ("budget", "guard", "expected"),
    [
        pytest.param((60, 12), (2, 2), "at probe 4 of 5, step 48 of 60 ", id="as-was-published"),
        pytest.param((60, 12), (1, 1), None, id="as-is-published"),
        pytest.param((60, 6), (2, 2), None, id="four-of-ten"),
        pytest.param((8, 1), (2, 2), None, id="half"),
        pytest.param((7, 1), (2, 2), "at probe 4 of 7, step 4 of 7 ", id="more-than-half"),
        pytest.param((10, 4), (1, 2), "at probe 3 of 3, step 10 of 10 ", id="the-last-probe-is-nearer"),
        pytest.param((3, 1), (2, 2), "can never act on its limit: a trial has 3 probes ", id="never"),
    ],
)  # fmt: skip
def test_grace_and_patience_that_cover_most_of_the_probes_are_warned_of(
    budget: tuple[int, int], guard: tuple[int, int], expected: str | None
) -> None:
    spec = spec_of(
        {
            "budget": {"trials": 2, "max_steps": budget[0], "probe_every": budget[1]},
            "pruning": {"retain": {"grace_steps": guard[0], "patience": guard[1]}},
        }
    )
    found = late_guard(spec.trial_selection())
    assert (found is None) == (expected is None)
    assert expected is None or (found is not None and expected in found)
    rules = spec.trial_selection()
    assert rules.retain_guard is not None
    broken = [{"retain_drop": 0.2, "general_drop": 0.0}] * rules.n_probes
    acts = [
        n
        for n in range(1, rules.n_probes + 1)
        if guard_verdict(broken[:n], rules.retain_guard) is not None
    ]
    assert acts[:1] == ([sum(guard)] if sum(guard) <= rules.n_probes else [])


def test_no_guard_no_warning() -> None:
    off = {"budget": {"trials": 1, "max_steps": 2}, "pruning": {"retain": None}}
    assert late_guard(spec_of(off).trial_selection()) is None


def test_validate_says_the_warning_after_the_verdict(write_spec: WriteSpec) -> None:
    sizes = {"data.probe_rows": 16, "data.report_rows": 32}
    file = write_spec(values({"budget": {"trials": 2, "max_steps": 4}, **sizes}))
    verdict, warning = validate_file(file).splitlines()
    assert "a valid sweep of 2 trials" in verdict
    assert warning.startswith(
        "warning: the retain guard can first act on its limit at probe 4 of 4"
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_no_shipped_guard_comes_late(name: str) -> None:
    assert late_guard(load_sweep(ROOT / name).trial_selection()) is None


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_on_models_that_were_taught_their_retain_set_ask_the_baseline(
    name: str,
) -> None:
    spec = load_sweep(ROOT / name)
    source = str(spec.data["retain"]["source"])
    is_taught = source.startswith(("tofu:", "authors:"))
    assert spec.has_auto == is_taught


def test_a_trial_of_a_sweep_with_auto_is_a_trial_file() -> None:
    spec = spec_of(AUTO).with_auto_as("retain_forgetting")
    trial = bind(spec, next(iter(corner_proposals(spec))), where="test")
    assert parse_trial(trial.model_dump(mode="json"), where="test") == trial
