"""Weights between two models, against the published code of Unlearning with Control."""

from golden_cases import Variant, variants

from core.training.full_parameters import mixed


@variants("uwc_model_mix")
def test_golden_mixed_weights_with_the_ratio_read_from_the_other_end(variant: Variant) -> None:
    """The reference's ratio weights the original model; our factor weights the difference."""
    before, after = (
        {
            name.removeprefix(f"{model}."): variant.tensor(entry)
            for name, entry in variant.inputs.items()
            if name.startswith(f"{model}.")
        }
        for model in ("before", "after")
    )
    found = mixed(before, after, factor=1.0 - variant.params["ratio"])
    assert found.keys() == variant.expected.keys()
    for name, weight in found.items():
        variant.agrees(weight, name)
