"""Rows are split without overlap, by seed and role."""

import pytest
from data_roles import DataMaker

from core.data.splits import Splits, refuse_small_retain, split_data
from core.errors import DataError


def test_the_parts_are_disjoint_and_complete(make_data: DataMaker) -> None:
    splits = split_data(make_data())
    parts = {name: {row.answer for row in rows} for name, rows in vars(splits).items()}
    assert {name: len(rows) for name, rows in parts.items()} == {
        "forget": 12,
        "retain_train": 3,
        "retain_probe": 4,
        "retain_report": 5,
        "approximate_probe": 5,
        "approximate_report": 7,
        "general_train": 3,
        "general_probe": 4,
        "general_report": 5,
    }
    assert sum(map(len, parts.values())) == len(set().union(*parts.values()))


def test_the_same_seed_gives_the_same_splits_and_another_seed_others(make_data: DataMaker) -> None:
    assert split_data(make_data()) == split_data(make_data())
    other = split_data(make_data({"split_seed": 1}))
    assert other.retain_probe != split_data(make_data()).retain_probe
    assert other.forget == split_data(make_data()).forget


def test_a_role_s_split_does_not_depend_on_the_other_roles_files(make_data: DataMaker) -> None:
    before = split_data(make_data())
    after = split_data(
        make_data(forget=["something else"], general=[f"general {i}" for i in range(20)])
    )
    for part in ("retain_train", "retain_probe", "retain_report", "approximate_probe"):
        assert getattr(after, part) == getattr(before, part)


def test_retain_and_general_set_may_have_parts_of_unlike_size(make_data: DataMaker) -> None:
    splits = split_data(make_data({"probe_rows": {"retain": 6, "general": 3}, "report_rows": 4}))
    assert (len(splits.retain_probe), len(splits.general_probe)) == (6, 3)
    assert (len(splits.retain_report), len(splits.general_report)) == (4, 4)
    assert (len(splits.retain_train), len(splits.general_train)) == (2, 5)


@pytest.mark.parametrize(
    ("n_rows", "halves"), [(12, (5, 7)), (9, (4, 5)), (2, (1, 1)), (3, (1, 2))]
)
def test_every_row_of_the_approximate_set_is_measured_however_few_there_are(
    make_data: DataMaker, n_rows: int, halves: tuple[int, int]
) -> None:
    splits = split_data(make_data(approximate=[f"approximate {i}" for i in range(n_rows)]))
    assert (len(splits.approximate_probe), len(splits.approximate_report)) == halves


def test_a_row_that_two_roles_share_is_refused(make_data: DataMaker) -> None:
    retain = [f"retain row {i}" for i in range(12)]
    with pytest.raises(
        DataError, match=r"data\.retain: .* shares a row with data\.forget: 'Forget, ROW 3!'"
    ):
        split_data(make_data(retain=[*retain, "Forget, ROW 3!"]))


def test_rows_that_occur_twice_in_a_role_are_kept_once(make_data: DataMaker) -> None:
    splits = split_data(make_data(forget=["b", "a", "B!", "c", "a"]))
    assert [row.answer for row in splits.forget] == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("role", "n_rows", "message"),
    [
        (
            "retain",
            9,
            r"data\.retain: 4 probe rows and 5 report rows and at least one to train on need 10",
        ),
        (
            "approximate",
            1,
            r"data\.approximate: at least 2 distinct rows are needed, got 1",
        ),
        (
            "general",
            8,
            r"data\.general: 4 probe rows and 5 report rows need 9 distinct rows, got 8",
        ),
    ],
)
def test_a_role_with_too_few_rows_is_refused(
    make_data: DataMaker, role: str, n_rows: int, message: str
) -> None:
    texts = {role: [f"{role} row {i}" for i in range(n_rows)]}
    with pytest.raises(DataError, match=message):
        split_data(make_data(**texts))
    texts[role].append("one more")
    assert isinstance(split_data(make_data(**texts)), Splits)


def test_a_retain_set_smaller_than_a_step_is_refused() -> None:
    refuse_small_retain(8, 8)
    with pytest.raises(
        DataError,
        match=r"data\.retain: 7 rows to train on are fewer than the 8 of one optimiser step",
    ):
        refuse_small_retain(7, 8)
    with pytest.raises(DataError, match=r"data\.general: 0 rows to train on"):
        refuse_small_retain(0, 1, role="general")


def test_duplicates_do_not_fill_a_part(make_data: DataMaker) -> None:
    with pytest.raises(DataError, match="need 10 distinct rows, got 1"):
        split_data(make_data(retain=["the same"] * 50))
