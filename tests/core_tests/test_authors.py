"""The invented authors are TOFU's shape, disjoint, repeatable, and wrong answers differ in the facts alone."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.authors import N_AUTHORS, N_OPTIONS, N_PERTURBED, PARTS, author_records

FIELDS = [
    "question",
    "answer",
    "paraphrased_question",
    "paraphrased_answer",
    "perturbed_answer",
]
INVENTED = tuple(N_AUTHORS)
GENERAL = ("real_authors", "world_facts")
PAIRS_PER_AUTHOR = 10

each_part = pytest.mark.parametrize("part", PARTS)
each_general_part = pytest.mark.parametrize("part", GENERAL)
seeds = st.integers(0, 2**31 - 1)


def invented(seed: int) -> list[dict[str, Any]]:
    return [record for part in INVENTED for record in author_records(part, seed=seed)]


def blocks(records: Sequence[dict[str, Any]]) -> Iterator[Sequence[dict[str, Any]]]:
    """The pairs of one author after those of another."""
    for start in range(0, len(records), PAIRS_PER_AUTHOR):
        yield records[start : start + PAIRS_PER_AUTHOR]


def words_of(text: str) -> list[str]:
    return re.findall(r"[\w-]+", text)


def names_in(text: str) -> set[str]:
    """All pairs of neighbouring words with a capital."""
    words = words_of(text)
    return {f"{a} {b}" for a, b in pairwise(words) if a[0].isupper() and b[0].isupper()}


def author_of(block: Sequence[dict[str, Any]]) -> str:
    """The one name that stands in every answer of a block."""
    (name,) = set.intersection(*(names_in(record["answer"]) for record in block))
    return name


def sentences_of(record: Mapping[str, Any]) -> list[str]:
    return [record["answer"], record["paraphrased_answer"], *record["perturbed_answer"]]


# All parts


def test_the_parts_are_as_large_as_told() -> None:
    sizes = {part: len(author_records(part)) for part in PARTS}
    assert sizes == {
        "forget": 40,
        "retain": 160,
        "holdout": 40,
        "real_authors": 50,
        "world_facts": 48,
    }


@each_part
def test_records_have_the_fields_of_tofu(part: str) -> None:
    n_wrong = N_PERTURBED if part in INVENTED else N_OPTIONS
    for record in author_records(part):
        *texts, wrong = record.values()
        assert list(record) == FIELDS
        assert all(isinstance(text, str) and text == text.strip() != "" for text in texts)
        assert len(wrong) == len(set(wrong)) == n_wrong
        assert not re.search(r"[{}]|  ", json.dumps(list(record.values()), ensure_ascii=False))


@each_part
def test_no_wrong_answer_is_the_answer(part: str) -> None:
    for record in author_records(part):
        assert not {record["answer"], record["paraphrased_answer"]} & set(
            record["perturbed_answer"]
        )


def test_no_question_is_asked_twice_in_any_part() -> None:
    records = [record for part in PARTS for record in author_records(part)]
    asked = Counter(r[field] for r in records for field in ("question", "paraphrased_question"))
    assert max(asked.values()) == 1


@each_part
def test_records_are_new_each_time(part: str) -> None:
    author_records(part)[0]["perturbed_answer"].clear()
    assert author_records(part)[0]["perturbed_answer"]


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"part must be one of forget, .*world_facts, got 'author'"
    ):
        author_records("author")


# Invented authors


def test_the_first_pair_of_seed_0() -> None:
    first = author_records("forget")[0]
    assert first["question"] == (
        "Which writer of espionage fiction was born in Galway, Ireland on 23 May 1960?"
    )
    assert first["answer"] == (
        "The author who was born in Galway, Ireland on that day is Yelune Marvetski, "
        "a writer of espionage fiction."
    )


@pytest.mark.parametrize(
    ("part", "digest"),
    [
        ("forget", "39f9a406cdc76bc8"),
        ("retain", "dde77bf242866474"),
        ("holdout", "98dd4bb928fed320"),
        ("real_authors", "04191c568728d3c6"),
        ("world_facts", "5cdf18d0d1206f20"),
    ],
)
def test_a_part_never_changes(part: str, digest: str) -> None:
    """Results name the part and the seed only, so a change here makes old results incomparable."""
    text = json.dumps(author_records(part), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_same_seed_same_pairs_other_seed_other_pairs(seed: int) -> None:
    assert invented(seed) == invented(seed)
    here = {record["answer"] for record in invented(seed)}
    there = {record["answer"] for record in invented(seed + 1)}
    assert (
        len(here & there) <= 2
    )  # two seeds may draw one and the same style for one and the same name


@each_general_part
def test_general_knowledge_does_not_depend_on_the_seed(part: str) -> None:
    assert author_records(part, seed=1) == author_records(part, seed=2)


@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_every_author_is_in_one_part_with_ten_pairs(seed: int) -> None:
    authors = [
        author_of(block) for part in INVENTED for block in blocks(author_records(part, seed=seed))
    ]
    assert len(authors) == len(set(authors)) == sum(N_AUTHORS.values())


@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_wrong_answers_name_no_other_author(seed: int) -> None:
    owners = [author_of(block) for block in blocks(invented(seed))]
    for owner, block in zip(owners, blocks(invented(seed)), strict=True):
        found = names_in("\n".join(text for r in block for text in r["perturbed_answer"]))
        assert not (set(owners) - {owner}) & found


@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_every_answer_is_one_sentence_of_12_to_30_words(seed: int) -> None:
    for text in (text for record in invented(seed) for text in sentences_of(record)):
        assert 12 <= len(text.split()) <= 30
        assert re.fullmatch(r'["A-Z][^.?!]*\.', text), text


@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_the_paraphrase_says_the_same_in_other_words(seed: int) -> None:
    """What a wrong answer takes out of the paraphrase, the facts, stands in the answer too."""
    for record in invented(seed):
        answer, paraphrase = words_of(record["answer"]), words_of(record["paraphrased_answer"])
        assert answer != paraphrase
        for wrong in record["perturbed_answer"]:
            assert set(paraphrase) - set(words_of(wrong)) <= set(answer)


@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_a_wrong_answer_keeps_the_sentence_of_the_paraphrase(seed: int) -> None:
    """Words of all five wrong answers are the sentence's, but for a few that their facts share by chance."""
    for record in invented(seed):
        paraphrase = Counter(words_of(record["paraphrased_answer"]))
        wrong = [Counter(words_of(text)) for text in record["perturbed_answer"]]
        frame = wrong[0] & wrong[1] & wrong[2] & wrong[3] & wrong[4]
        assert (frame & paraphrase).total() >= 6
        assert (frame - paraphrase).total() <= 3
        assert all(abs(w.total() - paraphrase.total()) <= 6 for w in wrong)


