"""Door to peft: which layers an adapter can name, so that stock PEFT finds them again."""

from collections.abc import Sequence
from typing import Any

import peft
import torch
from peft.utils.transformers_weight_conversion import (
    convert_peft_adapter_state_dict_for_transformers,
    convert_peft_config_for_transformers,
)
from torch import nn

_PREFIX, _SUFFIX = "base_model.model.", ".lora_A.weight"


def hosted(network: nn.Module, names: Sequence[str]) -> list[str]:
    """Those of the layers that stock PEFT attaches to under their own name, and loads weights for.

    For some mixtures of experts PEFT reads names such as ``gate_proj`` as parts of the fused experts of today, to
    load adapters of former versions, also where the layer is a shared expert or a dense block: it would change
    other weights than those named, without a word. Of others it renames the saved weights.

    Args:
        network: A causal language model, or its outline.
        names: Names of layers.
    """
    leaves = {name.rpartition(".")[2] for name in names}
    taken = {leaf for leaf in leaves if _is_taken_as_it_is(network, leaf)}
    found = [name for name in names if name.rpartition(".")[2] in taken]
    if getattr(network, "config", None) is None or not found:
        return found
    weights = {f"{_PREFIX}{name}{_SUFFIX}": torch.empty(1, 1) for name in found}
    config = peft.LoraConfig(target_modules=found)
    loaded: dict[str, Any] = convert_peft_adapter_state_dict_for_transformers(
        network, config, dict(weights)
    )
    return [name for name in found if f"{_PREFIX}{name}{_SUFFIX}" in loaded]


def _is_taken_as_it_is(network: nn.Module, leaf: str) -> bool:
    config = peft.LoraConfig(target_modules=[leaf])
    try:
        convert_peft_config_for_transformers(config, network, None)
    except ValueError:  # a part of what PEFT takes to be fused
        return False
    return leaf in (config.target_modules or ())
