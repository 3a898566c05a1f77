"""The guidelines as they are shipped: files, sweeps, records, pages and the verb ``reproduce``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import ROOT, Command, is_refused
from guideline_trials import trial

from core.errors import ConfigError, DataError
from tuning.files import read_yaml
from tuning.guidelines.catalogue import (
    FOLDER,
    Guideline,
    bases,
    files,
    guidelines,
    parse_guideline,
    pick,
)
from tuning.guidelines.evidence import Observed
from tuning.guidelines.inference import Region, held_against
from tuning.guidelines.page import index, page
from tuning.guidelines.published import DATA_VARIABLE, published
from tuning.guidelines.record import (
    Record,
    commit_record,
    judged,
    listing,
    read_record,
    record_path,
)
from tuning.guidelines.statistics import STATISTICS
from tuning.guidelines.sweeps import run_folder, run_name, sweeps_of
from tuning.points import points
from tuning.space import bind
from tuning.validate import late_guard

PAGES = ROOT / "docs" / "guidelines"
by_id = pytest.mark.parametrize("guideline", guidelines(), ids=lambda g: g.id)
SWEPT = [
    pytest.param(g, preset, id=f"{g.id}-{preset}")
    for g in guidelines()
    for preset, use in g.presets.items()
    if not use.published
]


# Files


def test_the_guidelines_are_numbered_from_one_and_named_by_their_files() -> None:
    assert [g.number for g in guidelines()] == list(range(1, 17))
    assert [f"{g.number:02d}-{g.id}.yaml" for g in guidelines()] == [p.name for p in files()]


@by_id
def test_nothing_unverified_is_quoted(guideline: Guideline) -> None:
    assert "UNVERIFIED" not in guideline.model_dump_json().upper()


@pytest.mark.parametrize(("guideline", "preset"), SWEPT)
def test_every_sweep_is_a_grid_that_binds(guideline: Guideline, preset: Any) -> None:
    specs = sweeps_of(guideline, preset)
    assert set(specs) == set(guideline.sweeps)
    for name, spec in specs.items():
        every = list(points(spec))
        assert len(every) == spec.budget.trials
        for point in (every[0], every[-1]):
            bind(spec, point, where=name)
        assert late_guard(spec.trial_selection()) is None
        assert spec.stop.past_target is None


def test_validate_knows_a_guideline(tune: Command) -> None:
    done = tune("validate", FOLDER / "14-prune-loosely.yaml")
    assert "a valid guideline with the presets quick (published), gpu (60 trials)" in done.out
    done = tune("validate", FOLDER / "05-ihl-is-stable.yaml")
    assert "presets quick (60 trials), gpu (40 trials), full (60 trials)" in done.out


def test_guidelines_that_ask_for_the_same_sweep_share_its_run() -> None:
    one, two = (sweeps_of(pick(name), "quick")["ga_gd_in"] for name in ("1", "13"))
    assert run_name(one) == run_name(two)
    other = sweeps_of(pick("1"), "quick", overrides={"budget.max_steps": 7})["ga_gd_in"]
    assert run_name(other) != run_name(one)
    elsewhere = sweeps_of(pick("1"), "quick", overrides={"resources.max_concurrent": 1})
    assert run_name(elsewhere["ga_gd_in"]) == run_name(one)


def test_equal_sweeps_share_a_run_under_any_name(tmp_path: Path) -> None:
    of_13 = sweeps_of(pick("13"), "quick")["ihl_gd"]
    of_6 = sweeps_of(pick("6"), "quick")["lora"]  # says adapter_init: lora, which is the default
    assert run_folder(of_6, tmp_path) == tmp_path / run_name(of_6) != tmp_path / run_name(of_13)
    (tmp_path / run_name(of_13)).mkdir()
    assert run_folder(of_6, tmp_path) == tmp_path / run_name(of_13)
    others = (sweeps_of(pick("6"), "quick")[name] for name in ("svd", "fila"))
    assert all(run_folder(other, tmp_path) == tmp_path / run_name(other) for other in others)


def test_a_quick_guideline_has_seeds_enough_to_be_told_from_chance() -> None:
    seeds = bases()["quick"].seeds
    clear = held_against([1.0 + 0.01 * s for s in seeds], Region(low=0.0, resolution=0.1))
    assert 2 * clear.p_for * len(guidelines()) < 0.05


GOOD: Mapping[str, Any] = read_yaml(FOLDER / "05-ihl-is-stable.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"statistic": "guess"}, "statistic: no such statistic; known: window_margin"),
        (
            {"settings": {"level": 0.5}},
            "settings: stability under preset quick: missing a required",
        ),
        ({"settings": {**GOOD["settings"], "x": 1}}, "got an unexpected keyword argument 'x'"),
        ({"sweeps": {}}, "presets.quick: has neither published trials nor sweeps"),
        ({"verdict": {"window": {"resolution": 1.0, "meaning": "m"}}}, "give above, below or both"),
        (
            {"verdict": {"window": {"above": 2, "below": 1, "resolution": 1.0, "meaning": "m"}}},
            "above must lie below below, got above=2 below=1",
        ),
        ({"why": "?"}, "why: unknown key"),
    ],
)
def test_a_wrong_guideline_is_refused(changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_guideline({**GOOD, **changes}, where="test")
    assert message in str(caught.value)


def test_a_searched_field_of_a_guideline_is_categorical() -> None:
    space = {"adapter.rank": {"int": {"low": 1, "high": 4}, "why": "w"}}
    guideline = parse_guideline({**GOOD, "shared": {"space": space}}, where="test")
    with pytest.raises(ConfigError, match=r"space\.adapter\.rank: a guideline needs categorical"):
        sweeps_of(guideline, "quick")


# Statistics of all guidelines


def pretended(guideline: Guideline) -> dict[str, list[Observed]]:
    """A trial for each point of each quick sweep, which forgets more at higher rates."""
    found = {}
    for name, spec in sweeps_of(guideline, "quick").items():
        found[name] = [
            trial(
                [0.3, 0.8, 0.7 - 20.0 * float(str(point.get("optimizer.learning_rate", 1e-3)))],
                [0.0, 0.05, 0.2],
                unit=f"seed {point['seed']}",
                at=point,
            )
            for point in points(spec)
        ]
    return found


@pytest.mark.parametrize(
    "guideline", [g for g in guidelines() if not g.presets["quick"].published], ids=lambda g: g.id
)
def test_a_statistic_gives_the_effects_that_have_rules_and_a_page_is_written(
    guideline: Guideline, tmp_path: Path
) -> None:
    statistic = STATISTICS[guideline.statistic]
    findings = statistic(pretended(guideline), **guideline.settings_under("quick"))
    assert set(findings.effects) == set(guideline.verdict)
    for effect in findings.effects.values():
        assert set(effect) == {f"seed {s}" for s in bases()["quick"].seeds}
    record = Record(
        id=guideline.id,
        preset="quick",
        date="2026-01-02",
        machine="a machine",
        commands=["a command"],
        subject=["a subject."],
        findings=findings,
    )
    path = record_path(tmp_path, guideline)
    commit_record(path, record)
    assert json.loads(path.read_text())["id"] == guideline.id
    one = judged(tmp_path)[guideline.number - 1]
    assert one.record == read_record(path)
    assert one.verdict in ("supported", "contradicted", "inconclusive")
    text = page(one, figures=["a.svg"] * (1 + len(findings.figures)))
    assert text.startswith(f"# {guideline.number}. {guideline.claim}\n\n**Verdict: {one.verdict}**")
    assert "nan" not in text


def test_a_record_of_other_rules_is_refused(tmp_path: Path) -> None:
    path = record_path(tmp_path, pick("14"))
    text = record_path(PAGES, pick("14")).read_text(encoding="utf-8")
    path.write_text(text.replace('"difference"', '"other"'), encoding="utf-8")
    with pytest.raises(DataError, match="has the effects other, and the guideline has rules for"):
        judged(tmp_path)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="no record of a guideline"):
        judged(tmp_path)


# What was measured


def test_the_pages_say_what_their_records_say() -> None:
    found = judged(PAGES)
    measured = [one for one in found if one.record is not None]
    assert {"prune-loosely", "truncated-grids"} <= {one.guideline.id for one in measured}
    for one in measured:
        path = record_path(PAGES, one.guideline).with_suffix(".md")
        names = [p.name for p in sorted(PAGES.glob(f"{path.stem}-*.svg"))]
        names.sort(key=lambda name: not name.endswith("effects.svg"))
        assert path.read_text(encoding="utf-8") == page(one, figures=names)
    assert (PAGES / "README.md").read_text(encoding="utf-8") == index(found)


# Published trials


def tofu_model(method: str, lr: float, epochs: int, **parts: float) -> dict[str, Any]:
    values = {"mem": 0.5, "utility_rel": 1.0, "privacy": 0.5} | parts
    name = f"{method}_lr{lr}_ep{epochs}"
    return {"model": name, "method": method, "lr": lr, "epoch": f"ep{epochs}", **values}


@pytest.fixture
def trials_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two methods; in one the winner breaks the limit after five epochs and recovers."""
    models = [{"model": "full", "method": "full", "lr": None, "epoch": "ep10"}]
    for method, early in (("npo", 1.0), ("altpo", 0.9)):
        for lr, mem in ((1e-5, 0.3), (2e-5, 0.6)):
            models.append(tofu_model(method, lr, 10, mem=mem, utility_rel=0.97))
            utility = early if lr > 1e-5 else 1.0
            models.append(tofu_model(method, lr, 5, mem=mem - 0.1, utility_rel=utility))
    folder = tmp_path / "data" / "trials"
    folder.mkdir(parents=True)
    (folder / "tofu-150-models.json").write_text(json.dumps({"models": models}), encoding="utf-8")
    search = {
        "trials": [
            {"value": value, "params": {"args.learning_rate": rate}}
            for rate, value in ((2e-7, 0.2), (1e-6, 0.1), (4e-6, 0.3))
        ]
    }
    losses = ("GradDiff", "NPO", "RMU", "SimNPO", "UNDIAL")
    for name in ("bio.results.Llama-3.1-8B.json", "wmdp.results_cyber.gemma.json"):
        (folder / name).write_text(json.dumps(dict.fromkeys(losses, search)), encoding="utf-8")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "data"))
    return folder