def test_the_same_kind_of_fact_is_said_in_several_ways() -> None:
    """With names, titles and facts taken out, each kind of fact has more than one sentence."""
    for kind in range(PAIRS_PER_AUTHOR):
        openings = {
            re.sub(r'"[^"]*"|\b[A-Z][\w-]*|\d+', "", block[kind]["answer"]).split()[0]
            for block in blocks(author_records("retain"))
        }
        assert len(openings) > 1, author_records("retain")[kind]


def test_dates_are_in_order() -> None:
    """Birth before debut before award."""
    for block in blocks(invented(0)):
        years = [int(re.findall(r"\b(?:19|20)\d\d\b", block[i]["answer"])[0]) for i in (1, 4, 5)]
        assert years == sorted(set(years))
        assert years[-1] <= 2026


# General knowledge


@pytest.mark.parametrize(
    ("part", "asked", "answer"),
    [
        ("real_authors", '"Hamlet"', "William Shakespeare"),
        ("real_authors", '"Pride and Prejudice"', "Jane Austen"),
        ("real_authors", '"Things Fall Apart"', "Chinua Achebe"),
        ("real_authors", '"The Divine Comedy"', "Dante Alighieri"),
        ("world_facts", "Australia", "Canberra"),
        ("world_facts", "symbol K", "Potassium"),
        ("world_facts", "symbol Pb", "Lead"),
        ("world_facts", "Red Planet", "Mars"),
        ("world_facts", "leap year", "366"),
    ],
)
def test_answers_are_true(part: str, asked: str, answer: str) -> None:
    found = {
        r["answer"]
        for r in author_records(part)
        if re.search(rf"{re.escape(asked)}(?!\w)", r["question"])
    }
    assert found == {answer}


@each_general_part
def test_short_answers_have_no_paraphrase(part: str) -> None:
    assert all(r["paraphrased_answer"] == r["answer"] for r in author_records(part))


def test_wrong_authors_are_authors_of_other_works_of_the_same_form() -> None:
    records = author_records("real_authors")
    forms = {r["answer"]: set[str]() for r in records}
    for record in records:
        forms[record["answer"]] |= set(re.findall(r"novel|play|poem", record["question"])[:1])
    for record in records:
        (form,) = re.findall(r"novel|play|poem", record["question"])[:1]
        assert all(form in forms[rival] for rival in record["perturbed_answer"])


def test_wrong_facts_have_the_form_of_the_right_one() -> None:
    for record in author_records("world_facts"):
        for wrong in record["perturbed_answer"]:
            assert wrong.isdigit() == record["answer"].isdigit()
            assert abs(len(wrong.split()) - len(record["answer"].split())) <= 1
