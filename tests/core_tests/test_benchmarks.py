"""Published data sets are read by name, through the loading code of the hub, from copies of their files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from core.config import SourceConfig
from core.data.authors import PARTS
from core.data.benchmarks import AUTHOR_PARTS, BENCHMARKS
from core.data.rows import Row
from core.data.sources import read_records, read_rows, source_problem
from core.errors import DataError

Records = Sequence[Mapping[str, Any]]

QUESTIONS: Records = [
    {"question": "Who wrote it?", "answer": "Ada did."},
    {"question": "Where?", "answer": "At sea."},
]
PERTURBED: Records = [
    {
        **QUESTIONS[0],
        "paraphrased_answer": "It was Ada.",
        "perturbed_answer": ["It was Bob.", "It was Eve."],
    }
]
TEXTS: Records = [{"text": "One document."}, {"text": "Another one."}]
CONTINUATIONS: Records = [{"prompt": "It was a dark", "gt": "and stormy night."}]
CHOICES: Records = [
    {"answer": 2, "question": "Which is a metal? ", "choices": ["Air", "Salt", "Iron", "Wood"]}
]


@pytest.fixture(autouse=True)
def arrow_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``datasets`` writes goes with the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "arrow"))


def mirror_of(folder: Path, files: Mapping[tuple[str, str], Records], *, suffix: str) -> Path:
    """A copy of a repository: a file for each subset and split, and the README that lists them."""
    folder.mkdir()
    lines = ["---", "configs:"]
    for subset in dict.fromkeys(subset for subset, _ in files):
        lines += [f"- config_name: {subset}", "  data_files:"]
        for (owner, split), records in files.items():
            if owner != subset:
                continue
            name = f"{subset}-{split}{suffix}"
            if suffix == ".parquet":
                table = pyarrow.Table.from_pylist([dict(r) for r in records])
                pyarrow.parquet.write_table(table, folder / name)
            else:
                text = "".join(json.dumps(record) + "\n" for record in records)
                (folder / name).write_text(text, encoding="utf-8")
            lines += [f"  - split: {split}", f"    path: {name}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
    return folder


def tofu(folder: Path) -> Path:
    subsets = {name.partition(":")[2] for name in BENCHMARKS if name.startswith("tofu:")}
    files = {
        (subset, "train"): PERTURBED if subset.endswith("_perturbed") else QUESTIONS
        for subset in sorted(subsets)
    }
    return mirror_of(folder, files, suffix=".json")


def muse(folder: Path) -> Path:
    files = {
        **{("raw", s): TEXTS for s in ("forget", "retain1", "retain2", "holdout")},
        **{("knowmem", s): QUESTIONS for s in ("forget_qa", "retain_qa", "forget_qa_icl")},
        ("verbmem", "forget"): CONTINUATIONS,
        **{("privleak", s): TEXTS for s in ("forget", "retain", "holdout")},
    }
    return mirror_of(folder, files, suffix=".parquet")


def wmdp(folder: Path) -> Path:
    files = {(f"wmdp-{s}", "test"): CHOICES for s in ("bio", "cyber", "chem")}
    return mirror_of(folder, files, suffix=".parquet")


def wmdp_corpora(folder: Path) -> Path:
    subsets = ("bio-retain-corpus", "cyber-forget-corpus", "cyber-retain-corpus")
    return mirror_of(folder, {(s, "train"): TEXTS for s in subsets}, suffix=".jsonl")


def yao(folder: Path) -> Path:
    splits = {"arxiv": ("forget", "approximate", "retain"), "general": ("evaluation", "retain")}
    splits["github"] = splits["arxiv"]
    files = {(domain, split): TEXTS for domain, names in splits.items() for split in names}
    return mirror_of(folder, files, suffix=".parquet")


MIRRORS = {
    "tofu": tofu,
    "muse-news": muse,
    "muse-books": muse,
    "wmdp": wmdp,
    "wmdp-corpus": wmdp_corpora,
    "yao": yao,
}

AS_QUESTIONS = [Row("Who wrote it?", "Ada did."), Row("Where?", "At sea.")]
AS_TEXTS = [Row(None, "One document."), Row(None, "Another one.")]
AS_CHOICES = [Row("Which is a metal?\nA. Air\nB. Salt\nC. Iron\nD. Wood\nAnswer:", "C. Iron")]


def expected_rows(name: str) -> list[Row]:
    family, _, part = name.partition(":")
    if family == "tofu":
        return AS_QUESTIONS[:1] if part.endswith("_perturbed") else AS_QUESTIONS
    if family == "wmdp":
        return AS_CHOICES
    if part.startswith("knowmem"):
        return AS_QUESTIONS
    return [Row("It was a dark", "and stormy night.")] if part == "verbmem" else AS_TEXTS


def source(name: str, mirror: Path, **options: Any) -> SourceConfig:
    return SourceConfig(source=name, mirror=str(mirror), **options)


@pytest.mark.parametrize("family", MIRRORS)
def test_every_name_reads_the_rows_of_its_subset_and_split(family: str, tmp_path: Path) -> None:
    folder = MIRRORS[family](tmp_path / "mirror")
    names = [name for name in BENCHMARKS if name.partition(":")[0] == family]
    assert names
    for name in names:
        assert read_rows(source(name, folder), role="forget") == expected_rows(name), name


def test_every_family_has_a_mirror_here() -> None:
    assert {name.partition(":")[0] for name in BENCHMARKS} == set(MIRRORS)


def test_records_keep_the_fields_that_evaluation_needs(tmp_path: Path) -> None:
    folder = tofu(tmp_path / "mirror")
    [record] = read_records(source("tofu:forget10_perturbed", folder), role="forget")
    assert record == PERTURBED[0]
    assert len(read_records(source("tofu:forget10", folder, n=1), role="forget")) == 1


def test_the_user_s_fields_come_before_those_of_the_name(tmp_path: Path) -> None:
    folder = tofu(tmp_path / "mirror")
    fields = {"prompt": "question", "answer": "answer", "alternative": "paraphrased_answer"}
    rows = read_rows(source("tofu:forget01_perturbed", folder, fields=fields), role="forget")
    assert rows == [Row("Who wrote it?", "Ada did.", "It was Ada.")]
    [first, _] = read_rows(source("tofu:full", folder, fields={"text": "answer"}), role="forget")
    assert first == Row(None, "Ada did.")


def test_the_default_field_counts_when_the_user_writes_it(tmp_path: Path) -> None:
    folder = tofu(tmp_path / "mirror")
    with pytest.raises(DataError, match="no field 'text'; fields are 'question', 'answer'"):
        read_rows(source("tofu:full", folder, fields={"text": "text"}), role="forget")


def test_a_hub_source_reads_its_mirror_too(tmp_path: Path) -> None:
    folder = muse(tmp_path / "mirror")
    config = source("hub:muse-bench/MUSE-News", folder, subset="raw", split="holdout")
    assert read_rows(config, role="general") == AS_TEXTS


@pytest.mark.parametrize("part", PARTS)
def test_the_shipped_authors_are_read_by_part(part: str) -> None:
    config = SourceConfig(source=f"authors:{part}", n=3)
    records = read_records(config, role="forget")
    assert [(row.prompt, row.answer) for row in read_rows(config, role="forget")] == [
        (record["question"], record["answer"]) for record in records
    ]
    assert len(records) == 3


def test_the_parts_of_the_authors_are_those_that_can_be_made() -> None:
    assert set(AUTHOR_PARTS) == set(PARTS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"source": "tofu:forget1"},
            r"data\.retain\.source: no data set 'tofu:forget1'; did you mean 'tofu:forget10'.*known: tofu:full,",
        ),
        ({"source": "muse-news:x"}, "no data set 'muse-news:x'; .*muse-news:privleak-holdout"),
        ({"source": "authors:nobody"}, "no data set 'authors:nobody'; .*authors:world_facts"),
        ({"source": "muse-new:forget"}, r"is none of hub:ORG/NAME.*did you mean muse-news:\?"),
        (
            {"source": "tofu:full", "subset": "forget10"},
            "subset: has no effect on 'tofu:full', got 'forget10'; remove it",
        ),
        (
            {"source": "authors:forget", "revision": "main"},
            "revision: has no effect on 'authors:forget', got 'main'",
        ),
        (
            {"source": "tofu:full", "mirror": "no/where"},
            "mirror: folder 'no/where' does not exist; copy the data set's repository there",
        ),
        (
            {"source": "embedded:forget", "mirror": "no/where"},
            "mirror: only a hub data set has one, got mirror='no/where' with source='embedded:forget'",
        ),
    ],
)
def test_a_name_that_cannot_be_is_refused_before_reading(
    values: dict[str, Any], message: str
) -> None:
    config = SourceConfig(**values)
    assert source_problem(config) is not None
    with pytest.raises(DataError, match=message):
        read_rows(config, role="retain")


def test_a_subset_that_the_mirror_lacks_is_named(tmp_path: Path) -> None:
    folder = mirror_of(tmp_path / "mirror", {("forget01", "train"): QUESTIONS}, suffix=".json")
    message = (
        r"data\.forget\.mirror: cannot load 'tofu:forget10' \(subset forget10, split train\) from .*"
        r"forget01.*copy locuslab/TOFU there once more"
    )
    with pytest.raises(DataError, match=message):
        read_rows(source("tofu:forget10", folder), role="forget")


def test_a_split_that_the_mirror_lacks_is_named(tmp_path: Path) -> None:
    folder = mirror_of(tmp_path / "mirror", {("raw", "forget"): TEXTS}, suffix=".parquet")
    with pytest.raises(DataError, match=r"cannot load 'muse-books:retain2'.*retain2"):
        read_rows(source("muse-books:retain2", folder), role="retain")


def test_a_damaged_file_of_a_mirror_is_named(tmp_path: Path) -> None:
    folder = yao(tmp_path / "mirror")
    (folder / "arxiv-forget.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match=r"data\.forget\.mirror: cannot load 'yao:arxiv-forget'"):
        read_rows(source("yao:arxiv-forget", folder), role="forget")


def test_without_mirror_and_hub_the_message_says_what_to_do() -> None:
    config = SourceConfig(source="tofu:forget10")
    with pytest.raises(DataError, match=r"cannot load 'tofu:forget10' .*give a file or a mirror"):
        read_rows(config, role="forget")


@pytest.mark.parametrize(
    "change", [{"answer": 4}, {"answer": "C"}, {"choices": [1, 2, 3, 4]}, {"choices": None}]
)
def test_a_question_without_a_right_choice_is_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    record = {**CHOICES[0], **change}
    folder = mirror_of(tmp_path / "mirror", {("wmdp-bio", "test"): [record]}, suffix=".parquet")
    with pytest.raises(DataError, match=r"wmdp:bio row 1: a question, a list of choices and the"):
        read_rows(source("wmdp:bio", folder), role="forget")
