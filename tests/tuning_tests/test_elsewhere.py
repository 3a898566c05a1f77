"""Names that fields have in other tools lead to ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from small_sweep import WHY, problems

from core.config import SourceConfig, TrialConfig
from core.config.elsewhere import ELSEWHERE
from tuning.config import SweepSpec
from tuning.space import leaf_fields

PAGE = Path(__file__).resolve().parents[2] / "docs" / "names.md"


def field_of(words: str) -> str:
    return re.split("[,;]", words)[0]


def fields() -> set[str]:
    """Fields of a sweep file by their dotted paths."""
    of_a_role = {f"data.ROLE.{name}" for name in SourceConfig.model_fields}
    return leaf_fields(TrialConfig).keys() | leaf_fields(SweepSpec).keys() | of_a_role


@pytest.mark.parametrize("name", ELSEWHERE)
def test_it_leads_to_a_field_that_there_is(name: str) -> None:
    assert field_of(ELSEWHERE[name]) in fields()


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_page_of_names_says_the_same(name: str) -> None:
    ours = ELSEWHERE[name]
    row = rf"\| [^|]*`{re.escape(name)}`[^|]* \| `{field_of(ours)}`{re.escape(ours[len(field_of(ours)) :])} \|"
    assert re.search(row, PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            {"lora_alpha": 16},
            "lora_alpha: unknown key; here it is adapter.scaling, which is alpha / rank.",
            id="at-the-top",
        ),
        pytest.param(
            {"optimizer": {"max_grad_norm": 1.0}},
            "optimizer.max_grad_norm: unknown key; here it is optimizer.gradient_clipping.",
            id="in-a-section",
        ),
        pytest.param(
            {"data.forget.cutoff_len": 512},
            "data.forget.cutoff_len: unknown key; here it is data.ROLE.max_tokens.",
            id="in-a-role",
        ),
    ],
)
def test_whoever_writes_it_is_told_ours(changes: dict[str, Any], expected: str) -> None:
    assert expected in problems(changes)


def test_whoever_searches_it_is_told_ours() -> None:
    (found,) = problems(space={"lora_alpha": {"categorical": [16, 32]} | WHY})
    assert found == (
        "space.lora_alpha: is no searchable field of a trial; here it is adapter.scaling, which is alpha / rank"
    )
