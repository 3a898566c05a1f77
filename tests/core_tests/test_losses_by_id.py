"""Losses by id: whole batch equals micro-batches, and each takes what it declares and its own options."""

from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from core.config.method import CeuConfig, ForgetLossId, MethodConfig, Need, RetainLossId
from core.losses import (
    FORGET_LOSSES,
    IGNORED,
    RETAIN_LOSSES,
    ForgetLoss,
    Outputs,
    Residual,
    RetainLoss,
    sequence_nll,
)
from core.losses.outputs import Given


def whole_batch() -> tuple[Outputs, Outputs]:
    """Rows to forget and alternatives, with all that any loss needs; lengths differ, two rows have no prompt."""
    generator = torch.Generator().manual_seed(5)

    def rows(lengths: list[tuple[int, int]]) -> Outputs:
        shape = (len(lengths), max(end for _, end in lengths))
        labels = torch.randint(0, 11, shape, generator=generator)
        for b, (start, end) in enumerate(lengths):
            labels[b, :start] = labels[b, end:] = IGNORED

        def random(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator)

        reference = random(*shape, 11)
        layers = [
            Residual(added_BTO=random(*shape, o), base_BTO=random(*shape, o), direction_O=random(o))
            for o in (3, 7)
        ]
        other = labels.where(labels == IGNORED, (labels + 3) % 11)
        return Outputs(
            logits=2.0 * random(*shape, 11),
            labels_BT=labels,
            given={
                "reference_nll": sequence_nll(reference, labels),
                "reference_logits": reference,
                "hidden": random(*shape, 6),
                "reference_hidden": random(*shape, 6),
                "control": random(6),
                "residuals": layers,
                "random_labels": other,
                "adversarial_labels": other,
            },
        )

    return rows([(0, 9), (2, 6), (3, 6), (0, 4), (1, 8)]), rows(
        [(2, 5), (2, 9), (3, 6), (1, 4), (1, 7)]
    )


def part(outputs: Outputs, rows: slice) -> Outputs:
    """Some rows of a batch, as a micro-batch would hold them."""
    given: dict[Need, Given] = {}
    for need, value in outputs.given.items():
        if isinstance(value, Tensor):
            given[need] = value if need == "control" else value[rows]
        else:
            given[need] = [
                replace(r, added_BTO=r.added_BTO[rows], base_BTO=r.base_BTO[rows]) for r in value
            ]
    return Outputs(logits=outputs.logits[rows], labels_BT=outputs.labels_BT[rows], given=given)


def count(loss: ForgetLoss | RetainLoss, rows: Outputs, method: MethodConfig) -> int:
    """What the engine weights a micro-batch with."""
    if loss.reduction == "sequence":
        return len(rows.labels_BT)
    left_alone = method.n_left_alone if isinstance(loss, ForgetLoss) else 0
    n_counted = 0
    for row in rows.labels_BT.tolist():
        labelled = [t for t, label in enumerate(row) if label != IGNORED][left_alone:]
        n_counted += sum(t > 0 for t in labelled)
    return n_counted


SPLITS = [
    pytest.param([slice(0, 5)], id="whole"),
    pytest.param([slice(0, 2), slice(2, 5)], id="2+3"),
    pytest.param([slice(b, b + 1) for b in range(5)], id="one-by-one"),
]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("loss_id", get_args(ForgetLossId))
def test_micro_batches_weighted_by_their_counts_give_the_whole_batch_on_the_forget_side(
    loss_id: ForgetLossId, split: list[slice]
) -> None:
    method = MethodConfig(forget_loss=loss_id, ceu=CeuConfig(ignore_first_tokens=2))
    loss = FORGET_LOSSES[loss_id]
    forget, alternative = whole_batch()
    expected = loss.compute(forget, alternative, method)
    found, total = torch.tensor(0.0), 0
    for rows in split:
        mine, other = part(forget, rows), part(alternative, rows)
        n = count(loss, other if loss.reads == "alternative" else mine, method)
        found, total = found + n * loss.compute(mine, other, method), total + n
    torch.testing.assert_close(found / total, expected)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("loss_id", [i for i in get_args(RetainLossId) if i != "none"])
