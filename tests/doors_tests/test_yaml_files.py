"""A YAML file of any encoding and shape is read, or refused by every verb that takes one, with its line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Command, is_refused
from small_sweep import spec_of, values

from core.config import SourceConfig, TrialConfig, with_numbers
from core.config.evaluation import EvaluationData
from tuning.files import read_yaml
from tuning.strict_yaml import MOST_VALUES, load

BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9)
)

NO_SWEEP = [
    pytest.param("name: \xe4\n".encode("latin-1"), "line 1: is not UTF-8, got the byte 0xe4", id="latin-1"),
    pytest.param("name: x\n".encode("utf-16"), "line 1: is not UTF-8 but UTF-16", id="utf-16"),
    pytest.param(gzip.compress(b"name: x\n"), "line 1: is not UTF-8: it is a gzip archive", id="gzip"),
    pytest.param(b"a: 1\nb: \0\n", "line 2: is not text in UTF-8: it holds a NUL", id="nul"),
    pytest.param(b"a: 1\nb: [1\n", "not YAML: line 3, column 1: expected ',' or ']'", id="open"),
    pytest.param(b"a:\tx\n\tb: 1\n", "not YAML: line 1, column 3: found character", id="tab"),
    pytest.param(b"a: " + b"[" * 3000 + b"]" * 3000, "not YAML: it is nested too deeply", id="deep"),
    pytest.param(BOMB.encode(), f"make it more than {MOST_VALUES} values", id="unfolding"),
    pytest.param(b"a: &x [*x]\n", "line 1, column 4: an alias (*name) stands in what it names", id="cycle"),
    pytest.param(b"a: &x {<<: *x}\n", "an alias (*name) stands in what it names", id="merged-cycle"),
    pytest.param(b"a: *x\n", "found undefined alias 'x'", id="no-such-alias"),
    pytest.param(b"<<: 3\n", "line 1, column 5: expected a mapping or list of mappings", id="merged-number"),
    pytest.param(b"b: 1\na: 2026-02-30\n", "line 2, column 4: a value cannot be read: day is", id="no-date"),
    pytest.param(b"a: " + b"9" * 5000, "a value cannot be read: Exceeds the limit", id="digits"),
    pytest.param(b"a: !!int x\n", "a value cannot be read: invalid literal", id="no-integer"),
    pytest.param(b"a: !!python/name:os.system\n", "could not determine a constructor", id="object"),
    pytest.param(b"a: 1\n---\nb: 2\n", "but found another document", id="two-documents"),
    pytest.param(b"a: 1\nb: 1\na: 2\n", "not YAML: line 3: key 'a' is given twice; keep one", id="twice"),
    pytest.param(b"2026-01-01: x\nschema: 1\n", "2026-01-01: unknown key", id="a-date-as-key"),
    pytest.param(b"? !!binary aGk=\n: x\nschema: 1\n", "b'hi': unknown key", id="bytes-as-key"),
    pytest.param(b"~: x\nschema: 1\n", "None: unknown key", id="nothing-as-key"),
    pytest.param(b"schema: 1\nmodel: [1]\n", "model: Input should be a valid dictionary, got [1]", id="list"),
    pytest.param(b"schema: 1\nspace: 3\n", "space: Input should be a valid dictionary, got 3", id="number"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "problem"), NO_SWEEP)
def test_what_is_no_sweep_file_is_refused_with_its_line(
    tune: Command, content: bytes, problem: str
) -> None:
    Path("file.yaml").write_bytes(content)
    is_refused(tune("sweep", "file.yaml"), "error: file.yaml: ", problem)


@pytest.mark.parametrize(
    "arguments",
    [
        ("validate", "file.yaml"),
        ("sweep", "file.yaml", "--dry-run"),
        ("train", "file.yaml", "--out", "x"),
        ("prepare", "file.yaml"),
        ("evaluate", "package:smollm2", "--suite", "probes", "--data", "file.yaml"),
    ],
    ids=lambda a: a[0],
)
def test_every_verb_refuses_a_file_that_is_no_text(
    tune: Command, arguments: tuple[str, ...]
) -> None:
    Path("file.yaml").write_bytes("name: x\n".encode("utf-16"))
    is_refused(tune(*arguments), "file.yaml: 1 problem\n  - line 1: is not UTF-8 but UTF-16")
    Path("file.yaml").unlink()
    Path("file.yaml").mkdir()
    is_refused(tune(*arguments), "file.yaml: 1 problem\n  - is a folder; name a file")


def test_a_name_that_no_file_can_have_is_refused(tune: Command) -> None:
    is_refused(tune("validate", "x" * 300), ": File name too long; give a shorter path")


@pytest.mark.parametrize(
    "pair", ["adapter.rank=[1", "seed=2026-02-30", "a=" + "[" * 3000, "a={b: 1, b: 2"]
)
def test_a_value_of_set_is_yaml(tune: Command, pair: str) -> None:
    Path("file.yaml").write_text(yaml.safe_dump(values()), encoding="utf-8")
    is_refused(tune("sweep", "file.yaml", "--set", pair), "error: --set ", "not a YAML value")


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(lambda text: text.encode("utf-8-sig"), id="byte-order-mark"),
        pytest.param(lambda text: text.replace("\n", "\r\n").encode(), id="windows-lines"),
        pytest.param(lambda text: text.encode().rstrip(b"\n"), id="no-last-line-end"),
    ],
)
def test_a_file_as_an_editor_leaves_it_is_read(tmp_path: Path, encoded: Any) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(encoded(yaml.safe_dump(values())))
    assert read_yaml(path) == values()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("c: {<<: *a, x: 3}", {"x": 3, "y": 2}, id="a-key-beside-wins"),
        pytest.param("c: {x: 3, <<: *a}", {"x": 3, "y": 2}, id="also-before"),
        pytest.param("c: {<<: [*a, *b]}", {"x": 1, "y": 2, "z": 4}, id="the-first-of-a-list-wins"),
        pytest.param(
            "c: &c {<<: *a, x: 3}\nd: {<<: *c, y: 5}", {"x": 3, "y": 2}, id="of-a-merged-one"
        ),
    ],
)
def test_merge_keys_merge_as_in_safe_yaml(text: str, expected: dict[str, int]) -> None:
    whole = f"a: &a {{x: 1, y: 2}}\nb: &b {{x: 9, z: 4}}\n{text}\n"
    found, duplicates = load(whole, allows_aliases=True)
    assert found["c"] == expected == yaml.safe_load(whole)["c"]
    assert found == yaml.safe_load(whole)
    assert duplicates == ()


@pytest.mark.parametrize("text", ["{<<: *a, x: 1, x: 2}", "{<<: *a, <<: *a}"])
def test_a_key_that_stands_twice_beside_a_merge_is_noted(text: str) -> None:
    _, duplicates = load(f"a: &a {{x: 1}}\nc: {text}\n", allows_aliases=True)
    assert len(duplicates) == 1


# Numbers that YAML reads as text

SWEEP = """
schema: 1
name: 1e5
model: {source: "package:smollm2", revision: 71e5672}
data:
  forget: {source: "embedded:forget", n: 1e2, max_tokens: 6.4e1}
  retain: {source: "embedded:retain"}
  approximate: {source: "embedded:approximate"}
  general: {source: "embedded:general"}
  probe_rows: 1e1
  report_rows: {retain: 2E1, general: 2e+1}
