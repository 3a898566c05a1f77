"""``--set`` fixes a searched field: the sweep searches the others, and says what became of starting points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from small_sweep import WHY, conditional, values, write

from core.errors import ConfigError
from tuning.config import SweepSpec
from tuning.files import load_sweep

RATE, RANK = "optimizer.learning_rate", "adapter.rank"


def pinned(folder: Path, overrides: Mapping[str, Any], **changes: Any) -> SweepSpec:
    return load_sweep(write(folder, values(**changes)), overrides=overrides)


def test_a_pinned_field_is_fixed_and_not_searched(tmp_path: Path) -> None:
    spec = pinned(tmp_path, {RANK: 8})
    assert list(spec.space) == [RATE]
    assert spec.adapter == {"rank": 8}


def test_it_may_lie_outside_the_range_that_was_searched(tmp_path: Path) -> None:
    assert pinned(tmp_path, {RANK: 64}).adapter == {"rank": 64}


@pytest.mark.parametrize(
    ("init", "searched"),
    [("fila", [RATE, RANK, "fisher.exponent"]), ("lora", [RATE, RANK])],
    ids=["as-they-wait-for", "another"],
)
def test_ranges_that_wait_for_it_are_searched_or_left_out(
    tmp_path: Path, init: str, searched: list[str]
) -> None:
    space = conditional({"method.adapter_init": "fila"})
    spec = pinned(tmp_path, {"method.adapter_init": init}, space=space)
    assert set(spec.space) == set(searched)
    assert not any(dimension.when for dimension in spec.space.values())


def test_what_waits_for_a_range_that_is_left_out_is_left_out_too(tmp_path: Path) -> None:
    space = {
        "method.adapter_init": {"categorical": ["lora", "fila"]} | WHY,
        "fisher.exponent": {"categorical": [0.0, 0.5], "when": {"method.adapter_init": "fila"}}
        | WHY,
        "fisher.floor": {"categorical": [1e-3, 1e-2], "when": {"fisher.exponent": 0.5}} | WHY,
    }
    spec = pinned(tmp_path, {"method.adapter_init": "lora"}, space=space)
    assert set(spec.space) == {RATE, RANK}


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        pytest.param({RATE: 1e-3, RANK: 8}, [("a paper", {RATE: 1e-3})], id="the-same-value"),
        pytest.param(
            {RATE: 1e-3, RANK: 16},
            [("a paper, with adapter.rank 8 instead of 16", {RATE: 1e-3})],
            id="another-value",
        ),
        pytest.param({RATE: 1e-3}, [("a paper", {RATE: 1e-3})], id="no-value"),
        pytest.param({RANK: 16}, [], id="nothing-else"),
    ],
)
def test_a_starting_point_keeps_what_is_still_searched_and_says_what_differs(
    tmp_path: Path, start: Mapping[str, Any], expected: list[tuple[str, dict[str, Any]]]
) -> None:
    changes = {"start_from": [{"source": "a paper", "values": dict(start)}]}
    spec = pinned(tmp_path, {RANK: 8}, changes=changes)
    assert [(point.source, point.values) for point in spec.start_from] == expected


def test_a_misspelt_field_of_a_starting_point_is_still_refused(tmp_path: Path) -> None:
    changes = {"start_from": [{"source": "a paper", "values": {RANK: 4, "adapter.rnk": 4}}]}
    with pytest.raises(ConfigError, match="'adapter.rnk' is not searched here"):
        pinned(tmp_path, {RANK: 8}, changes=changes)


def test_to_pin_the_last_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--set adapter\.rank: leaves nothing to search; .*train"
    ):
        pinned(tmp_path, {RATE: 1e-3, RANK: 8})
