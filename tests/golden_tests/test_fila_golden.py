"""Fisher-weighted initial factors, against the published code of LoKU."""

from typing import Any

import pytest
import torch
from golden_cases import Case, Variant
from torch import Tensor

from core.fila import relative_importance, row_weights, weighted_low_rank


def layers_of_all_variants() -> list[Any]:
    return [
        pytest.param(variant, key.removesuffix(".W"), id=f"{variant.name}-{key.removesuffix('.W')}")
        for variant in Case("loku_fila").variants
        for key in variant.inputs
        if key.endswith(".W")
    ]


def weighted_error(weight: Tensor, approximation: Tensor, rho: Tensor) -> float:
    return float((rho.double().unsqueeze(1) * (weight.double() - approximation.double())).norm())


@pytest.mark.parametrize(("variant", "layer"), layers_of_all_variants())
def test_golden_weighted_error_is_optimal_and_never_worse_than_the_published_code_s(
    variant: Variant, layer: str
) -> None:
    """The released code decomposes without oversampling and adds 1e-5 to the inverse row weights."""
    params, derived = variant.params, variant.derived

    def array(name: str) -> Tensor:
        return variant.tensor(variant.inputs[f"{layer}.{name}"]).float()

    weight = array("W")
    importance = relative_importance(
        array("importance_f") / params["f_cnt"],
        array("importance_r") / params["r_cnt"],
        floor=1e-5,
    )
    rho = row_weights(importance, exponent=0.5)
    their_rho = variant.tensor(derived[f"{layer}.rho"]).float()
    counts = their_rho > 0
    variant.agrees_with(rho[counts], their_rho[counts].numpy(), f"{layer}.rho", kind="weights")
    tight = variant.case.manifest["tolerance"]["weights"]  # also where a variant's factors are bf16
    torch.testing.assert_close(rho[counts], their_rho[counts], **tight)

    rank, scaling = params["r"], params["scaling"]
    found = weighted_low_rank(weight, rho, rank=rank, scaling=scaling)
    product = scaling * found.b @ found.a
    optimum = derived[f"{layer}.weighted_error_optimum"]
    error = weighted_error(weight, product, their_rho)
    rounding = 1e-6 * derived[f"{layer}.weighted_norm"]  # at full rank nothing else is left
    assert error <= 1.01 * optimum + rounding
    assert error <= derived[f"{layer}.weighted_error_of_result"] + rounding
    if optimum:
        variant.agrees_with(error / optimum, 1.0, f"{layer}.error_ratio", kind="error_ratio")
        variant.deviates(product, f"{layer}.sBA", by=1e-3)
    else:
        variant.agrees(product, f"{layer}.sBA", kind="weights")

    u, s, vh = torch.linalg.svd(rho.double().unsqueeze(1) * weight.double(), full_matrices=False)
    exact = (u[:, :rank] * s[:rank]) @ vh[:rank] / rho.double().unsqueeze(1)
    torch.testing.assert_close(
        rho.unsqueeze(1) * product,
        (rho.double().unsqueeze(1) * exact).float(),
        rtol=1e-4,
        atol=1e-5 * float(s[0]),
    )
    torch.testing.assert_close(found.residual, weight - product, rtol=1e-4, atol=1e-5)
