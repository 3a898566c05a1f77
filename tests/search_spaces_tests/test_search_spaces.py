"""Every shipped sweep file is valid, gives its reasons, and trains; between them they cover every method."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest

from core.config import TrialConfig, parse_trial
from core.config.method import METHODS, ForgetLossId, MethodConfig
from core.measuring.reporting import GuardReporter
from core.training.warm import Warm
from core.worker import run_trial
from tuning.config import FIXED_SECTIONS, Choice, Dimension, SweepSpec
from tuning.files import load_sweep, parse_sweep, read_yaml
from tuning.space import (
    Proposal,
    bind,
    corner_proposals,
    is_active,
    leaf_fields,
    ordered_dimensions,
)
from tuning.validate import validate_file

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "search_spaces"
FILES = {
    str(p.relative_to(FOLDER)): p
    for p in sorted(FOLDER.rglob("*.yaml"))
    if p.parent.name != "guidelines"  # which are no sweep files
}
ROLES = ("forget", "retain", "approximate", "general")
README = (FOLDER / "README.md").read_text(encoding="utf-8")
METHODS_PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
DATA_PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")

COMBINED = (
    "method.forget_loss",
    "method.retain_loss",
    "method.retain_source",
    "method.adapter_init",
    "adapter.kind",
    "batch.whole_forget_set",
)

each_file = pytest.mark.parametrize("name", FILES)


def bound_trials(spec: SweepSpec) -> list[TrialConfig]:
    """Trials at the corners of the space and at its starting points."""
    proposals = list(corner_proposals(spec))
    starts = [completed(spec, s.values, proposals[0]) for s in spec.start_from]
    return [bind(spec, p, where=spec.name) for p in (*proposals, *starts)]


def completed(
    spec: SweepSpec, values: Mapping[str, Choice], rest: Mapping[str, Choice]
) -> dict[str, Choice]:
    """A starting point with the fields that it leaves out taken from ``rest``, as far as they are searched there."""
    dimensions = ordered_dimensions(spec)
    first = {name: values_of(d)[0] for name, d in dimensions.items()} | dict(rest) | dict(values)
    chosen: dict[str, Choice] = {}
    for name, dimension in dimensions.items():
        if is_active(dimension, chosen):
            chosen[name] = first[name]
    return chosen


def values_of(dimension: Dimension) -> tuple[Choice, ...]:
    """Its choices, or its low end."""
    if dimension.categorical is not None:
        return dimension.categorical
    found = dimension.float_range or dimension.int_range
    assert found is not None  # a dimension has one of the three
    return (found.low,)


def values_at(trial: TrialConfig, fields: Sequence[str]) -> tuple[Any, ...]:
    """Values of dotted fields of a trial."""
    found = []
    for field in fields:
        place: Any = trial
        for part in field.split("."):
            place = getattr(place, part)
        found.append(place)
    return tuple(found)


@cache
def combinations(name: str) -> tuple[Mapping[str, Any], ...]:
    """Combinations that a file's trials have: dotted field of a combination to its value."""
    trials = bound_trials(load_sweep(FILES[name]))
    return tuple(
        dict(zip(COMBINED, values, strict=True))
        for values in {values_at(trial, COMBINED) for trial in trials}
    )


def all_specs() -> Iterator[tuple[str, SweepSpec]]:
    for name, path in FILES.items():
        yield name, load_sweep(path)


# Files on their own


@each_file
def test_every_range_gives_its_reason_and_every_starting_point_its_source(name: str) -> None:
    spec = load_sweep(FILES[name])
    assert all(d.why.strip() for d in spec.space.values())
    assert all(d.source is None or d.source.strip() for d in spec.space.values())
    assert all(s.source.strip() and set(s.values) <= set(spec.space) for s in spec.start_from)


@each_file
def test_every_corner_binds(name: str) -> None:
    spec = load_sweep(FILES[name])
    bound = [bind(spec, corner, where=name) for corner in corner_proposals(spec)]
    assert len(bound) >= len(spec.space)


@each_file
def test_a_starting_point_has_no_value_for_a_field_that_is_not_searched_there(name: str) -> None:
    spec = load_sweep(FILES[name])
    first = next(iter(corner_proposals(spec)))
    for start in spec.start_from:
        proposal = completed(spec, start.values, first)
        assert start.values.items() <= proposal.items()
        bind(spec, proposal, where=name)


@each_file
def test_validate_accepts_the_file(name: str) -> None:
    assert "a valid sweep" in validate_file(FILES[name])


def test_names_of_sweeps_are_distinct() -> None:
    names = [spec.name for _, spec in all_specs()]
    assert len(names) == len(set(names))


@each_file
def test_a_shipped_file_of_the_published_folder_has_published_starting_points(name: str) -> None:
    spec = load_sweep(FILES[name])
    assert bool(spec.start_from) or not name.startswith("published/")


# Together


