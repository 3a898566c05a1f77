"""How long an attempt at a trial may take, and how long it may go without a step before it counts as hung.

What is watched are the optimiser's steps: they come again and again, and the slowest so far says what is usual. What
is done between two of them, a probe or a checkpoint, has half an hour. Preparation, loading and waiting for work that
another rank does for all come once, and take what they take; only the limit of the whole attempt holds for them.
"""

import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from core.config import SelectionConfig
from tuning.config import BudgetSpec

Part = Literal["load", "step", "pause"]
"""What a trial does: what comes before its first step, an optimiser step, or what is done between two of them."""

LONG_S = 1800.0
"""What a pause may take at least, and the first step, which compiles."""
LEAST_S = 300.0
"""What ``auto`` allows at least: a busy file system or machine is no hang."""
GENEROSITY = 20.0
"""How many times the slowest so far ``auto`` allows."""


class TrialTimeoutError(Exception):
    """An attempt took longer than ``budget.trial_timeout_s``."""


class HungRankError(Exception):
    """A trial has made no step for ``budget.hang_timeout_s``."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the sweep file says.

    Attributes:
        trial_s: ``budget.trial_timeout_s``.
        hang_s: ``budget.hang_timeout_s``.
    """

    trial_s: float | None = None
    hang_s: float | Literal["auto"] = "auto"

    @classmethod
    def of(cls, budget: BudgetSpec) -> "Limits":
        """Of a sweep's budget."""
        return cls(trial_s=budget.trial_timeout_s, hang_s=budget.hang_timeout_s)


class Course:
    """Where a trial is, as far as whoever has it make its steps can know: what it may do before the next."""

    def __init__(self, rules: SelectionConfig, *, is_resumed: bool) -> None:
        """Begin.

        Args:
            rules: Of the trial: when probes and checkpoints are due.
            is_resumed: It may go on from an earlier attempt, with more steps made than are counted here.
        """
        self._rules, self._is_resumed = rules, is_resumed
        self._n_steps, self._is_probed = 0, False

    def stepped(self) -> None:
        """A step was made."""
        self._n_steps, self._is_probed = self._n_steps + 1, False

    def probed(self, step: int) -> None:
        """The probe of a step was told."""
        self._n_steps, self._is_probed = step, True

    @property
    def next_part(self) -> Part:
        """What the trial may do before its next step."""
        rules, made = self._rules, self._n_steps
        if made == 0:
            return "load"
        every = rules.checkpoint_every
        is_due = made % rules.probe_every == 0 or made == rules.max_steps
        is_due = is_due or (isinstance(every, int) and made % every == 0)
        return "pause" if is_due or self._is_probed or self._is_resumed else "step"


class Watch:
    """The limits of one attempt, which begins with it."""

    def __init__(self, limits: Limits) -> None:
        """Begin now."""
        self._limits, self._began = limits, time.monotonic()
        self._slowest: dict[Part, float] = {}

    @property
    def left_s(self) -> float | None:
        """Seconds that the attempt may still take, 0 at least; ``None`` without end."""
        if self._limits.trial_s is None:
            return None
        return max(0.0, self._limits.trial_s - (time.monotonic() - self._began))

    def took(self, part: Part, seconds: float) -> None:
        """Note how long a part took."""
        self._slowest[part] = max(seconds, self._slowest.get(part, 0.0))

    def hang_s(self, part: Part) -> float | None:
        """Seconds that a part may take; ``None`` without end."""
        if part == "load":
            return None
        asked = 0.0 if self._limits.hang_s == "auto" else self._limits.hang_s
        usual = GENEROSITY * self._slowest.get(part, 0.0)
        if part == "pause" or part not in self._slowest:
            return max(asked, LONG_S, usual)  # the file speaks of steps
        return asked or max(LEAST_S, usual)

    def timeout_s(self, part: Part) -> float | None:
        """Seconds to wait for a part; ``None`` without end."""
        found = min(s if s is not None else math.inf for s in (self.hang_s(part), self.left_s))
        return None if found == math.inf else found

    def expired(self, part: Part, *, silent: Collection[int], size: int) -> Exception:
        """Why a part that did not end in time is given up.

        Args:
            part: What was waited for.
            silent: Ranks that have not ended it.
            size: Ranks of the trial.
        """
        if self.left_s == 0.0:
            limit = f"budget.trial_timeout_s = {self._limits.trial_s:g} s"
            return TrialTimeoutError(
                f"the attempt took longer than {limit}; its processes were killed"
            )
        ranks = ", ".join(map(str, sorted(silent)))
        return HungRankError(
            f"rank{'s' if len(silent) > 1 else ''} {ranks} of {size} did not come to the end of a {part} within "
            f"{self.hang_s(part):g} s (budget.hang_timeout_s); the trial's processes were killed"
        )
