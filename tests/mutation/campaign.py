"""Many mutated files and damaged run folders, and a table of how each kind ended.

``python -m mutation.campaign --files 10000 --folders 1000``, with the project and ``tests`` on the path. A file, or a
folder, is decided by its seed alone, so a run can be made in pieces: ``--seed`` says where it begins, and with
``--sum FILE`` the pieces are added up.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mutation.folders import damaged, good_run
from mutation.good_files import GoodFile, good_files
from mutation.judging import Ending, Verdict, judged
from mutation.mutants import Mutant, mutant, smallest
from mutation.verbs import looked_at

from core.store.place import CACHE_VARIABLE

WEIGHTS: Mapping[str, int] = {"sweep": 3, "trial": 2}
"""Forms of a file that are met more often than once among as many as there are forms."""
PROCESS_EVERY, REPORT_EVERY = 50, 25
"""One in so many goes through a process of its own, too; one in so many folders has its report written."""
COLUMNS: Sequence[Verdict] = ("accepted", "refused", "traceback", "hang", "no message")
_ORDER: Sequence[Verdict] = ("traceback", "hang", "no message", "refused", "accepted")
_NOBODY = 65534


@dataclass
class Table:
    """How each kind of mutation ended.

    Attributes:
        counts: Endings by kind.
        faults: Lines on each fault that was found: what it is, and how to come to it again.
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, kind: str, verdict: str) -> None:
        """Count one."""
        self.counts.setdefault(kind, Counter())[verdict] += 1

    @property
    def n_faults(self) -> int:
        """Those that are neither accepted nor refused."""
        return sum(n for of in self.counts.values() for v, n in of.items() if v not in COLUMNS[:2])

    def text(self, title: str) -> str:
        """As Markdown."""
        head = f"| {title} | all | {' | '.join(COLUMNS)} |\n|---|{'---:|' * (len(COLUMNS) + 1)}"
        total: Counter[str] = sum(self.counts.values(), Counter())
        rows = [*sorted(self.counts.items()), ("**all**", total)]
        return "\n".join(
            [
                head,
                *(
                    f"| {k} | {n.total()} | {' | '.join(str(n[c]) for c in COLUMNS)} |"
                    for k, n in rows
                ),
            ]
        )


def chosen(files: Sequence[GoodFile], seed: int) -> tuple[GoodFile, Mutant]:
    """The good file and the mutant of it that belong to a seed."""
    rng = random.Random(f"file {seed}")
    forms = sorted({f.form for f in files})
    (form,) = rng.choices(forms, [WEIGHTS.get(f, 1) for f in forms])
    good = rng.choice([f for f in files if f.form == form])
    return good, mutant(good.content, seed)


def try_file(good: GoodFile, content: bytes, folder: Path) -> Ending:
    """What reads such a file says of this content."""
    path = folder / "file.yaml"
    path.write_bytes(content)
    return good.read(path)


def fault_of_file(good: GoodFile, bad: Mutant, ending: Ending, seed: int, folder: Path) -> str:
    """What a person needs to see a fault again: the seed, and the smallest file with the same fault."""

    def fails(content: bytes) -> bool:
        again = try_file(good, content, folder)
        return (again.verdict, again.place) == (ending.verdict, ending.place)

    small = smallest(good.content, bad, fails)
    steps = ", ".join(step.name for step in small.steps)
    return (
        f"seed {seed}: {good.form} {good.name}, {steps}: {ending.verdict} at {ending.place}\n"
        f"--- the smallest file ---\n{small.content[:1_500].decode('utf-8', 'backslashreplace')}\n"
        f"--- what was said ---\n{ending.said[-1_500:]}"
    )


