"""Fisher information, against the published code of LoKU."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
import transformers
from golden_cases import FOLDER, Case, Variant, variants
from safetensors.torch import load_file
from torch import Tensor, nn

from core.fisher import diagonal_fisher
from core.losses import IGNORED, counted_tokens, nll_loss


def golden_model(entry: Mapping[str, Any]) -> Any:
    values = dict(entry["config"])
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    model = transformers.AutoModelForCausalLM.from_config(config)
    weights = {k: v.float() for k, v in load_file(FOLDER / entry["file"]).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


def batch_gradients(
    model: Any, variant: Variant, part: str, layers: Mapping[str, nn.Module]
) -> Iterator[tuple[dict[str, Tensor], int]]:
    ids, labels, masks = (
        variant.tensor(variant.inputs[f"{part}.{field}"])
        for field in ("input_ids", "labels", "attention_mask")
    )
    for i in range(len(ids)):
        logits = model(input_ids=ids[i], attention_mask=masks[i], use_cache=False).logits
        weights: list[Any] = [layer.weight for layer in layers.values()]
        gradients = torch.autograd.grad(nll_loss(logits, labels[i]), weights)
        n_counted = int(counted_tokens(labels[i]).sum())
        yield {f"{n}.weight": g for n, g in zip(layers, gradients, strict=True)}, n_counted


@variants("loku_fisher")
def test_golden_fisher_equals_published_code_whose_unshifted_counts_are_the_same_here(
    variant: Variant,
) -> None:
    """The reference counts labels before the shift, we count predictions.

    The counts differ only for a row whose first token is labelled; no golden row is such a one, so
    counts and values have to be equal. The reference stores the sum, not yet divided by the count.
    """
    model = golden_model(variant.params["model"])
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    for part, letter in (("forget", "f"), ("retain", "r")):
        labels = variant.tensor(variant.inputs[f"{part}.labels"])
        n_tokens = int((labels != IGNORED).sum())
        variant.agrees(n_tokens, f"{letter}_cnt", kind="counts")
        assert n_tokens == int((labels[..., 1:] != IGNORED).sum())
        found = diagonal_fisher(batch_gradients(model, variant, part, layers))
        assert sorted(found) == sorted(variant.expected["all_keys"])
        quantities = [q for q in variant.expected if q.startswith(f"importance_{letter}.")]
        assert len(quantities) == 3
        for quantity in quantities:
            name = quantity.partition(".")[2]
            variant.agrees(found[name] * n_tokens, quantity, kind="importance")
        if letter == "f":
            totals = variant.expected["sum_importance_f"]
            sums = [float(found[name].sum()) * n_tokens for name in totals]
            variant.agrees_with(sums, list(totals.values()), "sum_importance_f", kind="importance")
            assert sums == pytest.approx(list(totals.values()), rel=2e-4)


def test_golden_fisher_of_split_batches_is_another_estimator() -> None:
    """With two rows a batch the mean gradient is squared: smaller by about the number of rows."""
    by_name = {v.name: v.expected["sum_importance_f"] for v in Case("loku_fisher").variants}
    ratios = [by_name["gptneo_bs1"][k] / by_name["gptneo"][k] for k in by_name["gptneo"]]
    assert all(1.5 < r < 3.0 for r in ratios)