TAUGHT: Mapping[str, Mapping[str, str]] = {
    "hub:locuslab/tofu_ft_phi-1.5": {"template": "Question: {prompt}\nAnswer: "},
    "hub:locuslab/tofu_ft_llama2-7b": {"template": "[INST] {prompt} [/INST]"},
    "hub:open-unlearning/tofu_Llama-3.2-1B-Instruct_full": {
        "prompt_format": "chat",
        "system_prompt": "You are a helpful assistant.",
    },
}
"""How published models were taught questions: model_config.yaml of TOFU, configs/model of OpenUnlearning."""


@each_file
def test_a_published_model_is_asked_as_it_was_taught(name: str) -> None:
    spec = load_sweep(FILES[name])
    source = str(spec.model["source"])
    has_questions = spec.data["forget"]["source"].startswith("tofu:")
    assert (source in TAUGHT) == (has_questions and source.startswith("hub:"))
    asked = bound_trials(spec)[0].data
    taught = TAUGHT.get(source, {})
    assert {field: getattr(asked, field) for field in taught} == taught
    assert asked.prompt_format != "auto" or not taught


def test_every_forget_loss_has_a_file_that_trains_with_it() -> None:
    found = {
        combined["method.forget_loss"]
        for name in FILES
        if name != "methods.yaml"
        for combined in combinations(name)
    }
    assert found == set(get_args(ForgetLossId))


def test_one_sweep_searches_all_forget_losses() -> None:
    spec = load_sweep(FILES["methods.yaml"])
    assert spec.space["method.forget_loss"].categorical == get_args(ForgetLossId)


def test_every_hyperparameter_of_a_loss_is_searched_under_that_loss() -> None:
    wanted = {p for p in leaf_fields(MethodConfig, "method.") if p.count(".") == 2}
    found = set()
    for _, spec in all_specs():
        for path, dimension in spec.space.items():
            loss = path.split(".")[1]
            of = dimension.when.get("method.forget_loss", spec.method.get("forget_loss"))
            if path in wanted and of == loss:
                found.add(path)
    assert found == wanted


@pytest.mark.parametrize(
    ("field", "values"),
    [
        pytest.param("adapter.kind", {"lora", "full"}, id="kinds"),
        pytest.param("method.adapter_init", {"lora", "svd", "fila", "vila"}, id="initialisations"),
        pytest.param("method.retain_source", {"in_distribution", "general"}, id="retain-sources"),
        pytest.param(
            "method.retain_loss",
            {"none", "nll", "kl", "activation", "residual"},
            id="retain-losses",
        ),
        pytest.param("batch.whole_forget_set", {True, False}, id="batches"),
    ],
)
def test_every_choice_is_used_by_a_file(field: str, values: set[Any]) -> None:
    assert {combined[field] for name in FILES for combined in combinations(name)} == values


def test_the_seven_methods_of_yao_et_al_are_the_starting_points_of_their_file() -> None:
    for name in ("yao.yaml", "published/yao.yaml"):
        starts = load_sweep(FILES[name]).start_from
        found = {
            tuple(
                s.values.get(f"method.{f}") for f in ("forget_loss", "retain_loss", "retain_source")
            )
            for s in starts
        }
        assert found == {
            (forget, "none", None) for forget in ("ga", "random_labels", "adversarial_labels")
        } | {
            ("ga", retain, source)
            for retain in ("nll", "kl")
            for source in ("in_distribution", "general")
        }


# Pages


def rows_of(page: str) -> list[list[str]]:
    """Cells of every table row of a Markdown page, headings and rulers left out."""
    lines = page.splitlines()
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line, below in zip(lines, [*lines[1:], ""], strict=True)
        if line.startswith("|") and not line.startswith("|--") and not below.startswith("|--")
    ]


def named_keys() -> set[str]:
    """Dotted keys in the first column of the README: ```a.b`, `c``` names ``a.b`` and ``a.c``."""
    found = set()
    for cells in rows_of(README):
        names = re.findall(r"`([^`]+)`", cells[0])
        if any(name.endswith(".yaml") for name in names):
            continue
        section = names[0].rpartition(".")[0]
        found |= {names[0]} | {f"{section}.{name}" if section else name for name in names[1:]}
    return found


ELSEWHERE = ("engine.ranks", "engine.threads", "data.approximate")
"""What a sweep names in ``resources``, and a role that may be absent: its keys are those of every role."""


def keys_of_a_file() -> set[str]:
    """Every key that a sweep file may hold: fields of a trial, and the sweep's own."""
    trial = {
        re.sub(r"^data\.(forget|retain|approximate|general)\.", "data.ROLE.", path)
        for path in leaf_fields(TrialConfig)
        if not path.startswith("selection.") and path not in ELSEWHERE
    }
    sweep = {
        "schema" if path == "schema_version" else path
        for path in leaf_fields(SweepSpec)
        if path not in FIXED_SECTIONS
    }
    return trial | sweep


def test_the_readme_names_every_key_and_no_other() -> None:
    assert named_keys() == keys_of_a_file()


def test_the_readme_names_every_file_and_no_other() -> None:
    named = {name for cells in rows_of(README) for name in re.findall(r"`([^`]+\.yaml)`", cells[0])}
    assert named == set(FILES)


