"""Clipping inside the optimiser, against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from core.config import EngineConfig, OptimizerConfig
from core.training.clipping import ClippingAdamW, clip, clips_itself


def with_gradients(*values: list[float]) -> list[nn.Parameter]:
    found = []
    for value in values:
        parameter = nn.Parameter(torch.zeros(len(value)))
        parameter.grad = torch.tensor(value)
        found.append(parameter)
    return found


def gradients(parameters: list[nn.Parameter]) -> list[list[float]]:
    return [p.grad.tolist() for p in parameters if p.grad is not None]


def alone(squared: Tensor) -> Tensor:
    raise AssertionError("this rank holds everything: nobody is asked")


def test_a_long_gradient_is_scaled_down_as_a_whole() -> None:
    parameters = with_gradients([3.0, 0.0], [4.0])
    clip(parameters, 1.0, n_weights=3, total=alone)
    assert gradients(parameters) == [pytest.approx([0.6, 0.0]), pytest.approx([0.8])]


@pytest.mark.parametrize("largest", [5.1, 0.0])
def test_a_short_one_or_one_without_a_limit_stays(largest: float) -> None:
    parameters = with_gradients([3.0, 0.0], [4.0])
    clip(parameters, largest, n_weights=3, total=alone)
    assert gradients(parameters) == [[3.0, 0.0], [4.0]]


def test_a_part_is_clipped_by_the_norm_of_all_ranks() -> None:
    """This rank's part has the norm 3, the other's 4."""
    parameters = with_gradients([3.0])
    clip(parameters, 1.0, n_weights=2, total=lambda squared: squared.add_(16.0))
    assert gradients(parameters) == [pytest.approx([0.6])]


def test_what_has_no_gradient_plays_no_part() -> None:
    parameters = [nn.Parameter(torch.zeros(5)), *with_gradients([3.0, 4.0])]
    clip(parameters, 1.0, n_weights=7, total=alone)
    assert gradients(parameters) == [pytest.approx([0.6, 0.8])]
    clip(parameters[:1], 1.0, n_weights=5, total=alone)


@given(
    rows=st.lists(
        st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=4), min_size=1, max_size=5
    ),
    largest=st.floats(1e-3, 1e4),
)
def test_it_clips_as_torch_does(rows: list[list[float]], largest: float) -> None:
    ours, theirs = with_gradients(*rows), with_gradients(*rows)
    clip(ours, largest, n_weights=sum(map(len, rows)), total=alone)
    nn.utils.clip_grad_norm_(theirs, largest)
    for one, other in zip(gradients(ours), gradients(theirs), strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("largest", [0.0, 0.5])
def test_its_steps_are_those_of_torch_on_a_clipped_gradient(largest: float) -> None:
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.01)
    ours, theirs = with_gradients([3.0, -1.0], [4.0]), with_gradients([3.0, -1.0], [4.0])
    optimizer = ClippingAdamW(ours, config, largest_norm=largest, total=alone)
    plain = torch.optim.AdamW(
        theirs, lr=1e-2, betas=(config.beta1, config.beta2), weight_decay=0.01
    )
    plain.param_groups[0]["eps"] = config.epsilon
    for scale in (1.0, 0.1, 2.0):
        for one, other in zip(ours, theirs, strict=True):
            value = torch.arange(1.0, 1.0 + len(one)) * scale
            one.grad, other.grad = value.clone(), value.clone()
        if largest:
            nn.utils.clip_grad_norm_(theirs, largest)
        optimizer.param_groups[0]["lr"] = 1e-2
        optimizer.step()
        plain.step()
    for one, other in zip(ours, theirs, strict=True):
        assert one.tolist() == pytest.approx(other.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "dtype", "expected"),
    [
        ({"zero_stage": 1}, torch.bfloat16, True),
        ({"zero_stage": 2}, torch.bfloat16, True),
        ({"zero_stage": 1}, torch.float32, False),
        ({"zero_stage": 0}, torch.bfloat16, False),
        ({"zero_stage": 3}, torch.bfloat16, False),
        ({"zero_stage": 2, "offload": "optimizer"}, torch.bfloat16, False),
    ],
)
def test_where_deepspeed_needs_its_norm_for_more_it_clips(
    changes: dict[str, object], dtype: torch.dtype, expected: bool
) -> None:
    assert clips_itself(EngineConfig.model_validate(changes), dtype) is expected
