"""Fisher information: squared gradients, averaged over tokens in float32."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from core.fisher import diagonal_fisher
from core.losses import IGNORED, counted_tokens, nll_loss

GOLDEN = Path(__file__).parents[1] / "golden"

MANIFEST = json.loads((GOLDEN / "loku_fisher.json").read_text(encoding="utf-8"))


def test_two_batches_by_hand() -> None:
    first = {"w": torch.tensor([[1.0, -2.0]])}
    second = {"w": torch.tensor([[3.0, 0.0]])}
    found = diagonal_fisher([(first, 1), (second, 3)])
    # (1 * [1, 4] + 3 * [9, 0]) / 4
    torch.testing.assert_close(found["w"], torch.tensor([[7.0, 1.0]]))


@given(
    counts=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    n_out=st.integers(1, 4),
    n_in=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None)
def test_it_equals_a_float64_loop_over_entries(
    counts: list[int], n_out: int, n_in: int, seed: int
) -> None:
    gradients = torch.randn(len(counts), n_out, n_in, generator=torch.Generator().manual_seed(seed))
    found = diagonal_fisher(({"w": g}, n) for g, n in zip(gradients, counts, strict=True))["w"]
    for o in range(n_out):
        for i in range(n_in):
            entries = [float(g[o, i]) for g in gradients.double()]
            expected = sum(n * e * e for n, e in zip(counts, entries, strict=True)) / sum(counts)
            assert float(found[o, i]) == pytest.approx(expected, rel=1e-5)


def test_bf16_gradients_are_accumulated_in_float32() -> None:
    gradient = torch.full((2, 2), 0.1, dtype=torch.bfloat16)
    found = diagonal_fisher(({"w": gradient}, 7) for _ in range(2000))["w"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, gradient.float().square(), rtol=1e-5, atol=0)
    low = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(2000):
        low += gradient[0, 0].square() * 7
    assert float(low) / 14000 < 0.5 * float(found[0, 0])  # what accumulating in bf16 would give


def test_the_gradients_are_left_alone() -> None:
    gradient = torch.tensor([2.0])
    found = diagonal_fisher([({"w": gradient}, 1), ({"w": gradient}, 1)])
    assert found["w"].tolist() == [4.0]
    assert gradient.tolist() == [2.0]


def test_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="needs at least one batch, got none"):
        diagonal_fisher([])


@pytest.mark.parametrize("count", [0, -3])
def test_a_batch_that_counts_no_token_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"must count at least one token, got {count}"):
        diagonal_fisher([({"w": torch.ones(1)}, count)])


def golden_model(entry: Mapping[str, Any]) -> Any:
    values = dict(entry["config"])
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    model = transformers.AutoModelForCausalLM.from_config(config)
    weights = {k: v.float() for k, v in load_file(GOLDEN / entry["file"]).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


def batch_gradients(
    model: Any, arrays: Any, at: str, layers: Mapping[str, nn.Module]
) -> Iterator[tuple[dict[str, Tensor], int]]:
    ids, labels, masks = (
        torch.from_numpy(arrays[f"{at}.{field}"]).long()
        for field in ("input_ids", "labels", "attention_mask")
    )
    for i in range(len(ids)):
        logits = model(input_ids=ids[i], attention_mask=masks[i], use_cache=False).logits
        weights: list[Any] = [layer.weight for layer in layers.values()]
        gradients = torch.autograd.grad(nll_loss(logits, labels[i]), weights)
        n_counted = int(counted_tokens(labels[i]).sum())
        yield {f"{n}.weight": g for n, g in zip(layers, gradients, strict=True)}, n_counted


@pytest.mark.parametrize("variant", MANIFEST["variants"], ids=lambda v: str(v["name"]))
def test_it_equals_published_code_whose_unshifted_counts_are_the_same_here(
    variant: Mapping[str, Any],
) -> None:
    """The reference counts labels before the shift, we count predictions.

    The counts differ only for a row whose first token is labelled; no golden row is such a one, so
    counts and values have to be equal. The reference stores the sum, not yet divided by the count.
    """
    arrays = np.load(GOLDEN / MANIFEST["data"])
    model = golden_model(variant["params"]["model"])
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    tolerance = MANIFEST["tolerance"]["importance"]
    for part, letter in (("forget", "f"), ("retain", "r")):
        at = f"{variant['name']}/in.{part}"
        labels = torch.from_numpy(arrays[f"{at}.labels"])
        n_tokens = int((labels != IGNORED).sum())
        assert n_tokens == variant["expected"][f"{letter}_cnt"]
        assert n_tokens == int((labels[..., 1:] != IGNORED).sum())
        found = diagonal_fisher(batch_gradients(model, arrays, at, layers))
        assert sorted(found) == sorted(variant["expected"]["all_keys"])
        n_compared = 0
        for key, entry in variant["expected"].items():
            prefix, _, name = key.partition(".")
            if prefix == f"importance_{letter}":
                expected = torch.from_numpy(arrays[entry["array"]])
                torch.testing.assert_close(found[name] * n_tokens, expected, **tolerance)
                n_compared += 1
        assert n_compared == 3
        if letter == "f":
            for name, total in variant["expected"]["sum_importance_f"].items():
                assert float(found[name].sum()) * n_tokens == pytest.approx(total, rel=2e-4)


def test_splitting_a_batch_gives_another_estimator() -> None:
    """With two rows a batch the mean gradient is squared: smaller by about the number of rows."""
    by_name = {v["name"]: v["expected"]["sum_importance_f"] for v in MANIFEST["variants"]}
    ratios = [by_name["gptneo_bs1"][k] / by_name["gptneo"][k] for k in by_name["gptneo"]]
    assert all(1.5 < r < 3.0 for r in ratios)
