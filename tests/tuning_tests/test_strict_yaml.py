"""YAML is data: each key once, plain values, aliases where they are allowed."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tuning.strict_yaml import load


@pytest.mark.parametrize("allows_aliases", [True, False])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("a: 1\nb: [x, 2.5, null]\n", {"a": 1, "b": ["x", 2.5, None]}),
        ("a: {b: 1}\nc: {b: 2}\n", {"a": {"b": 1}, "c": {"b": 2}}),
    ],
)
def test_plain_values_are_read(text: str, expected: Any, allows_aliases: bool) -> None:
    assert load(text, allows_aliases=allows_aliases) == (expected, ())
    assert load(text.encode(), allows_aliases=allows_aliases) == (expected, ())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("a: 1\na: 2\n", [("a", 2)], id="top"),
        pytest.param("x:\n  a: 1\n  a: 2\n", [("a", 3)], id="nested"),
        pytest.param("a: 1\nb: 2\na: 3\na: 4\n", [("a", 3), ("a", 4)], id="three-times"),
        pytest.param("- {a: 1, a: 2}\n- {a: 1}\n", [("a", 1)], id="in-a-list"),
        pytest.param("1: x\n0x1: y\n", [("0x1", 2)], id="one-value-in-two-spellings"),
        pytest.param('1: x\n"1": y\n', [], id="a-number-and-a-string"),
    ],
)
def test_keys_that_stand_again_are_noted(text: str, found: list[tuple[str, int]]) -> None:
    _, duplicates = load(text, allows_aliases=False)
    assert [(again.written, again.line) for again in duplicates] == found


def test_an_alias_is_read_where_it_is_allowed() -> None:
    assert load("a: &x [1]\nb: *x\n", allows_aliases=True) == ({"a": [1], "b": [1]}, ())


def test_an_alias_is_refused_where_it_is_not_allowed() -> None:
    with pytest.raises(yaml.MarkedYAMLError, match=r"an alias \(\*name\) is not allowed") as caught:
        load("a: &x [1]\nb: *x\n", allows_aliases=False)
    assert caught.value.problem_mark is not None and caught.value.problem_mark.line == 1


@pytest.mark.parametrize("allows_aliases", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a: [1, 2\n", id="broken"),
        pytest.param("a: !!python/object/apply:os.system [ls]\n", id="object"),
        pytest.param("a: !!python/name:os.system\n", id="name"),
        pytest.param("? [a]\n: 1\n", id="a-list-as-a-key"),
        pytest.param("a: 1\n---\nb: 2\n", id="two-documents"),
    ],
)
def test_anything_else_is_refused(text: str, allows_aliases: bool) -> None:
    with pytest.raises(yaml.YAMLError):
        load(text, allows_aliases=allows_aliases)
