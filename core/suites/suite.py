"""What a suite gets and what it gives back."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from core.suites.evaluation_rows import EvaluationRows
from core.suites.subject import Subject

Sample = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """What can be chosen about audits.

    Attributes:
        relearn_steps: Optimiser steps of the relearning attack.
        relearn_samples: Forget rows that it may read.
        relearn_rate: Its learning rate.
        fluency_model: Text classifier that judges what the model writes.
        seed: Seed of the rows that the attack may read.
    """

    relearn_steps: int = 10
    relearn_samples: int = 8
    relearn_rate: float = 2e-5
    fluency_model: str | None = None
    seed: int = 0


class SuiteInput:
    """Everything that a suite may look at.

    Attributes:
        subject: The model that is evaluated.
        rows: The rows.
        options: What was chosen about audits.
        limit: First rows of each role that are used; all if absent.
        retain_only: The model that never saw the forget set, where the user gave one.
    """

    def __init__(
        self,
        subject: Subject,
        rows: EvaluationRows,
        *,
        options: AuditOptions | None = None,
        limit: int | None = None,
        retain_only: Subject | None = None,
        load_initial: Callable[[], Subject] | None = None,
    ) -> None:
        """The model before unlearning is loaded when a suite asks for it: few do."""
        self.subject, self.rows, self.limit = subject, rows, limit
        self.options = options or AuditOptions()
        self.retain_only, self._load_initial = retain_only, load_initial

    @cached_property
    def initial(self) -> Subject | None:
        """The model before unlearning, where it is known."""
        return self._load_initial() if self._load_initial else None

    def has(self, role: str) -> bool:
        """Whether there are rows of a role."""
        return role in self.rows.roles


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a suite found.

    Attributes:
        metrics: Name to number; NaN where it could not be measured.
        samples: One mapping for each row, with the role as ``set`` and its place as ``index``.
        notes: What a reader must know about the numbers.
    """

    metrics: Mapping[str, float]
    samples: list[Sample] = field(default_factory=list)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A set of metrics that belong together.

    Attributes:
        run: Measures them.
        about: One line for the reference.
        roles: Roles that it needs.
        one_of: Roles of which it needs at least one.
        needs_retain_only: Whether it compares with a model that never saw the forget set.
        defaults: Sources of its roles where the user names no data.
    """

    run: Callable[[SuiteInput], Findings]
    about: str
    roles: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    needs_retain_only: bool = False
    defaults: Mapping[str, str] = field(default_factory=dict)


def mean(values: Iterable[float]) -> float:
    """Mean over rows; NaN if there is none or one is NaN."""
    listed = list(values)
    return statistics.fmean(listed) if listed else math.nan


def mean_of_known(values: Iterable[float]) -> float:
    """Mean over the rows that have a value; NaN if none has."""
    return mean(value for value in values if not math.isnan(value))


def samples_of(role: str, columns: Mapping[str, list[Any]]) -> list[Sample]:
    """One mapping for each row from columns of equal length."""
    names = list(columns)
    return [
        {"set": role, "index": i, **dict(zip(names, row, strict=True))}
        for i, row in enumerate(zip(*columns.values(), strict=True))
    ]