method: {forget_loss: npo}
optimizer: {weight_decay: 1e-2, epsilon: 1e-9, warmup_steps: 1e1}
engine: {packing: 2e0, threads_: 1}
seed: 1e3
space:
  optimizer.learning_rate: {float: {low: 1e-5, high: 1E-2, log: true}, why: x}
  method.npo.beta: {categorical: [1e-1, 5e-1], why: x}
  adapter.rank: {categorical: [4, 8e0], why: x}
  method.retain_weight: {float: {low: 1e-1, high: 1e0}, why: x, when: {adapter.rank: [8e0]}}
start_from: [{source: x, values: {optimizer.learning_rate: 1e-3, adapter.rank: 8e0, method.npo.beta: 1e-1}}]
constraints: [{metric: retain_drop, at_most: 1e-1}]
stop: {when: {el_10: 5e-2}}
pruning: {retain: {limit: 1e-1, hard_limit: 5e-1}}
budget: {trials: 2e1, max_steps: 1.2e1}
resources: {gpus_per_rank: 0e0, max_concurrent: 2e0}
"""


def test_a_number_without_a_point_is_one_wherever_a_number_is_meant(tmp_path: Path) -> None:
    from tuning.files import load_sweep

    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP.replace(", threads_: 1", ""), encoding="utf-8")
    spec = load_sweep(path)
    data = spec.trial_data()
    assert (data.forget.n, data.forget.max_tokens) == (100, 64)
    assert (data.probe_rows.general, data.report_rows.retain, data.report_rows.general) == (
        10,
        20,
        20,
    )
    assert spec.optimizer == {"weight_decay": 1e-2, "epsilon": 1e-9, "warmup_steps": 10}
    assert (spec.seed, spec.budget.trials, spec.budget.max_steps) == (1000, 20, 12)
    assert (spec.resources.gpus_per_rank, spec.resources.max_concurrent) == (0.0, 2)
    assert spec.trial_engine().packing == 2
    assert spec.space["method.npo.beta"].categorical == (0.1, 0.5)
    assert spec.space["adapter.rank"].categorical == (4, 8)
    assert spec.space["method.retain_weight"].when == {"adapter.rank": (8,)}
    assert spec.start_from[0].values == {
        "optimizer.learning_rate": 1e-3, "adapter.rank": 8, "method.npo.beta": 0.1
    }  # fmt: skip
    assert spec.constraints[0].at_most == 0.1
    assert spec.stop.when == {"el_10": 0.05}
    assert spec.pruning.retain is not None and spec.pruning.retain.hard_limit == 0.5


def test_where_text_is_meant_it_stays_text(tmp_path: Path) -> None:
    spec = spec_of({"name": "1e5", "model.revision": "71e5672"})
    assert (spec.name, spec.model["revision"]) == ("1e5", "71e5672")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 1e-4), ("1E4", 10_000), ("-2.5e+1", -25), ("+.5e0", 0.5), ("3", 3), ("1.", 1),
        ("e4", "e4"), ("1e", "1e"), ("1e-4x", "1e-4x"), ("0x10", "0x10"), ("1_000", "1_000"),
        ("nan", "nan"), ("inf", "inf"), ("", ""), ("1 e4", "1 e4"), ("\u0661", "\u0661"),
    ],
)  # fmt: skip
def test_what_is_a_number(text: str, expected: object) -> None:
    read = with_numbers({"optimizer": {"learning_rate": text}}, TrialConfig)
    assert read == {"optimizer": {"learning_rate": expected}}
    assert type(read["optimizer"]["learning_rate"]) is type(expected)


def test_every_file_that_has_numbers_reads_them_so() -> None:
    assert with_numbers({"forget": {"n": "1e1", "split": "1e1"}}, EvaluationData) == {
        "forget": {"n": 10, "split": "1e1"}
    }
    assert with_numbers({"n": None, "max_tokens": True}, SourceConfig) == {
        "n": None,
        "max_tokens": True,
    }


def test_a_number_of_set_needs_no_point(tune: Command, tiny_sweep: dict[str, Any]) -> None:
    Path("sweep.yaml").write_text(yaml.safe_dump(tiny_sweep), encoding="utf-8")
    pairs = ("--set", "optimizer.weight_decay=1e-2", "--set", "budget.max_steps=1e1")
    found = tune("sweep", "sweep.yaml", "--dry-run", "--json", *pairs).json["spec"]
    assert (found["optimizer"]["weight_decay"], found["budget"]["max_steps"]) == (0.01, 10)
