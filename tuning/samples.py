"""What the best trial writes beside the untouched model: a file of the run folder, made at the end of a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from core.errors import FileError, in_a_line
from core.store.durable import commit_json
from core.store.texts import read_json

SAMPLES_FILE: Final = "samples.json"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt and how it goes on; all texts are untrusted.

    Attributes:
        role: ``forget`` or ``retain``.
        prompt: What both models were given.
        truth: What follows in the data.
        before: What the model wrote before unlearning.
        after: What it wrote with the trial's adapter.
    """

    role: str
    prompt: str
    truth: str
    before: str
    after: str

    @property
    def known_before(self) -> int:
        """Signs from the beginning, whole words, in which the text before agrees with the truth."""
        return agreement(self.before, self.truth)

    @property
    def known_after(self) -> int:
        """The same after."""
        return agreement(self.after, self.truth)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples of one trial.

    Attributes:
        trial: Its number.
        attempt: Its attempt.
        rows: Samples, those of the forget set first.
    """

    trial: int
    attempt: int
    rows: tuple[Sample, ...]


def agreement(written: str, truth: str) -> int:
    """Length of the whole words from the beginning in which two texts agree."""
    n = 0
    while n < min(len(written), len(truth)) and written[n] == truth[n]:
        n += 1
    ends = [len(text) == n or text[n].isspace() for text in (written, truth)]
    if all(ends):
        return n
    return max((i for i in range(n) if written[i].isspace()), default=0)


def write_samples(
    run_dir: Path, trial: int, attempt: int, rows: Sequence[Mapping[str, str]]
) -> None:
    """Commit ``samples.json``: fields of :class:`Sample` by row."""
    commit_json(
        run_dir / SAMPLES_FILE,
        {"trial": trial, "attempt": attempt, "rows": [dict(r) for r in rows]},
    )


def read_samples(run_dir: Path) -> Samples | None:
    """Samples of a run; ``None`` where none were made.

    Raises:
        FileError: If the file is no such file.
    """
    path = run_dir / SAMPLES_FILE
    if not path.is_file():
        return None
    found = read_json(path)
    try:
        rows: Sequence[Mapping[str, Any]] = found["rows"]
        return Samples(
            trial=int(found["trial"]),
            attempt=int(found["attempt"]),
            rows=tuple(Sample(**{name: str(text) for name, text in row.items()}) for row in rows),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        problem = (
            f"is no file of samples ({in_a_line(err)}); remove it, the report then goes without"
        )
        raise FileError(str(path), problem) from err
