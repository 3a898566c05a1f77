"""Choose the texts that ship in ``core/data/embedded`` and measure them.

The candidates lie in ``benchmarks/embedded_candidates/candidates.jsonl``. Every candidate is
read by the model as plain text (no chat template, no added tokens, float32, one row at a time)
and gets two numbers, both over all its tokens but the first:

* accuracy: the share of tokens that the model's greedy guess, given the true prefix, gets right;
* cross-entropy: the mean negative log-likelihood in nats.

The selection rule:

* forget: in each kind, the candidates with the role ``memorised-candidate`` are taken by
  accuracy from the top, ties by id. At most ``MAX_PER_SOURCE`` rows come from one source, and a
  row that shares a 12-word sequence with a row already taken is passed over.
* approximate: in each kind, a candidate with the role ``approximate-candidate`` may be taken when
  its accuracy is between ``APPROXIMATE_MIN`` and ``APPROXIMATE_MAX``. For evenly spaced quantiles
  of the token lengths of the kind's forget rows, the nearest unused candidate in length is taken,
  ties by id. So within the band, length decides and not the score.
* retain and general: evenly spaced candidates of that role, in file order.
* a candidate that repeats a row already taken (lower case, letters and digits only), or shares a
  12-word sequence with a forget row, is never taken.

Usage::

    python benchmarks/select_embedded_texts.py --model FOLDER           # writes the four files
    python benchmarks/select_embedded_texts.py --model FOLDER --check   # measures them again

The model is SmolLM2-135M-Instruct in the transformers format. Another model, or another build
of torch, may order near ties differently; ``--check`` does not depend on the order.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CANDIDATES = REPOSITORY / "benchmarks" / "embedded_candidates"
OUTPUT = REPOSITORY / "core" / "data" / "embedded"

FILES = ("forget", "approximate", "retain", "general")
ROLES = ("memorised-candidate", "approximate-candidate", "retain", "general")
FORGET_ROWS = {"licence": 7, "scripture": 14, "state-paper": 7}
APPROXIMATE_ROWS = {"licence": 12, "scripture": 24, "state-paper": 12}
RETAIN_ROWS = 120
GENERAL_ROWS = 56

MIN_TOKENS = 24
MAX_TOKENS = 64
APPROXIMATE_MIN = 0.20
APPROXIMATE_MAX = 0.36
MAX_PER_SOURCE = 3
SHARED_WORDS = 12

MIN_ACCURACY_GAP = 0.15
MIN_LOSS_GAP = 0.30
MAX_LENGTH_DIFFERENCE = 0.10


@dataclass(frozen=True)
class Row:
    """One passage, as it stands in a JSON Lines file."""

    id: str
    text: str
    kind: str
    source: str
    role: str = ""


@dataclass(frozen=True)
class Score:
    """What the model makes of one passage; ``predicted`` is ``tokens`` less the first."""

    tokens: int
    predicted: int
    hits: int
    loss_sum: float

    @property
    def accuracy(self) -> float:
        """Share of the predicted tokens that the greedy guess gets right."""
        return self.hits / self.predicted

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood in nats."""
        return self.loss_sum / self.predicted


@dataclass(frozen=True)
class Summary:
    """Pooled means over the tokens of several passages."""

    rows: int
    mean_tokens: float
    accuracy: float
    loss: float


Scorer = Callable[[str], Score]


