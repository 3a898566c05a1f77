"""Suites on a model with an adapter compute what its merged copy does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from suite_inputs import ENGINE, input_of, subject_of, tokens

from core.config import ModelConfig
from core.model.layers import dense_weight, resolve_targets
from core.model.loading import LoadedModel, load_model
from core.suites import EvaluationData, Subject
from core.training.adapter import DifferenceAdapter, InitialFactors, load_adapter
from core.training.trained import float32_on_cpu


@pytest.fixture
def adapter(model: LoadedModel, tiny_model: Path, tmp_path: Path) -> Path:
    """A stock PEFT folder whose difference is not small."""
    target = load_model(ModelConfig(source=str(tiny_model)), ENGINE)
    torch.manual_seed(3)
    factors = {}
    for name in resolve_targets(target.network, "all", rank=2):
        outputs, inputs = dense_weight(target.network.get_submodule(name)).shape
        factors[name] = InitialFactors(a=torch.randn(2, inputs) / 8, b=None)
        assert outputs > 2
    made = DifferenceAdapter(target.network, factors, rank=2, scaling=2.0, dtype=torch.float32)
    with torch.no_grad():
        for _, _, moved_b in made.increments():
            moved_b.normal_(std=0.1)
    made.save(tmp_path / "adapter", made.exported(float32_on_cpu), base=str(tiny_model))
    return tmp_path / "adapter"


def test_a_merged_copy_computes_what_the_adapted_model_computes(
    tiny_model: Path, adapter: Path, text_data: EvaluationData
) -> None:
    base = load_model(ModelConfig(source=str(tiny_model)), ENGINE)
    rows = tokens(input_of(base, text_data), "forget")
    plain = subject_of(base).read(rows, ("nll",))["nll"]
    network = load_adapter(base.network, adapter)
    subject = Subject(base, name="x", batch_size=3, network=network, has_adapter=True)
    adapted = subject.read(rows, ("nll",))["nll"]
    merged = subject.other(subject.merged_copy(torch.float32), name="y").read(rows, ("nll",))["nll"]
    assert merged == pytest.approx(adapted, rel=1e-4)
    assert max(abs(a - b) for a, b in zip(adapted, plain, strict=True)) > 0.1


def test_gradient_norms_with_an_adapter_are_those_of_the_merged_model(
    tiny_model: Path, adapter: Path, text_data: EvaluationData
) -> None:
    from core.suites.mia_suite import grad_norms

    base = load_model(ModelConfig(source=str(tiny_model)), ENGINE)
    rows = tokens(input_of(base, text_data), "forget")[:2]
    network = load_adapter(base.network, adapter)
    subject = Subject(base, name="x", batch_size=3, network=network, has_adapter=True)
    merged = subject.other(subject.merged_copy(torch.float32), name="y")
    assert grad_norms(subject, rows) == pytest.approx(grad_norms(merged, rows), rel=1e-3)
