"""Dropout of what an adapter reads: in training passes only, the same again for the same pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from random_models import layers_of, loaded
from torch import Tensor

from core.config import TrialConfig
from core.errors import ConfigError
from core.model.layers import linear_shape
from core.training.adapter import DifferenceAdapter, InitialFactors
from core.training.checkpointing import checkpointed
from core.training.dropout import InputDropout

TrialMaker = Callable[..., TrialConfig]


def adapter(share: float, *, seed: int = 0) -> DifferenceAdapter:
    """An adapter that has moved, on a tiny Llama."""
    model = loaded()
    generator = torch.Generator().manual_seed(1)
    factors = {}
    for name, layer in layers_of(model).items():
        n_out, n_in = linear_shape(layer)
        factors[name] = InitialFactors(
            a=torch.randn(2, n_in, generator=generator),
            b=torch.randn(n_out, 2, generator=generator),
        )
    dropout = InputDropout(share, seed=seed)
    made = DifferenceAdapter(
        model.network, factors, rank=2, scaling=1.0, dtype=torch.float32, dropout=dropout
    )
    with torch.no_grad():
        for _, *both in made.increments():
            for increment in both:
                increment.normal_(std=0.1, generator=generator)
    return made


def logits(made: DifferenceAdapter) -> Tensor:
    ids = torch.arange(24).reshape(2, 12)
    found: Tensor = made.model(input_ids=ids, use_cache=False).logits
    return found


@torch.no_grad()
def test_nothing_is_dropped_but_in_a_training_pass() -> None:
    made, without = adapter(0.5), adapter(0.0)
    expected = logits(without)
    torch.testing.assert_close(logits(made), expected, rtol=0, atol=0)
    with made.dropping(1, 0):
        assert float((logits(made) - expected).abs().max()) > 0.01
        with made.reference():
            dropped_reference = logits(made)
    with made.reference():
        torch.testing.assert_close(logits(made), dropped_reference, rtol=0, atol=0)
    torch.testing.assert_close(logits(made), expected, rtol=0, atol=0)


@torch.no_grad()
def test_the_same_pass_drops_the_same_and_others_do_not() -> None:
    made = adapter(0.3)
    with made.dropping(1, 0):
        first = logits(made)
        torch.testing.assert_close(logits(made), first, rtol=0, atol=0)
    for other, number in ((made, (2, 0)), (made, (1, 1)), (adapter(0.3, seed=1), (1, 0))):
        with other.dropping(*number):
            assert not torch.equal(logits(other), first)


def test_the_share_is_dropped_and_the_mean_stays() -> None:
    dropout, x = InputDropout(0.25, seed=0), torch.ones(400, 100)
    with dropout.during(1):
        found, other = dropout(x, "a"), dropout(x, "b")
    assert sorted(set(found.flatten().tolist())) == pytest.approx([0.0, 4 / 3])
    # 40,000 draws: the mean of the kept, 1, has a standard error of sqrt(0.25 / 0.75 / 40000) = 0.0029
    assert float(found.mean()) == pytest.approx(1.0, abs=0.015)
    assert not torch.equal(found, other)


def test_blocks_that_are_computed_again_drop_the_same() -> None:
    def gradients(*, with_checkpoints: bool) -> list[Tensor]:
        made = adapter(0.5)
        again = lambda: made.dropping(7, 0)  # noqa: E731
        if with_checkpoints:
            with made.dropping(7, 0), checkpointed(made.model, again=again):
                loss = logits(made).square().mean()
        else:
            with made.dropping(7, 0):
                loss = logits(made).square().mean()
        parameters = [p for _, *both in made.increments() for p in both]
        return list(torch.autograd.grad(loss, parameters))

    for one, other in zip(
        gradients(with_checkpoints=False), gradients(with_checkpoints=True), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


@pytest.mark.parametrize("packing", [4, "auto"])
def test_a_pack_does_not_take_a_trial_that_drops(make_trial: TrialMaker, packing: object) -> None:
    with pytest.raises(
        ConfigError, match=rf"adapter\.dropout: .* leave engine\.packing at 1, got {packing}, or"
    ):
        make_trial({"adapter.dropout": 0.1, "engine.packing": packing})


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_outside_its_limits_is_refused(make_trial: TrialMaker, share: float) -> None:
    with pytest.raises(ConfigError, match=r"adapter\.dropout: .*than.* got"):
        make_trial({"adapter.dropout": share})