def read_rows(path: Path) -> list[Row]:
    """Read a JSON Lines file of passages."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            rows.append(Row(**json.loads(line)))
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write passages as JSON Lines, without the role."""
    lines = [
        json.dumps(
            {"id": row.id, "text": row.text, "kind": row.kind, "source": row.source},
            ensure_ascii=False,
        )
        for row in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def normalise(text: str) -> str:
    """Lower case, letters and digits only."""
    return "".join(character for character in text.lower() if character.isalnum())


def word_sequences(text: str) -> set[tuple[str, ...]]:
    """All runs of ``SHARED_WORDS`` words, lower case and without punctuation."""
    words = re.findall(r"[^\W_]+", text.lower())
    return {
        tuple(words[start : start + SHARED_WORDS]) for start in range(len(words) - SHARED_WORDS + 1)
    }


def load_scorer(model_name: str, threads: int) -> Scorer:
    """Load the model on the CPU in float32 and return the function that scores one passage."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.float32)
    model.eval()

    def score(text: str) -> Score:
        encoded = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([encoded])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, :-1]
        targets = ids[0, 1:]
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        hits = (logits.argmax(dim=-1) == targets).sum()
        return Score(len(encoded), len(encoded) - 1, int(hits), float(loss))

    return score


def summarise(scores: Sequence[Score]) -> Summary:
    """Pool the scores: every predicted token counts the same."""
    predicted = sum(score.predicted for score in scores)
    return Summary(
        rows=len(scores),
        mean_tokens=sum(score.tokens for score in scores) / len(scores),
        accuracy=sum(score.hits for score in scores) / predicted,
        loss=sum(score.loss_sum for score in scores) / predicted,
    )


class Taken:
    """The rows chosen so far, to pass over repeats and overlaps."""

    def __init__(self) -> None:
        self._texts: set[str] = set()
        self._forget_sequences: set[tuple[str, ...]] = set()

    def allows(self, row: Row) -> bool:
        """Whether the row is new and shares no long word sequence with a forget row."""
        if normalise(row.text) in self._texts:
            return False
        return self._forget_sequences.isdisjoint(word_sequences(row.text))

    def add(self, row: Row, *, forget: bool = False) -> None:
        """Note that the row was chosen."""
        self._texts.add(normalise(row.text))
        if forget:
            self._forget_sequences |= word_sequences(row.text)


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """Middle indices of ``wanted`` equal stretches of ``range(count)``."""
    return [int((position + 0.5) * count / wanted) for position in range(wanted)]


def group_of(row: Row) -> str:
    """The work that a row comes from: for scripture the chapter, else the source."""
    return row.source.split(":")[0]


def select_forget(rows: Sequence[Row], scores: dict[str, Score], taken: Taken) -> list[Row]:
    """Take the best remembered candidates of each kind."""
    chosen: list[Row] = []
    for kind, wanted in FORGET_ROWS.items():
        pool = [row for row in rows if row.role == ROLES[0] and row.kind == kind]
        pool.sort(key=lambda row: (-scores[row.id].accuracy, row.id))
        per_source: Counter[str] = Counter()
        picked: list[Row] = []
        for row in pool:
            if len(picked) == wanted:
                break
            if per_source[group_of(row)] < MAX_PER_SOURCE and taken.allows(row):
                per_source[group_of(row)] += 1
                taken.add(row, forget=True)
                picked.append(row)
        require(picked, wanted, f"forget/{kind}")
        chosen += picked
    return chosen


def select_approximate(
    rows: Sequence[Row], scores: dict[str, Score], forget: Sequence[Row], taken: Taken
) -> list[Row]:
    """Take candidates that are not remembered, matched in length to the forget rows."""
    chosen: list[Row] = []
    for kind, wanted in APPROXIMATE_ROWS.items():
        lengths = sorted(scores[row.id].tokens for row in forget if row.kind == kind)
        pool = [
            row
            for row in rows
            if row.role == ROLES[1]
            and row.kind == kind
            and APPROXIMATE_MIN <= scores[row.id].accuracy <= APPROXIMATE_MAX
        ]
        per_source: Counter[str] = Counter()
        picked: list[Row] = []
        for index in evenly_spaced(len(lengths), wanted):
            target = lengths[index]
            usable = [
                row
                for row in pool
                if per_source[group_of(row)] < MAX_PER_SOURCE and taken.allows(row)
            ]
            if not usable:
                break
            best = min(usable, key=lambda row: (abs(scores[row.id].tokens - target), row.id))
            per_source[group_of(best)] += 1
            taken.add(best)
            picked.append(best)
        require(picked, wanted, f"approximate/{kind}")
        chosen += sorted(picked, key=lambda row: row.id)
    return chosen


def select_spaced(rows: Sequence[Row], role: str, wanted: int, taken: Taken) -> list[Row]:
    """Take evenly spaced candidates of one role."""
    pool: list[Row] = []
    for row in rows:
        if row.role == role and taken.allows(row):
            taken.add(row)
            pool.append(row)
    require(pool[:wanted], wanted, role)
    return [pool[index] for index in evenly_spaced(len(pool), wanted)]


def require(picked: Sequence[Row], wanted: int, name: str) -> None:
    """Stop when a set cannot be filled from the candidates."""
    if len(picked) < wanted:
        sys.exit(f"{name}: only {len(picked)} of {wanted} rows could be chosen")


def select(rows: Sequence[Row], scores: dict[str, Score]) -> dict[str, list[Row]]:
    """Apply the selection rule to all candidates that have an allowed length."""
    fitting = [row for row in rows if MIN_TOKENS <= scores[row.id].tokens <= MAX_TOKENS]
    taken = Taken()
    forget = select_forget(fitting, scores, taken)
    return {
        "forget": forget,
        "approximate": select_approximate(fitting, scores, forget, taken),
        "retain": select_spaced(fitting, "retain", RETAIN_ROWS, taken),
        "general": select_spaced(fitting, "general", GENERAL_ROWS, taken),
    }


def table(sets: dict[str, list[Row]], scores: dict[str, dict[str, Score]]) -> str:
    """The measured table in Markdown: the four sets, then the kinds of the first two."""
    lines = [
        "| set | kind | rows | mean tokens | tokens, from-to | accuracy | cross-entropy |",
        "|---|---|---|---|---|---|---|",
    ]

    def add(name: str, kind: str, chosen: Sequence[Row]) -> None:
        measured = [scores[name][row.id] for row in chosen]
        summary = summarise(measured)
        span = f"{min(s.tokens for s in measured)}-{max(s.tokens for s in measured)}"
        lines.append(
            f"| {name} | {kind} | {summary.rows} | {summary.mean_tokens:.1f} | {span} "
            f"| {summary.accuracy:.3f} | {summary.loss:.3f} |"
        )

    for name in FILES:
        add(name, "all", sets[name])
    for name in FILES[:2]:
        for kind in FORGET_ROWS:
            add(name, kind, [row for row in sets[name] if row.kind == kind])
    return "\n".join(lines)


def find_faults(sets: dict[str, list[Row]], scores: dict[str, dict[str, Score]]) -> list[str]:
    """Every requirement on the shipped files that does not hold."""
    faults: list[str] = []
    wanted = {
        "forget": sum(FORGET_ROWS.values()),
        "approximate": sum(APPROXIMATE_ROWS.values()),
        "retain": RETAIN_ROWS,
        "general": GENERAL_ROWS,
    }
    seen_texts: dict[str, str] = {}
    seen_ids: set[str] = set()
    for name, rows in sets.items():
        if len(rows) != wanted[name]:
            faults.append(f"{name}: {len(rows)} rows, {wanted[name]} wanted")
        for row in rows:
            tokens = scores[name][row.id].tokens
            if not MIN_TOKENS <= tokens <= MAX_TOKENS:
                faults.append(f"{name} {row.id}: {tokens} tokens")
            if row.text != " ".join(row.text.split()):
                faults.append(f"{name} {row.id}: line break, tab or doubled space")
            if row.id in seen_ids:
                faults.append(f"{name} {row.id}: id used twice")
            seen_ids.add(row.id)
            earlier = seen_texts.setdefault(normalise(row.text), row.id)
            if earlier != row.id:
                faults.append(f"{name} {row.id}: same text as {earlier}")
    for kinds, name in ((FORGET_ROWS, "forget"), (APPROXIMATE_ROWS, "approximate")):
        if dict(Counter(row.kind for row in sets[name])) != kinds:
            faults.append(f"{name}: the kinds are not {kinds}")
    forget_sequences = {
        sequence: row.id for row in sets["forget"] for sequence in word_sequences(row.text)
    }
    for name in FILES[1:]:
        for row in sets[name]:
            shared = word_sequences(row.text) & forget_sequences.keys()
            if shared:
                other = forget_sequences[min(shared)]
                faults.append(f"{name} {row.id}: shares {SHARED_WORDS} words with {other}")

    forget = summarise(list(scores["forget"].values()))
    approximate = summarise(list(scores["approximate"].values()))
    accuracy_gap = forget.accuracy - approximate.accuracy
    loss_gap = approximate.loss - forget.loss
    length_difference = abs(approximate.mean_tokens / forget.mean_tokens - 1)
    print(
        f"accuracy gap {accuracy_gap:.3f} (at least {MIN_ACCURACY_GAP}), "
        f"cross-entropy gap {loss_gap:.3f} (at least {MIN_LOSS_GAP}), "
        f"difference in mean length {length_difference:.1%} "
        f"(at most {MAX_LENGTH_DIFFERENCE:.0%})"
    )
    if accuracy_gap < MIN_ACCURACY_GAP:
        faults.append("the accuracy gap is too small")
    if loss_gap < MIN_LOSS_GAP:
        faults.append("the cross-entropy gap is too small")
    if length_difference > MAX_LENGTH_DIFFERENCE:
        faults.append("the mean lengths differ too much")
    return faults


def write_scores(
    path: Path,
    rows: Sequence[Row],
    scores: dict[str, Score],
    sets: dict[str, list[Row]],
) -> None:
    """Write one line per candidate: what was measured and the file that took it, if any."""
    chosen = {row.id: name for name, members in sets.items() for row in members}
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["id", "role", "kind", "tokens", "accuracy", "cross_entropy", "chosen"])
        for row in rows:
            score = scores[row.id]
            writer.writerow(
                [
                    row.id,
                    row.role,
                    row.kind,
                    score.tokens,
                    f"{score.accuracy:.4f}",
                    f"{score.loss:.3f}",
                    chosen.get(row.id, ""),
                ]
            )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Choose the embedded texts by what the model remembers, or check them."
    )
    parser.add_argument("--model", required=True, help="folder (or hub id) of the model")
    parser.add_argument(
        "--candidates", type=Path, default=CANDIDATES, help="folder with candidates.jsonl"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder of the four files")
    parser.add_argument(
        "--scores",
        type=Path,
        default=None,
        help="the score table, one line per candidate (default: scores.csv beside the candidates)",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument(
        "--check",
        action="store_true",
        help="choose nothing: measure the files in --output and exit 1 if a requirement fails",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Choose or check; print the measured table."""
    options = parse_arguments(arguments)
    scorer = load_scorer(options.model, options.threads)
    if not options.check:
        candidates = read_rows(options.candidates / "candidates.jsonl")
        candidate_scores = {row.id: scorer(row.text) for row in candidates}
        sets = select(candidates, candidate_scores)
        for name, rows in sets.items():
            write_rows(options.output / f"{name}.jsonl", rows)
        scores_path = options.scores or options.candidates / "scores.csv"
        write_scores(scores_path, candidates, candidate_scores, sets)
        scores = {
            name: {row.id: candidate_scores[row.id] for row in rows} for name, rows in sets.items()
        }
    else:
        sets = {name: read_rows(options.output / f"{name}.jsonl") for name in FILES}
        scores = {name: {row.id: scorer(row.text) for row in rows} for name, rows in sets.items()}
    print(table(sets, scores))
    faults = find_faults(sets, scores)
    for fault in faults:
        print(f"FAULT: {fault}")
    print("all requirements hold" if not faults else f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
