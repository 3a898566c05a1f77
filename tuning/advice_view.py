"""A tuning guide for the terminal."""

from collections.abc import Sequence

from rich.console import Group
from rich.text import Text

from tuning.advice import HEADINGS, Advice
from tuning.config import Dimension
from tuning.space import describe


def advice_text(found: Advice) -> Group:
    """The guide: its sentences under their headings, and the trials that each rests on."""
    parts: list[Text] = [Text(f"{', '.join(found.runs)}: {found.n_trials} finished trials")]
    for section, title in HEADINGS.items():
        of = [finding for finding in found.findings if finding.section == section]
        if of:
            parts.append(Text(f"\n{title}", style="bold"))
        for finding in of:
            named = f"  [trials {_joined(finding.trials)}]" if finding.trials else ""
            text = Text("- ", style="" if finding.is_shown else "dim")
            text.append(finding.text)
            text.append(named, style="dim")
            parts.append(text)
    parts.append(Text("\nThe next sweep", style="bold"))
    for name, range_ in found.next_sweep["space"].items():
        parts.append(Text(f"- {name}: {describe(Dimension.model_validate(range_))}"))
    return Group(*parts)


def _joined(labels: Sequence[str]) -> str:
    """``0 to 4, 7``: three trials and more in a row by the first and the last of them."""
    if not all(label.isdecimal() for label in labels):
        return ", ".join(labels)
    rows: list[list[int]] = []
    for number in map(int, labels):
        if rows and number == rows[-1][-1] + 1:
            rows[-1].append(number)
        else:
            rows.append([number])
    return ", ".join(
        f"{row[0]} to {row[-1]}" if len(row) > 2 else ", ".join(map(str, row)) for row in rows
    )
