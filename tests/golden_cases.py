"""Reads the golden cases, and keeps what each comparison found for the table of ``make parity``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Comparison:
    """One quantity of ours against one of the reference (or of its derivation)."""

    case: str
    reference: str
    quantity: str
    difference: float
    is_deviation: bool


COMPARISONS: list[Comparison] = []
"""Every comparison of this process, in order."""


@dataclass(frozen=True)
class Variant:
    """One set of inputs and outputs of a case."""

    case: "Case"
    name: str
    params: Mapping[str, Any]
    inputs: Mapping[str, Any]
    expected: Mapping[str, Any]
    derived: Mapping[str, Any]
    tolerance: Mapping[str, Any]

    def tensor(self, entry: Any) -> Tensor:
        """A manifest value as a tensor: floats as float32 or float64 as stored, integers as int64."""
        raw = torch.as_tensor(np.asarray(self.case.array(entry)))
        return raw if raw.is_floating_point() or raw.dtype == torch.bool else raw.long()

    def part(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Logits with gradient, reference logits and labels of ``forget``, ``retain`` or ``alt``."""
        at = f"{self.params['set']}/{name}"
        inputs = self.case.loss_inputs
        return (
            torch.from_numpy(inputs[f"{at}.logits"]).requires_grad_(),
            torch.from_numpy(inputs[f"{at}.ref_logits"]),
            torch.from_numpy(inputs[f"{at}.labels"]).long(),
        )

    def agrees(
        self, found: Any, quantity: str, *, kind: str = "values", derived: bool = False
    ) -> None:
        """Assert that ``found`` is the reference's (or the derived) ``quantity`` within tolerance."""
        table = self.derived if derived else self.expected
        self._compare(found, table[quantity], quantity, kind=kind)

    def agrees_with(self, found: Any, value: Any, quantity: str, *, kind: str = "values") -> None:
        """As :meth:`agrees`, for a value that is put together from several of the manifest's."""
        self._compare(found, value, quantity, kind=kind)

    def deviates(self, found: Any, quantity: str, *, by: float) -> None:
        """Assert that ``found`` differs from the reference on purpose, by more than ``by`` somewhere."""
        ours, theirs = self._pair(found, self.expected[quantity])
        difference = float(np.nanmax(np.abs(ours - theirs)))
        COMPARISONS.append(
            Comparison(self.case.name, self.case.reference, quantity, difference, True)
        )
        assert difference > by, (self.case.name, self.name, quantity, difference)

    def _compare(self, found: Any, entry: Any, quantity: str, *, kind: str) -> None:
        ours, theirs = self._pair(found, entry)
        if ours.size:
            difference = float(np.max(np.nan_to_num(np.abs(ours - theirs), nan=0.0)))
            COMPARISONS.append(
                Comparison(self.case.name, self.case.reference, quantity, difference, False)
            )
        tolerance = self.tolerance.get(kind, "exact")
        limits = {"rtol": 0.0, "atol": 0.0} if tolerance == "exact" else dict(tolerance)
        limits.setdefault("atol", 0.0)
        np.testing.assert_allclose(
            ours, theirs, **limits, err_msg=f"{self.case.name}/{self.name}: {quantity}"
        )

    def _pair(self, found: Any, entry: Any) -> tuple[Any, Any]:
        if isinstance(found, Tensor):
            found = found.detach().double().numpy()
        ours = np.asarray(found, dtype=np.float64)
        theirs = np.asarray(self.case.array(entry), dtype=np.float64)
        return ours, theirs


class Case:
    """A golden case: manifest and arrays."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.manifest: Mapping[str, Any] = json.loads(
            (FOLDER / f"{name}.json").read_text(encoding="utf-8")
        )

    @cached_property
    def arrays(self) -> Mapping[str, Any]:
        """Arrays of the case by key."""
        return dict(np.load(FOLDER / self.manifest["data"])) if "data" in self.manifest else {}

    @cached_property
    def loss_inputs(self) -> Mapping[str, Any]:
        """The inputs that the loss cases share."""
        return dict(np.load(FOLDER / "loss_inputs.npz"))

    @property
    def reference(self) -> str:
        """Repository and first function of the code that produced the values."""
        reference = self.manifest["reference"]
        return f"{reference['repository']} {reference['functions'][0].split(':')[0]}"

    def array(self, entry: Any) -> Any:
        """An array of the case, or the plain value itself; ``None`` is NaN."""
        if isinstance(entry, Mapping) and "array" in entry:
            return self.arrays[entry["array"]]
        if isinstance(entry, list):
            return [np.nan if x is None else x for x in entry]
        return np.nan if entry is None else entry

    @property
    def variants(self) -> Sequence[Variant]:
        """All variants of the case."""
        return [
            Variant(
                case=self,
                name=v["name"],
                params=v.get("params", {}),
                inputs=v.get("inputs", {}),
                expected=v.get("expected", {}),
                derived=v.get("derived", {}),
                tolerance={**_plain(self.manifest["tolerance"]), **_plain(v.get("tolerance", {}))},
            )
            for v in self.manifest["variants"]
        ]


def _plain(tolerance: Any) -> dict[str, Any]:
    return dict(tolerance) if isinstance(tolerance, Mapping) else {"values": tolerance}


def variants(*names: str) -> pytest.MarkDecorator:
    """``pytest.mark.parametrize`` over all variants of the named cases, as argument ``variant``."""
    found = [(name, v) for name in names for v in Case(name).variants]
    return pytest.mark.parametrize(
        "variant", [pytest.param(v, id=f"{name}-{v.name}") for name, v in found]
    )


def parity_table() -> list[str]:
    """Lines of the table: case, quantity, largest difference, reference."""
    rows: dict[tuple[str, str, bool], Comparison] = {}
    for c in COMPARISONS:
        key = (c.case, c.quantity, c.is_deviation)
        if key not in rows or c.difference > rows[key].difference:
            rows[key] = c
    lines = [f"{'case':30} {'quantity':34} {'max difference':>15}  reference"]
    for c in sorted(rows.values(), key=lambda c: (c.case, c.is_deviation, c.quantity)):
        mark = "  on purpose" if c.is_deviation else ""
        lines.append(f"{c.case:30} {c.quantity:34} {c.difference:15.3g}  {c.reference}{mark}")
    lines.append(f"{len({c.case for c in COMPARISONS})} cases, {len(COMPARISONS)} comparisons")
    return lines
