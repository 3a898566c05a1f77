"""Importance from a random adapter, against the published code of VILA."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
import transformers
from golden_cases import FOLDER, Variant, variants
from safetensors.torch import load_file
from torch import Tensor, nn

from core.fila import relative_importance, row_weights, weighted_low_rank
from core.losses import IGNORED, counted_tokens, nll_loss
from core.model.layers import dense_weight
from core.training.adapter import DifferenceAdapter, InitialFactors
from core.vila import centred_fisher, importance_map

Fisher = Mapping[str, Mapping[str, Tensor]]


def golden_model(entry: Mapping[str, Any]) -> Any:
    values = dict(entry["config"])
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.load_state_dict({k: v.float() for k, v in load_file(FOLDER / entry["file"]).items()})
    return model.eval().requires_grad_(False)


def random_adapter(model: Any, variant: Variant) -> DifferenceAdapter:
    """The reference's random A and B as increments on zero: W x + s B A x."""
    stored: dict[str, dict[str, Tensor]] = {}
    for key, entry in variant.inputs.items():
        if key.startswith("lora_init."):
            name, _, side = key.removesuffix(".default.weight").rpartition(".lora_")
            name = name.removeprefix("lora_init.base_model.model.")
            stored.setdefault(name, {})[side] = variant.tensor(entry)
    adapter = DifferenceAdapter(
        model,
        {n: InitialFactors(a=torch.zeros_like(f["A"]), b=None) for n, f in stored.items()},
        rank=variant.params["r"],
        scaling=variant.params["scaling"],
        dtype=torch.float32,
    )
    for name, a, b in adapter.increments():
        a.data.copy_(stored[name]["A"])
        b.data.copy_(stored[name]["B"])
    return adapter


def batch_gradients(
    adapter: DifferenceAdapter, variant: Variant, part: str
) -> Iterator[tuple[dict[str, Tensor], int]]:
    factors = {
        f"{name}.{side}": factor
        for name, a, b in adapter.increments()
        for side, factor in (("a", a), ("b", b))
    }
    ids, labels, masks = (
        variant.tensor(variant.inputs[f"{part}.{field}"])
        for field in ("input_ids", "labels", "attention_mask")
    )
    for i in range(len(ids)):
        output = adapter.model(input_ids=ids[i], attention_mask=masks[i], use_cache=False)
        found = torch.autograd.grad(nll_loss(output.logits, labels[i]), list(factors.values()))
        yield dict(zip(factors, found, strict=True)), int(counted_tokens(labels[i]).sum())


def measured(variant: Variant) -> tuple[dict[str, nn.Module], Fisher]:
    model = golden_model(variant.params["model"])
    layers: dict[str, nn.Module] = {
        n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)
    }
    adapter = random_adapter(model, variant)
    fisher = {
        part: centred_fisher(batch_gradients(adapter, variant, part))
        for part in ("forget", "retain")
    }
    adapter.detach()
    return layers, fisher


LAYERS = ("self_attn.v_proj", "mlp.down_proj")


@variants("vila_importance")
def test_golden_centred_fisher_of_one_pass_is_that_of_the_reference_s_ten(variant: Variant) -> None:
    _, fisher = measured(variant)
    for part, letter in (("forget", "f"), ("retain", "r")):
        labels = variant.tensor(variant.inputs[f"{part}.labels"])
        n_tokens = int((labels[..., 1:] != IGNORED).sum())
        assert n_tokens == int((labels != IGNORED).sum())  # so unshifted counts are the same here
        variant.agrees(variant.params["passes"] * n_tokens, f"{letter}_cnt", kind="counts")
        for layer in LAYERS:
            for side in ("A", "B"):
                found = fisher[part][f"model.layers.0.{layer}.{side.lower()}"]
                variant.agrees(found, f"{layer}.F_{side}_{part}", kind="importance")


@pytest.mark.parametrize("layer", LAYERS)
@variants("vila_importance")
def test_golden_importance_and_row_weights_with_the_counts_divided_out_twice(
    variant: Variant, layer: str
) -> None:
    """Our maps are not divided by the counts again; the forget map's size and the floor change by that."""
    _, fisher = measured(variant)
    forget, retain = (
        importance_map(fisher[part][f"{at}.b"], fisher[part][f"{at}.a"])
        for part in ("forget", "retain")
        for at in (f"model.layers.0.{layer}",)
    )
    n_forget, n_retain = variant.expected["f_cnt"], variant.expected["r_cnt"]
    theirs = relative_importance(forget / n_forget, retain / n_retain, floor=1e-5)
    variant.agrees(theirs, f"{layer}.importance", kind="importance", derived=True)
    rho = row_weights(theirs, exponent=0.5)
    variant.agrees(rho, f"{layer}.rho", kind="weights", derived=True)

    ours = relative_importance(forget, retain, floor=1e-5 * n_retain)
    torch.testing.assert_close(ours * (n_retain / n_forget), theirs)
    undivided = relative_importance(forget, retain, floor=1e-5)
    assert not torch.allclose(undivided * (n_retain / n_forget), theirs, rtol=0.1)


@pytest.mark.parametrize("layer", LAYERS)
@variants("vila_importance")
def test_golden_weighted_error_is_optimal_and_below_that_of_the_published_factors(
    variant: Variant, layer: str
) -> None:
    """The released code decomposes without oversampling and adds 1e-5 to the inverse row weights."""
    layers, _ = measured(variant)
    weight = dense_weight(layers[f"model.layers.0.{layer}"])
    rho = variant.tensor(variant.derived[f"{layer}.rho"])
    rank, scaling = variant.params["r"], variant.params["scaling"]
    found = weighted_low_rank(weight, rho, rank=rank, scaling=scaling)
    product = scaling * found.b @ found.a

    def error(approximation: Tensor) -> float:
        return float((rho.double().unsqueeze(1) * (weight - approximation).double()).norm())

    optimum = variant.derived[f"{layer}.weighted_error_optimum"]
    assert error(product) == pytest.approx(optimum, rel=1e-5)
    variant.agrees_with(error(product), optimum, f"{layer}.weighted_error", kind="weights")
    published = variant.tensor(variant.expected[f"{layer}.sBA"])
    assert error(published) == pytest.approx(
        variant.derived[f"{layer}.weighted_error_of_result"], rel=1e-3
    )
    assert error(product) < 0.99 * error(published)
    variant.deviates(product, f"{layer}.sBA", by=1e-3)
    torch.testing.assert_close(found.residual + product, weight, rtol=1e-5, atol=1e-6)