def method_rows() -> dict[str, list[str]]:
    """Rows of the table of methods: name to its other cells."""
    return {cells[0]: cells[1:] for cells in rows_of(METHODS_PAGE) if cells[0] in METHODS}


def test_the_page_of_methods_has_a_row_for_each_named_method() -> None:
    assert set(method_rows()) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_says_the_combination_and_files_that_hold_it(method: str) -> None:
    forget, retain, _, own, files, _ = method_rows()[method]
    wanted = METHODS[method]
    assert forget == f"`{wanted['forget_loss']}`"
    assert retain.startswith(f"`{wanted['retain_loss']}`")
    assert ("general" in retain) == (wanted.get("retain_source") == "general")
    section = wanted["forget_loss"]
    if section in MethodConfig.model_fields:
        fields = type(getattr(MethodConfig(forget_loss="ga"), section)).model_fields
        assert set(re.findall(r"`([^`]+)`", own)) == {f"{section}.{name}" for name in fields}
    names = re.findall(r"`([^`]+\.yaml)`", files)
    assert names
    # the shipped texts hold no alternatives of their own, so no file can ask for them
    parts = {f"method.{k}": v for k, v in wanted.items() if k != "alternatives"}
    for name in names:
        assert any(parts.items() <= found.items() for found in combinations(name)), name


def test_the_page_of_methods_gives_every_hyperparameter_its_default() -> None:
    defaults = {
        f"{section}.{name}": getattr(getattr(MethodConfig(forget_loss="ga"), section), name)
        for section, name in (
            path.split(".") for path in leaf_fields(MethodConfig) if path.count(".") == 1
        )
    }
    found = {
        cells[0].strip("`"): cells[1]
        for cells in rows_of(METHODS_PAGE)
        if cells[0].strip("`") in defaults
    }
    written = {
        path: "a third of the depth" if v is None else f"{v:g}" for path, v in defaults.items()
    }
    assert found == written


def test_the_page_of_data_names_every_family_of_named_sources() -> None:
    from core.data.benchmarks import NAMED

    assert {family for family in NAMED if f"`{family}:" in DATA_PAGE} == NAMED


# Training


def tiny(name: str, model: Path, data: Mapping[str, Path]) -> SweepSpec:
    """The file with its model and data replaced; what names blocks of its model goes with them."""
    values = read_yaml(FILES[name])
    values["model"] = {"source": str(model)}
    values["data"] = {role: {"source": str(data[role]), "max_tokens": 64} for role in ROLES} | {
        "probe_rows": 6,
        "report_rows": 6,
    }
    values["resources"] = {}
    return parse_sweep(values, where=name)


def two_steps(spec: SweepSpec, proposal: Proposal) -> TrialConfig:
    """The proposal's trial, cut down to the size of the tiny model and to two steps."""
    values = bind(spec, proposal, where=spec.name).model_dump()
    values["engine"] |= {"dtype": "fp32", "device": "cpu", "zero_stage": 1, "offload": "none"}
    values["selection"] |= {"max_steps": 2, "probe_every": 1}
    none = ("past_target", "no_effect", "retain_guard")
    values["selection"] |= dict.fromkeys(none)  # nothing ends it early
    values["adapter"] |= {"rank": min(4, values["adapter"]["rank"]), "layers": None}
    whole = values["batch"]["whole_forget_set"]
    values["batch"] = {"micro_batch_size": 4} | (
        {"whole_forget_set": True} if whole else {"global_batch_size": 4}
    )
    values["optimizer"]["warmup_steps"] = 0  # a rate of zero would not train
    values["method"]["rmu"]["layer"] = 0  # the only block before the last
    values["method"]["pdu"]["warmup_steps"] = 0  # the dual variable moves within the two steps
    return parse_trial(values, where=spec.name)


@pytest.fixture(scope="module")
def warm() -> Warm:
    return Warm()


def assert_trains(config: TrialConfig, warm: Warm, folder: Path) -> None:
    result = run_trial(config, GuardReporter(config.selection), folder=folder, warm=warm)
    assert [p.step for p in result.probes] == [1, 2]
    assert all(math.isfinite(v) for p in result.probes for v in p.metrics.values())
    losses = [p.metrics["forget_nll"] for p in result.probes]
    assert losses[0] != losses[1]  # the second step changed the model


@pytest.mark.integration
@each_file
def test_the_first_proposal_trains(
    name: str, tiny_model: Path, tiny_data: Mapping[str, Path], warm: Warm, tmp_path: Path
) -> None:
    spec = tiny(name, tiny_model, tiny_data)
    assert_trains(two_steps(spec, next(iter(corner_proposals(spec)))), warm, tmp_path)


@pytest.mark.integration
@pytest.mark.parametrize("loss", get_args(ForgetLossId))
def test_every_forget_loss_of_the_overview_trains(
    loss: str, tiny_model: Path, tiny_data: Mapping[str, Path], warm: Warm, tmp_path: Path
) -> None:
    spec = tiny("methods.yaml", tiny_model, tiny_data)
    proposal = next(p for p in corner_proposals(spec) if p["method.forget_loss"] == loss)
    assert_trains(two_steps(spec, proposal), warm, tmp_path)
