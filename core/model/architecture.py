"""Door to transformers: which class reads text with a model, and whether it does so from left to right.

Shapes: B rows, T tokens, V vocabulary.
"""

from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

from core.errors import ModelError
from core.model.layers import vocabulary_size
from core.model.tolerance import agree

_TRIED_TOKENS = 6


def auto_class(architecture: Any) -> Any:
    """What loads a model: its causal language model, or the whole of what reads images beside text."""
    kind = type(architecture)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


@torch.no_grad()
def refuse_looking_ahead(network: nn.Module, *, source: str, field: str) -> None:
    """Refuse a model in which a token sees those that follow it.

    Their probabilities are not those of a text read from left to right: encoders such as BERT, unless their
    configuration says ``is_decoder``, and permuted or prefix models.

    Args:
        network: In evaluation mode.
        source: How the user named it.
        field: Where, for the message.

    Raises:
        ModelError: If it is one.
    """
    device = next(network.parameters()).device
    # The first ids are often special: some models take them for padding.
    middle = vocabulary_size(network) // 2
    ids_BT = (middle + torch.arange(_TRIED_TOKENS, device=device)).repeat(2, 1)
    ids_BT %= vocabulary_size(network)
    ids_BT[1, -1] = middle - 1
    logits_BTV = network(input_ids=ids_BT, use_cache=False).logits
    is_damaged = not bool(logits_BTV.isfinite().all())  # which is told where it is measured
    if not is_damaged and not agree(logits_BTV[0, :-1], logits_BTV[1, :-1]):
        raise ModelError(
            f"{field}: {source!r} is no causal language model: in {type(network).__name__} a token sees those that "
            "follow it; give a model that reads from left to right (an encoder such as BERT: with is_decoder: true "
            "in its config.json)"
        )