def test_micro_batches_weighted_by_their_counts_give_the_whole_batch_on_the_retain_side(
    loss_id: RetainLossId, split: list[slice]
) -> None:
    method = MethodConfig(forget_loss="ga", retain_loss=loss_id)
    loss = RETAIN_LOSSES[loss_id]
    assert loss is not None
    retain, _ = whole_batch()
    found, total = torch.tensor(0.0), 0
    for rows in split:
        n = count(loss, part(retain, rows), method)
        found, total = found + n * loss.compute(part(retain, rows), method), total + n
    torch.testing.assert_close(found / total, loss.compute(retain, method))


def test_every_id_has_its_loss_in_order_and_no_other() -> None:
    assert tuple(FORGET_LOSSES) == get_args(ForgetLossId)
    assert tuple(RETAIN_LOSSES) == get_args(RetainLossId)
    assert RETAIN_LOSSES["none"] is None


def only(outputs: Outputs, needs: frozenset[Need]) -> Outputs:
    """Nothing but logits, labels and what ``needs`` names."""
    return replace(outputs, given={need: outputs.given[need] for need in needs})


@pytest.mark.parametrize("loss_id", get_args(ForgetLossId))
def test_a_forget_loss_is_computed_from_what_it_declares_and_from_no_less(
    loss_id: ForgetLossId,
) -> None:
    method, loss = MethodConfig(forget_loss=loss_id), FORGET_LOSSES[loss_id]
    forget, alternative = whole_batch()
    given_forget = only(forget, loss.needs) if loss.reads != "alternative" else None
    given_other = only(alternative, loss.needs) if loss.reads != "forget" else None
    torch.testing.assert_close(
        loss.compute(given_forget, given_other, method), loss.compute(forget, alternative, method)
    )
    for need in loss.needs:
        fewer = loss.needs - {need}
        with pytest.raises((AssertionError, ValueError), match="^$|residuals of at least one"):
            loss.compute(only(forget, fewer), only(alternative, fewer), method)
    if loss.reads in ("forget", "both"):
        with pytest.raises(AssertionError, match="^$"):
            loss.compute(None, given_other, method)
    if loss.reads in ("alternative", "both"):
        with pytest.raises(AssertionError, match="^$"):
            loss.compute(given_forget, None, method)


@pytest.mark.parametrize("loss_id", [i for i in get_args(RetainLossId) if i != "none"])
def test_a_retain_loss_is_computed_from_what_it_declares_and_from_no_less(
    loss_id: RetainLossId,
) -> None:
    method, loss = MethodConfig(forget_loss="ga", retain_loss=loss_id), RETAIN_LOSSES[loss_id]
    assert loss is not None
    retain, _ = whole_batch()
    torch.testing.assert_close(
        loss.compute(only(retain, loss.needs), method), loss.compute(retain, method)
    )
    for need in loss.needs:
        with pytest.raises((AssertionError, ValueError), match="^$|residuals of at least one"):
            loss.compute(only(retain, loss.needs - {need}), method)


@pytest.mark.parametrize(
    ("loss_id", "section", "value"),
    [
        ("npo", "npo", {"beta": 0.7}),
        ("simnpo", "simnpo", {"beta": 0.7}),
        ("simnpo", "simnpo", {"delta": 1.5}),
        ("dpo", "dpo", {"beta": 0.7}),
        ("undial", "undial", {"beta": 3.0}),
        ("wga", "wga", {"beta": 2.0}),
        ("satimp", "satimp", {"beta1": 1.0}),
        ("satimp", "satimp", {"beta2": 3.0}),
        ("ceu", "ceu", {"ignore_first_tokens": 2}),
        ("residual", "residual", {"shift": 3.0}),
    ],
)
def test_each_hyperparameter_reaches_its_loss_and_only_that(
    loss_id: ForgetLossId, section: str, value: Mapping[str, float]
) -> None:
    forget, alternative = whole_batch()
    for other_id, loss in FORGET_LOSSES.items():
        usual = MethodConfig.model_validate({"forget_loss": other_id})
        changed = MethodConfig.model_validate({"forget_loss": other_id, section: value})
        before = loss.compute(forget, alternative, usual).item()
        after = loss.compute(forget, alternative, changed).item()
        assert (before != after) == (other_id == loss_id), other_id
