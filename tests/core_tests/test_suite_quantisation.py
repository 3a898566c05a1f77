"""Suite quantisation: rounding by hand, and what it costs a memorised model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from naive_suites import average, close, log_probs
from suite_inputs import ENGINE, input_of, run, tokens

from core.config import ModelConfig
from core.model.layers import dense_weight, resolve_targets
from core.model.loading import LoadedModel, load_model
from core.suites import EvaluationData
from core.suites.audits import rounded_to_nearest


@pytest.mark.parametrize(
    ("bits", "group", "expected"),
    [
        pytest.param(2, None, [[0.0, 1.0, -1.0, 0.0]], id="two-bits-are-minus-one-zero-one"),
        pytest.param(3, None, [[1 / 3, 1.0, -2 / 3, 0.0]], id="three-bits-one-scale"),
        pytest.param(2, 3, [[0.0, 1.0, -1.0, 0.1]], id="a-smaller-last-group-has-its-own-scale"),
    ],
)
def test_rounding_by_hand(bits: int, group: int | None, expected: list[list[float]]) -> None:
    weight = torch.tensor([[0.4, 1.0, -0.6, 0.1]])
    found = rounded_to_nearest(weight, bits=bits, group=group)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_rounding_errs_by_half_a_step_at_most_and_keeps_zeros() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 150)
    weight[2] = 0.0
    for bits, group in ((8, 150), (4, 64)):
        found = rounded_to_nearest(weight, bits=bits, group=group)
        for start in range(0, 150, group):
            span = weight[:, start : start + group]
            steps = span.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
            assert bool(((found[:, start : start + group] - span).abs() <= steps / 2 + 1e-6).all())
        assert torch.equal(found[2], torch.zeros(150))
    assert torch.equal(
        rounded_to_nearest(weight, bits=8, group=None),
        rounded_to_nearest(weight, bits=8, group=150),
    )


def test_a_finer_rounding_is_nearer() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 128)
    errors = [
        float((rounded_to_nearest(weight, bits=bits, group=group) - weight).square().mean())
        for bits, group in ((8, None), (4, 64), (4, None))
    ]
    assert errors == sorted(errors)


@pytest.mark.parametrize(
    ("bits", "group", "match"),
    [(1, None, "bits must be at least 2, got 1"), (4, 0, "group must be at least 1, got 0")],
)
def test_rounding_to_nothing_is_refused(bits: int, group: int | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        rounded_to_nearest(torch.ones(2, 2), bits=bits, group=group)


def test_quantisation_to_four_bits_hurts_a_memorised_model_more_than_eight(
    model: LoadedModel, tiny_model: Path, text_data: EvaluationData
) -> None:
    before = {n: w.clone() for n, w in model.network.named_parameters()}
    given = input_of(model, text_data)
    found = run("quantisation", given)
    metrics = found.metrics
    copied = load_model(ModelConfig(source=str(tiny_model)), ENGINE)
    drift = {bits: abs(metrics[f"int{bits}_forget_nll"] - metrics["forget_nll"]) for bits in (8, 4)}
    assert metrics["int4_forget_nll"] > metrics["forget_nll"]
    assert drift[4] > drift[8] > 0.0
    with torch.no_grad():
        for name in resolve_targets(copied.network, "all", rank=1):
            weight = dense_weight(copied.network.get_submodule(name))
            for part in weight.split(64, dim=1):
                scale = part.abs().max(dim=1, keepdim=True).values / 7
                part.copy_((part / scale).round() * scale)
    rows = tokens(given, "forget")
    naive = -average([v for row in rows for v in log_probs(copied, row)])
    close(metrics["int4_forget_nll"], naive, within=1e-3)
    assert all(torch.equal(w, before[n]) for n, w in model.network.named_parameters())
    assert len(found.samples) == 8 + 40
