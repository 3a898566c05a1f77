"""The facts about losses: complete, true to the losses, and enough for every rule that reads them."""

from dataclasses import fields
from operator import attrgetter
from typing import get_args

import pytest
from pydantic import BaseModel

from core.config.method import (
    FORGET_LOSS_FACTS,
    RETAIN_LOSS_FACTS,
    ForgetLossId,
    LossFacts,
    MethodConfig,
    Need,
    RetainLossId,
)
from core.losses import FORGET_LOSSES, RETAIN_LOSSES
from core.training.needs import PROVIDERS

FACTS: list[LossFacts] = [
    *FORGET_LOSS_FACTS.values(),
    *(facts for facts in RETAIN_LOSS_FACTS.values() if facts is not None),
]


def test_every_id_has_facts_in_the_order_of_the_ids() -> None:
    assert tuple(FORGET_LOSS_FACTS) == get_args(ForgetLossId)
    assert tuple(RETAIN_LOSS_FACTS) == get_args(RetainLossId)


@pytest.mark.parametrize("loss_id", get_args(ForgetLossId))
def test_a_forget_loss_has_the_facts_of_its_id(loss_id: ForgetLossId) -> None:
    loss, facts = FORGET_LOSSES[loss_id], MethodConfig(forget_loss=loss_id).forget_facts
    assert loss.facts is facts
    assert (loss.reduction, loss.reads, loss.needs) == (facts.reduction, facts.reads, facts.needs)


@pytest.mark.parametrize("loss_id", get_args(RetainLossId))
def test_a_retain_loss_has_the_facts_of_its_id(loss_id: RetainLossId) -> None:
    loss = RETAIN_LOSSES[loss_id]
    facts = MethodConfig(forget_loss="ga", retain_loss=loss_id).retain_facts
    assert (None if loss is None else loss.facts) is facts


def test_every_need_has_a_provider_and_is_some_losss() -> None:
    assert set(PROVIDERS) == set(get_args(Need))
    assert set().union(*(facts.needs for facts in FACTS)) == set(get_args(Need))


def test_facts_name_every_hyperparameter_of_the_method_and_no_other_field() -> None:
    sections = {
        f"{name}.{inner}"
        for name, field in MethodConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        for inner in field.annotation.model_fields
    }
    named = {field for facts in FACTS for field in facts.fields}
    assert named == sections | {"alternatives"}


def test_a_field_of_tokens_left_alone_is_one_of_the_losss_own() -> None:
    for facts in FORGET_LOSS_FACTS.values():
        if facts.left_alone is not None:
            assert facts.left_alone in facts.fields
            assert facts.reduction == "token"
            assert isinstance(attrgetter(facts.left_alone)(MethodConfig(forget_loss="ga")), int)


def test_what_a_loss_rules_out_is_said_in_words() -> None:
    usual = LossFacts(reduction="token")
    for facts in FACTS:
        rules_out = facts.adapter_kinds != usual.adapter_kinds or facts.needs_whole_weights
        fitting = getattr(facts, "retain_losses", None)
        assert bool(facts.because) == (rules_out or fitting is not None)


def test_only_ceu_leaves_tokens_alone() -> None:
    left = {
        loss: MethodConfig(forget_loss=loss).n_left_alone
        for loss in get_args(ForgetLossId)
        if MethodConfig(forget_loss=loss).n_left_alone
    }
    assert left == {"ceu": 1}


def test_facts_are_plain_values() -> None:
    """They are read where no torch is: nothing in them is a function or a tensor."""
    for facts in FACTS:
        for field in fields(facts):
            assert isinstance(getattr(facts, field.name), str | tuple | frozenset | bool | None)
