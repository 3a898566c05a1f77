"""What was measured of a guideline, kept as JSON beside its page, and the verdicts of the whole set."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.errors import DataError, FileError
from core.store.durable import commit_json, finite
from core.store.texts import read_json
from tuning.guidelines.catalogue import Guideline, guidelines
from tuning.guidelines.findings import Findings, PerUnit
from tuning.guidelines.inference import Compared, Verdict, held_against, joint_p, verdict
from tuning.knobs import holm
from tuning.plots.guideline import Line, LinesData


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was measured of a guideline under a preset.

    Attributes:
        id: The guideline's.
        preset: The preset.
        date: UTC date of the measurement.
        machine: What computed, in words.
        commands: Commands that measure it again.
        subject: Model, data, methods and budget, or the published trials, in sentences.
        findings: What the statistic gave.
        minutes: Minutes that the sweeps took, those shared with other guidelines included; ``None`` without sweeps.
    """

    id: str
    preset: str
    date: str
    machine: str
    commands: Sequence[str]
    subject: Sequence[str]
    findings: Findings
    minutes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A record with what follows from it and from the others of the set.

    Attributes:
        guideline: The guideline.
        record: What was measured; ``None`` if nothing was.
        tested: Each effect against its rule.
        p: Two-sided p-value of the guideline.
        adjusted_p: The same after Holm's correction over all guidelines of the set.
        verdict: What follows; ``None`` if nothing was measured.
    """

    guideline: Guideline
    record: Record | None = None
    tested: Mapping[str, Compared] = field(default_factory=dict)
    p: float = 1.0
    adjusted_p: float = 1.0
    verdict: Verdict | None = None


def record_path(folder: Path, guideline: Guideline) -> Path:
    """Where a guideline's record lies."""
    return folder / f"{guideline.number:02d}-{guideline.id}.json"


def commit_record(path: Path, record: Record) -> None:
    """Write a record."""
    commit_json(path, finite(asdict(record)))


def read_record(path: Path) -> Record:
    """Read a record.

    Raises:
        DataError: If it is none.
    """
    try:
        values = read_json(path)
        found = values.pop("findings")
        return Record(**values, findings=_findings(found))
    except (FileError, ValueError, TypeError, KeyError, AttributeError) as err:
        raise DataError(
            f"{path}: no record of a guideline ({err!r}); remove it, or measure the guideline again"
        ) from err


def judged(folder: Path) -> list[Judged]:
    """All guidelines with their verdicts, as far as records lie in a folder.

    Holm's correction is over the whole set: a guideline that was not measured counts as one with a p-value of 1.

    Raises:
        DataError: If a record cannot be read, or was measured by other rules.
    """
    measured: dict[str, tuple[Record, dict[str, Compared]]] = {}
    for guideline in guidelines():
        path = record_path(folder, guideline)
        if path.is_file():
            record = read_record(path)
            measured[guideline.id] = record, _tested(guideline, record, path)
    p_values = {name: joint_p([*tested.values()]) for name, (_, tested) in measured.items()}
    adjusted = holm(p_values, total=len(guidelines()))
    found = []
    for guideline in guidelines():
        if guideline.id not in measured:
            found.append(Judged(guideline=guideline))
            continue
        record, tested = measured[guideline.id]
        found.append(
            Judged(
                guideline=guideline,
                record=record,
                tested=tested,
                p=p_values[guideline.id],
                adjusted_p=adjusted[guideline.id],
                verdict=verdict([*tested.values()], adjusted_p=adjusted[guideline.id]),
            )
        )
    return found


def listing(found: Sequence[Judged]) -> list[dict[str, Any]]:
    """``reproduce --json``, the binding shape."""
    return [
        {
            "id": one.guideline.id,
            "claim": one.guideline.claim,
            "source": one.guideline.source,
            "verdict": one.verdict,
        }
        for one in found
    ]


def _tested(guideline: Guideline, record: Record, path: Path) -> dict[str, Compared]:
    effects = record.findings.effects
    if set(effects) != set(guideline.verdict):
        raise DataError(
            f"{path}: has the effects {', '.join(effects)}, and the guideline has rules for "
            f"{', '.join(guideline.verdict)}; measure it again"
        )
    return {
        name: held_against(list(effects[name].values()), rule.region)
        for name, rule in guideline.verdict.items()
    }


def _findings(values: Mapping[str, Any]) -> Findings:
    return Findings(
        effects={name: _numbers(found) for name, found in values["effects"].items()},
        details={name: _numbers(found) for name, found in values["details"].items()},
        figures=[_lines(found) for found in values["figures"]],
        remarks=list(values["remarks"]),
    )


def _lines(values: Mapping[str, Any]) -> LinesData:
    lines = tuple(
        Line(
            label=line["label"],
            x=tuple(map(float, line["x"])),
            y=tuple(map(float, line["y"])),
        )
        for line in values["lines"]
    )
    return LinesData(**(dict(values) | {"lines": lines}))


def _numbers(values: Mapping[str, Any]) -> PerUnit:
    """Numbers by unit; what JSON cannot hold is text."""
    return {name: float(value) for name, value in values.items()}