def files_table(first: int, count: int, folder: Path) -> Table:
    """Try ``count`` mutated files, from the one of seed ``first`` on."""
    table, good = Table(), good_files()
    known: set[tuple[str, str]] = set()
    for seed in range(first, first + count):
        one, bad = chosen(good, seed)
        ending = try_file(one, bad.content, folder)
        if seed % PROCESS_EVERY == 0 and not ending.is_fault:
            ending = in_a_process("validate", str(folder / "file.yaml"), names=[str(folder)])
        table.add(bad.kind, ending.verdict)
        if ending.is_fault and (ending.verdict, ending.place) not in known:
            known.add((ending.verdict, ending.place))
            table.faults.append(fault_of_file(one, bad, ending, seed, folder))
    return table


def folders_table(first: int, count: int, folder: Path) -> Table:
    """Try ``count`` damaged run folders, from the one of seed ``first`` on."""
    table, good = Table(), belongs_to_nobody(good_run(folder / "good"))
    shutil.copytree(good, folder / "whole")
    for name, ending in looked_at(folder / "whole", good, seed=0, with_report=True):
        assert ending.verdict == "accepted", (name, ending)  # and now all is imported
    known: set[tuple[str, str]] = set()
    for seed in range(first, first + count):
        bad = damaged(good, folder / f"run-{seed}", seed)
        belongs_to_nobody(bad.path)
        is_closed = "unreadable" in bad.kinds
        with_report = seed % REPORT_EVERY == 0
        found = dict(
            looked_at(bad.path, good, seed=seed, with_report=with_report, is_closed=is_closed)
        )
        if seed % PROCESS_EVERY == 0 and not is_closed:
            found["status, in a process"] = in_a_process(
                "status", str(bad.path), names=[bad.path.name]
            )
        table.add(bad.kinds[0], min((e.verdict for e in found.values()), key=_ORDER.index))
        for verb, ending in found.items():
            if ending.is_fault and (ending.verdict, ending.place) not in known:
                known.add((ending.verdict, ending.place))
                table.faults.append(
                    f"seed {seed}: {verb}: {bad.what[:500]}: {ending.verdict} at {ending.place}\n{ending.said[-1_500:]}"
                )
        shutil.rmtree(bad.path)
    return table


def belongs_to_nobody(run: Path) -> Path:
    """Give a folder to the user as whom it is looked at where root may not read it."""
    if os.geteuid() == 0:
        for path in (run, *run.rglob("*")):
            os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)
    return run


def in_a_process(*arguments: str, names: Sequence[str]) -> Ending:
    """How a command ends as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tuning.cli", *arguments],
        capture_output=True, text=True, errors="backslashreplace", timeout=600, check=False,
    )  # fmt: skip
    return judged(done.returncode, done.stdout, done.stderr, names=names)


@contextmanager
def workplace() -> Iterator[Path]:
    """Within the context, a folder to work in that everybody may enter, with a cache of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="mutations-") as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        folder = Path(name).resolve()
        folder.chmod(0o755)
        patch.setenv(CACHE_VARIABLE, str(folder / "cache"))
        patch.chdir(folder)
        yield folder


def main() -> None:
    """Try as many as are asked for; the exit status is 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=0)
    parser.add_argument("--folders", type=int, default=0)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first file and the first folder"
    )
    parser.add_argument("--sum", type=Path, help="JSON file to which counts are added")
    given = parser.parse_args()
    total = Path.cwd() / given.sum if given.sum else None
    with workplace() as folder:
        tables = {
            "mutated files": files_table(given.seed, given.files, folder),
            "damaged run folders": folders_table(given.seed, given.folders, folder)
            if given.folders
            else Table(),
        }
    for table in tables.values():
        print("\n\n".join(table.faults))
    if total is not None:
        before = json.loads(total.read_text(encoding="utf-8")) if total.exists() else {}
        for title, table in tables.items():
            for kind, counts in before.get(title, {}).items():
                table.counts[kind] = table.counts.get(kind, Counter()) + Counter(counts)
        total.write_text(
            json.dumps({k: t.counts for k, t in tables.items()}, indent=1), encoding="utf-8"
        )
    for title, table in tables.items():
        if table.counts:
            print(f"\n{table.text(title)}")
    sys.exit(any(table.n_faults for table in tables.values()))


if __name__ == "__main__":
    main()
