"""A frozen model in 4 bits: refused where it cannot be, and the same arithmetic on what the codes stand for."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.config import EngineConfig, ModelConfig, PreparationConfig, TrialConfig
from core.errors import ConfigError, ModelError
from core.estimate import rank_memory
from core.model.layers import dense_weight, linear_shape, resolve_targets
from core.model.loading import LoadedModel, load_model
from core.model.quantised import dequantised, differentiable_weight, is_quantised
from core.store import artifacts
from core.training.adapter import DifferenceAdapter, InitialFactors, load_adapter
from core.training.importance import importance_sums
from core.training.ranks import Group, join_alone
from core.training.trained import float32_on_cpu
from core.training.warm import Warm
from core.worker import SideBySide, probes, report_measurement

TrialMaker = Callable[..., TrialConfig]
ENGINE = EngineConfig(dtype="fp32", device="cpu")
HAS_PACKAGE = find_spec("bitsandbytes") is not None
needs_package = pytest.mark.skipif(not HAS_PACKAGE, reason="bitsandbytes is not installed")
NF4 = {"model.quantisation": "nf4"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            {"adapter.kind": "full"},
            r"model\.quantisation: weights of 4 bits cannot be trained, .* use adapter\.kind: lora",
            id="trained",
        ),
        pytest.param(
            {"engine.zero_stage": 3},
            r"engine\.zero_stage: weights of 4 bits .* at most 2, got 3",
            id="partitioned",
        ),
        pytest.param({"model.quantisation": "int3"}, r"model\.quantisation: .*'nf4'", id="unknown"),
    ],
)
def test_what_four_bits_rule_out_is_refused(
    make_trial: TrialMaker, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        make_trial(NF4 | changes)


def test_a_model_that_is_prepared_is_trained_whole(make_trial: TrialMaker) -> None:
    with pytest.raises(ValueError, match=r"model\.quantisation: all weights are trained here"):
        PreparationConfig.model_validate(
            {
                "schema": 1,
                "model": {"source": "package:smollm2", "quantisation": "nf4"},
                "data": {r: {"source": f"embedded:{r}"} for r in ("forget", "retain")},
                "training": {"epochs": 1, "optimizer": {"learning_rate": 1e-4}},
            }
        )


@pytest.mark.skipif(HAS_PACKAGE, reason="bitsandbytes is installed")
def test_without_its_package_the_error_says_how_to_get_it(tiny_model: Path) -> None:
    with pytest.raises(
        ModelError, match=r'nf4 needs .* pip install "unlearn-tune\[bitsandbytes\]"'
    ):
        load_model(ModelConfig(source=str(tiny_model), quantisation="nf4"), ENGINE)


def test_the_estimate_counts_four_bits(make_trial: TrialMaker) -> None:
    plain, quantised = (rank_memory(make_trial(c)).weights for c in ({}, NF4))
    # two blocks of 64 x 64, 2 of 64 x 32, 64 x 64 and 3 of 64 x 128 weights; the largest counts as numbers, too
    n = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    saved = n * (4 - 0.5 - 1 / 64 - 4 / 256 / 64) - 4 * 64 * 128
    assert plain - quantised == pytest.approx(saved, abs=1)


def test_a_weight_that_is_no_code_is_differentiable_for_a_while() -> None:
    layer = nn.Linear(3, 2).requires_grad_(False)
    with differentiable_weight(layer) as weight:
        (gradient,) = torch.autograd.grad(layer(torch.ones(1, 3)).sum(), [weight])
    torch.testing.assert_close(gradient, torch.ones(2, 3))
    assert not layer.weight.requires_grad


@pytest.fixture
def model(tiny_model: Path) -> LoadedModel:
    return load_model(ModelConfig(source=str(tiny_model), quantisation="nf4"), ENGINE)


@needs_package
def test_layers_compute_with_what_their_codes_stand_for(
    model: LoadedModel, tiny_model: Path
) -> None:
    plain = load_model(ModelConfig(source=str(tiny_model)), ENGINE)
    assert model.precision == "torch.float32+nf4" != plain.precision == "torch.float32"
    assert model.identity == plain.identity
    names = resolve_targets(plain.network, "all", rank=2)
    assert resolve_targets(model.network, "all", rank=2) == names
    for name in names:
        layer, whole = (m.network.get_submodule(name) for m in (model, plain))
        assert is_quantised(layer) and not is_quantised(whole)
        assert linear_shape(layer) == linear_shape(whole) == tuple(dense_weight(layer).shape)
        x = torch.randn(5, linear_shape(layer)[1])
        torch.testing.assert_close(layer(x), F.linear(x, dequantised(layer)))
        error = (dense_weight(layer) - dense_weight(whole)).norm() / dense_weight(whole).norm()
        assert 0.01 < float(error) < 0.15


@needs_package
def test_a_code_s_weight_has_the_gradient_of_its_numbers(model: LoadedModel) -> None:
    layer = model.network.get_submodule("model.layers.0.mlp.up_proj")
    x, direction = torch.randn(5, 64), torch.randn(5, 128)
    before = layer(x)
    with differentiable_weight(layer) as weight:
        out = layer(x)
        (gradient,) = torch.autograd.grad((out * direction).sum(), [weight])
    torch.testing.assert_close(out, before)
    torch.testing.assert_close(gradient, direction.T @ x)
    torch.testing.assert_close(layer(x), before)


@needs_package
@torch.no_grad()
def test_what_is_saved_is_read_by_stock_peft_on_the_same_four_bits(
    model: LoadedModel, tmp_path: Path
) -> None:
    factors = {}
    for name in resolve_targets(model.network, "all", rank=2):
        n_out, n_in = linear_shape(model.network.get_submodule(name))
        factors[name] = InitialFactors(a=torch.randn(2, n_in) / 8, b=torch.randn(n_out, 2) / 8)
    made = DifferenceAdapter(model.network, factors, rank=2, scaling=2.0, dtype=torch.float32)
    for _, *both in made.increments():
        for increment in both:
            increment.normal_(std=0.1)
    ids = torch.arange(20)[None]
    expected = made.model(input_ids=ids, use_cache=False).logits
    made.save(tmp_path / "adapter", made.exported(float32_on_cpu), base="x")
    made.detach()
    stock = load_adapter(model.network, tmp_path / "adapter")
    torch.testing.assert_close(
        stock(input_ids=ids, use_cache=False).logits, expected, rtol=0, atol=1e-3
    )


@needs_package
@pytest.mark.integration
@pytest.mark.parametrize("init", ["lora", "fila", "vila"])
@pytest.mark.parametrize("stage", [0, 2])
def test_a_trial_forgets_on_four_bits(
    make_trial: TrialMaker, tmp_path: Path, init: str, stage: int
) -> None:
    config = make_trial(
        NF4
        | {
            "method.adapter_init": init,
            "engine.zero_stage": stage,
            "optimizer.learning_rate": 3e-3 if init == "lora" else 5e-4,
            "fisher.batch_size": 2,
            "selection.past_target": None,
        }
    )
    warm = Warm()
    found = [dict(p.metrics) for p in probes(config, folder=tmp_path, warm=warm)]
    assert found[-1]["forget_nll"] > found[0]["forget_nll"] + 0.01
    measured = report_measurement(
        config, tmp_path / "adapter", warm=warm, group=Group(rank=0, size=1)
    )
    gaps = [abs(measured.metrics["forget_nll"] - metrics["forget_nll"]) for metrics in found]
    assert min(gaps) < 1e-3


@needs_package
@pytest.mark.integration
def test_trials_in_a_pack_end_on_four_bits_where_they_end_alone(make_trial: TrialMaker) -> None:
    free = NF4 | {"selection.max_steps": 2, "selection.past_target": None}
    configs = [make_trial(free | {"adapter.rank": r, "method.adapter_init": "svd"}) for r in (2, 4)]
    group, _meeting = join_alone(configs[0].engine)
    pack = SideBySide(configs, n_slots=2, group=group, warm=Warm())
    seen: list[list[float]] = [[], []]
    for slot, config in enumerate(configs):
        pack.begin(slot, config)
    going = {0, 1}
    while going:
        for slot in sorted(going):
            probe = pack.go_on(slot)
            if probe is not None:
                seen[slot].append(probe.metrics["forget_nll"])
                if probe.stopped_by is not None:
                    pack.end(slot)
                    going.remove(slot)
        pack.step()
    pack.close()
    for config, found in zip(configs, seen, strict=True):
        alone = [p.metrics["forget_nll"] for p in probes(config, warm=Warm())]
        assert found == pytest.approx(alone, rel=0, abs=1e-4)


@needs_package
def test_shared_work_of_four_bits_is_kept_apart(make_trial: TrialMaker) -> None:
    found = []
    for changes in ({}, NF4):
        config = make_trial({"method.adapter_init": "fila"} | changes)
        warm = Warm()
        model, data = warm.model(config), warm.data(config)
        names = resolve_targets(model.network, "mlp", rank=2)
        layers = {name: model.network.get_submodule(name) for name in names}
        with artifacts.noted():
            found.append(importance_sums(config, model, data, layers))
    plain, quantised = found
    assert plain.keys() == quantised.keys()
    assert not any(torch.equal(plain[name], quantised[name]) for name in plain)