def test_published_trials_are_sweeps_with_readings(trials_folder: Path) -> None:
    found = published(["tofu", "budgeted"])
    assert {name for name in found if name.startswith("tofu")} == {"tofu/npo", "tofu/altpo"}
    assert {"budgeted/wmdp-cyber gemma/NPO", "budgeted/bio Llama-3.1-8B/RMU"} <= set(found)
    early, late = found["tofu/altpo"][1].readings
    assert (early.step, late.step) == (5, 10)
    assert early.damage == pytest.approx(0.1)
    assert late.score == pytest.approx(2 / (1 / 0.6 + 1 / 0.97))
    assert found["budgeted/wmdp-cyber gemma/NPO"][1].readings[0].score == -0.1


def test_reproduce_on_published_trials_writes_page_record_and_list(
    tune: Command, trials_folder: Path
) -> None:
    done = tune("reproduce", "14", "--out", "pages")
    assert done.status == 0, done.err
    assert "measured: difference 0.5 (0 to 1) over 2 units, claimed above 0" in done.out
    assert "verdict: inconclusive" in done.out
    written = {p.name for p in Path("pages").iterdir()}
    stem = "14-prune-loosely"
    assert written == {f"{stem}.{e}" for e in ("json", "md")} | {
        f"{stem}-effects.svg",
        f"{stem}-1.svg",
        "README.md",
    }
    assert "reproduce prune-loosely --preset quick" in Path("pages", f"{stem}.md").read_text()
    again = tune("reproduce", "--json", "--out", "pages").out
    assert json.loads(again) == listing(judged(Path("pages")))


