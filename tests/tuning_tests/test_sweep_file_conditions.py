"""A field of a sweep file may be searched under a condition on another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from small_sweep import WHY, conditional, problems, spec_of

from tuning.config import Dimension
from tuning.space import corner_proposals, is_active, ordered_dimensions


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        pytest.param(
            {"method.adapter_initt": "fila"},
            "space.fisher.exponent.when: 'method.adapter_initt' is not searched here; "
            "did you mean 'method.adapter_init'?",
            id="unknown-parent",
        ),
        pytest.param(
            {"method.adapter_init": "svd"},
            "space.fisher.exponent.when: method.adapter_init never is 'svd'; "
            "its choices are 'lora', 'fila'",
            id="value-that-is-never-taken",
        ),
        pytest.param(
            {"method.adapter_init": ["fila", "svd"]},
            "method.adapter_init never is 'svd'",
            id="one-of-several-is-never-taken",
        ),
        pytest.param(
            {"optimizer.learning_rate": 0.001},
            "space.fisher.exponent.when: 'optimizer.learning_rate' is not categorical",
            id="condition-on-a-range",
        ),
    ],
)
def test_a_condition_names_a_choice_of_a_searched_field(
    when: Mapping[str, Any], expected: str
) -> None:
    assert expected in "\n".join(problems(space=conditional(when)))


def test_conditions_do_not_form_a_circle() -> None:
    space = {
        "method.adapter_init": {"categorical": ["lora", "fila"], "when": {"adapter.rank": 4}} | WHY,
        "adapter.rank": {"categorical": [4, 8], "when": {"method.adapter_init": "lora"}} | WHY,
    }
    found = problems(space=space)
    assert len(found) == 1
    assert "conditions in `when` form a circle" in found[0]
    assert "adapter.rank" in found[0] and "method.adapter_init" in found[0]


def test_a_parent_comes_before_its_child_wherever_it_stands() -> None:
    space = {
        "fisher.exponent": {"categorical": [0.5, 1.0], "when": {"method.adapter_init": "fila"}}
        | WHY,
        "method.adapter_init": {"categorical": ["lora", "fila"]} | WHY,
    }
    order = list(ordered_dimensions(spec_of(space=space)))
    assert order.index("method.adapter_init") < order.index("fisher.exponent")


def test_corners_take_a_conditional_field_only_under_its_condition() -> None:
    spec = spec_of(space=conditional({"method.adapter_init": "fila"}))
    corners = list(corner_proposals(spec))
    assert {c["method.adapter_init"] for c in corners} == {"lora", "fila"}
    for corner in corners:
        assert ("fisher.exponent" in corner) == (corner["method.adapter_init"] == "fila")


def test_a_condition_may_list_several_values() -> None:
    dimension = Dimension.model_validate(
        {"categorical": [1], "why": "x", "when": {"a": ["p", "q"], "b": True}}
    )
    assert is_active(dimension, {"a": "q", "b": True})
    assert not is_active(dimension, {"a": "r", "b": True})
    assert not is_active(dimension, {"a": "p"})
