"""The page of every key is what its script makes of the classes that check the files."""

from __future__ import annotations

import runpy
from pathlib import Path

from tuning.space import searchable_fields

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"


def test_the_page_is_up_to_date() -> None:
    made = runpy.run_path(str(FOLDER / "generate.py"))["page"]()
    assert (FOLDER / "configuration.md").read_text("utf-8") == made, "run: make reference"


def test_every_searchable_field_is_on_the_page() -> None:
    text = (FOLDER / "configuration.md").read_text("utf-8")
    for path in searchable_fields():
        section, _, field = path.rpartition(".")
        assert f"### `{section}`" in text or not section
        assert f"| `{field}` |" in text