def test_figures_are_the_same_whenever_they_are_drawn(tune: Command, trials_folder: Path) -> None:
    texts = []
    for out in ("one", "two"):
        assert tune("reproduce", "15", "--out", out).status == 0
        texts.append(Path(out, "15-truncated-grids-1.svg").read_text(encoding="utf-8"))
    assert texts[0] == texts[1]
    assert texts[0].startswith("<?xml")


# The verb


def test_reproduce_refuses_sweeps_whose_model_is_not_there(tune: Command) -> None:
    done = tune("reproduce", "5", "--set", "model.source=nowhere")
    is_refused(done, "guideline ihl-is-stable, sweep ga", "model.source")


def test_reproduce_lists_every_guideline_in_the_binding_shape(tune: Command) -> None:
    listed = json.loads(tune("reproduce", "--json").out)
    assert [one["id"] for one in listed] == [g.id for g in guidelines()]
    assert all(set(one) == {"id", "claim", "source", "verdict"} for one in listed)
    assert {one["verdict"] for one in listed} == {None}  # nothing is measured in this folder
    plain = tune("reproduce").out
    assert all(g.id in plain and g.claim in plain for g in guidelines())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(["99"], "GUIDELINE: no guideline '99'", id="unknown"),
        pytest.param(["12", "--preset", "gpu"], "has no preset gpu; it has quick", id="no-preset"),
        pytest.param(
            ["5", "--set", "space.seed=1"], "change ranges in the file, not by --set", id="space"
        ),
    ],
)
def test_reproduce_refuses(tune: Command, arguments: list[str], expected: str) -> None:
    is_refused(tune("reproduce", *arguments), expected)


def test_without_the_published_trials_it_says_where_they_belong(
    tune: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    is_refused(tune("reproduce", "14"), DATA_VARIABLE, "and is not set")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    is_refused(tune("reproduce", "14"), "has no tofu-150-models.json")
