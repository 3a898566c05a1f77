"""The layers of a model: which of them carry an adapter, and how their weights lie."""

import inspect
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, cast

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from core.config import TargetGroup
from core.errors import ModelError
from core.model.hosting import hosted
from core.model.quantised import dequantised, is_quantised

_GROUP_PATTERNS: Mapping[str, re.Pattern[str]] = {
    "attention": re.compile(
        r"(^|\.)([^.]*(attn|attention|mamba|mixer|lstm|temporal_block)[^.]*|conv)\."
    ),
    "mlp": re.compile(
        r"(^|\.)([^.]*(mlp|ffn|feed_forward)[^.]*\.|fc\d+$)|\.\d+\.(intermediate|output)\."
    ),
}
_NOT_TRAINED = re.compile(
    r"(^|\.)((encoder_attn|crossattention|cross_attn)\."  # reads an encoder, of which a text has none
    r"|[^.]*router[^.]*(\.|$)|gate\.wg$|gate$"  # which experts
    r"|indexer\.|index_|patcher\.)"  # which tokens
    r"|o_a_proj$"  # multiplies group by group (DeepSeek-V4)
    r"|(mamba|mixer)\.(out_proj|dt_proj)$"  # their weights are read past the layer, where kernels are fused
)
"""Layers that choose, with no gradient of their own, or that no adapter on the layer reaches."""
_POSITIONS = re.compile(
    r"(^|\.)(wpe|pos_encoding|(embed_)?positions?(_embed|_embeddings)?|embed_positions)(\.weight)?$"
)
_OTHER_INPUTS = re.compile(r"vision|image|audio")
_TOLD_POSITIONS = {"mpt": "max_seq_len", "reformer": "max_position_embeddings"}
"""Models whose positions end where the configuration says so, though no table of them is seen."""
_MOST_OF_A_GATE = 128
"""Numbers that a gate gives of each token at most: one for each head or expert."""


def resolve_targets(
    network: nn.Module, group: TargetGroup, *, rank: int, layers: Sequence[int] | None = None
) -> list[str]:
    """Names of the linear layers of a group, found by looking at the model.

    Args:
        network: A causal language model; ``nn.Linear`` and GPT-2's ``Conv1D`` count as linear.
        group: ``attention`` (also recurrent and convolutional mixers of tokens), ``mlp`` or ``all`` (both; never
            the output layer). Left out are encoders of images and sound, routers and gates (at most 128 numbers
            for each token, a sixteenth of what they read), and layers that stock PEFT cannot name
            (:func:`core.model.hosting.hosted`).
        rank: Rank that has to fit into each of them.
        layers: Blocks that they lie in, from 0; anywhere if absent.

    Raises:
        ModelError: If no layer matches, a layer is smaller than the rank, or a block does not exist.
    """
    output = output_layer(network)
    linear = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    }
    patterns, reads_text = _patterns(group), _reads_text(network)
    names = [
        name
        for name, module in linear.items()
        if any(p.search(name) for p in patterns)
        and reads_text(name)
        and not _NOT_TRAINED.search(name)
        and not _is_gate(module)
    ]
    names = hosted(network, names)
    if not names:
        shown = ", ".join(sorted({name.rpartition(".")[2] for name in linear})) or "none"
        raise ModelError(
            f"adapter.targets: no linear layer of {type(network).__name__} belongs to {group!r}; "
            f"linear layers found: {shown}"
        )
    if layers is not None:
        names = _within_blocks(network, names, layers)
    for name in names:
        smaller = min(linear_shape(linear[name]))
        if rank > smaller:
            raise ModelError(
                f"adapter.rank: must not exceed the smaller side of a layer, got rank={rank} for {name} "
                f"of shape {linear_shape(linear[name])}; use at most {smaller}, or other adapter.targets"
            )
    return names


def output_layer(network: nn.Module) -> nn.Module | None:
    """The layer that gives logits, which carries no adapter and is never quantised; ``None`` if there is none."""
    found: nn.Module | None = getattr(network, "get_output_embeddings", lambda: None)()
    return found


def _patterns(group: TargetGroup) -> list[re.Pattern[str]]:
    return [p for g, p in _GROUP_PATTERNS.items() if group in (g, "all")]


def _is_gate(module: nn.Module) -> bool:
    """Whether a layer gives one number for each head or expert."""
    outputs, inputs = linear_shape(module)
    return outputs <= _MOST_OF_A_GATE and 16 * outputs <= inputs


def _reads_text(network: nn.Module) -> Callable[[str], bool]:
    """Whether a name lies where a text without images or sound is read."""
    asleep = tuple(
        f"{name}."
        for name, module in network.named_modules()
        if "cross_attn" in module._modules and "self_attn" not in module._modules
    )
    within = f"{_blocks(network)[0]}." if _is_multimodal(network) else ""
    return lambda name: name.startswith(within) and not name.startswith(asleep)


def _is_multimodal(network: nn.Module) -> bool:
    config = cast(Any, getattr(network, "config", None))
    if config is None:
        return False
    others = {"text_config", "vision_config", "audio_config"} & set(config.sub_configs)
    return bool(others) or config.get_text_config() is not config


def n_blocks(network: nn.Module) -> int:
    """Number of decoder blocks, which ``adapter.layers`` counts from 0.

    Raises:
        ModelError: If the model has no list of blocks.
    """
    return len(_blocks(network)[1])


def blocks_up_to(network: nn.Module, last: int) -> tuple[str, ...]:
    """Beginnings of the names of all that lies in the blocks from 0 to ``last``.

    Raises:
        ModelError: If the model has no list of blocks.
    """
    path, _ = _blocks(network)
    return tuple(f"{path}.{i}." for i in range(last + 1))


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How much of what a target group means carries an adapter.

    Attributes:
        share: Share of the weights in matrices of the group, experts included.
        left_out: Names of the weights that carry none, without their place; the largest first.
    """

    share: float
    left_out: tuple[str, ...]


def coverage(network: nn.Module, group: TargetGroup, targets: Sequence[str]) -> Coverage:
    """What part of a group's weights ``targets`` adapts.

    Experts of many models are parameters of three dimensions in one module, not linear layers, and an
    adapter does not fit on them.

    Args:
        network: A causal language model.
        group: The group that was asked for.
        targets: Names of the layers that carry an adapter.
    """
    patterns, reads_text = _patterns(group), _reads_text(network)
    weights = {
        name: parameter.numel()
        for name, parameter in network.named_parameters()
        if parameter.ndim >= 2 and any(p.search(name) for p in patterns) and reads_text(name)
    }
    covered = {f"{name}.weight" for name in targets}
    left: Counter[str] = Counter()
    for name, size in weights.items():
        if name not in covered:
            left[".".join(part for part in name.split(".")[-3:] if not part.isdecimal())] += size
    total = sum(weights.values())
    return Coverage(
        share=1.0 - sum(left.values()) / total if total else 1.0,
        left_out=tuple(name for name, _ in left.most_common()),
    )


def blocks(network: nn.Module, *, field: str) -> nn.ModuleList:
    """The decoder blocks.

    Args:
        network: A causal language model, or what is wrapped around one.
        field: What asks for them; for the message.

    Raises:
        ModelError: If the model has no list of blocks.
    """
    return _blocks(network, field)[1]


def _blocks(network: nn.Module, field: str = "adapter.layers") -> tuple[str, nn.ModuleList]:
    """Name and list of the blocks: the longest list of modules that lies in no other list (of experts, say).

    Of a model that also reads images or sound, the one that lies nearest to the embedding of tokens.
    """
    lists = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList)
        and not any(part.isdecimal() for part in name.split("."))
    ]
    if _is_multimodal(network):
        place = _place_of_embedding(network).split(".")

        def nearness(found: tuple[str, nn.ModuleList]) -> tuple[int, int]:
            parts = found[0].split(".")
            shared = takewhile(lambda pair: pair[0] == pair[1], zip(place, parts, strict=False))
            return len(list(shared)), -len(parts)

        lists = sorted(lists, key=nearness)[-1:]
    if not lists:
        raise ModelError(
            f"{field}: {type(network).__name__} has no list of blocks; leave {field} out"
        )
    return max(lists, key=lambda found: len(found[1]))


def _place_of_embedding(network: nn.Module) -> str:
    embedding = cast(Any, network).get_input_embeddings()
    return next((name for name, module in network.named_modules() if module is embedding), "")


def _within_blocks(network: nn.Module, names: Sequence[str], layers: Sequence[int]) -> list[str]:
    path, blocks = _blocks(network)
    missing = sorted(i for i in set(layers) if not 0 <= i < len(blocks))
    if missing:
        raise ModelError(
            f"adapter.layers: {type(network).__name__} has {len(blocks)} blocks, 0 to {len(blocks) - 1}, "
            f"got {', '.join(map(str, missing))}"
        )
    places = tuple(f"{path}.{i}." for i in layers)
    found = [name for name in names if name.startswith(places)]
    if not found:
        raise ModelError(
            f"adapter.layers: no layer of adapter.targets lies in block {', '.join(map(str, layers))} "
            f"of {type(network).__name__}; name other blocks or other adapter.targets"
        )
    return found


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """``(outputs, inputs)`` of a linear layer; also under ZeRO 3, where the weight itself is away."""
    weight = cast(nn.Parameter, module.weight)
    if is_quantised(module):
        return cast(int, module.out_features), cast(int, module.in_features)
    shape = tuple(getattr(weight, "ds_shape", weight.shape))
    return (shape[1], shape[0]) if isinstance(module, Conv1D) else (shape[0], shape[1])


def dense_weight(module: nn.Module) -> Tensor:
    """Weight as ``(outputs, inputs)``: GPT-2's Conv1D stores the transpose, a 4-bit layer codes."""
    if is_quantised(module):
        return dequantised(module)
    weight = cast(nn.Parameter, module.weight).detach()
    return weight.T if isinstance(module, Conv1D) else weight


def oriented(module: nn.Module, tensor: Tensor) -> Tensor:
    """A tensor of the weight's own shape, turned to ``(outputs, inputs)``."""
    return tensor.T if isinstance(module, Conv1D) else tensor


def vocabulary_size(network: nn.Module) -> int:
    """Number of token ids that the model knows."""
    return int(cast(Any, network).get_input_embeddings().num_embeddings)


def n_positions(network: nn.Module) -> int | None:
    """Tokens that a row may have, of a model with a table of positions; ``None`` if it computes positions.

    Rotary positions go on past ``max_position_embeddings``, with another quality; a table ends. OPT's and BART's
    begins at its second row, RoBERTa's after the padding's.
    """
    config = cast(Any, getattr(network, "config", None))
    told = _TOLD_POSITIONS.get(getattr(config, "model_type", ""))
    if told is not None:
        return int(getattr(config, told))
    tables = [
        (name, table)
        for name, table in (*network.named_parameters(), *network.named_buffers())
        if _POSITIONS.search(name) and not _OTHER_INPUTS.search(name) and table.ndim == 2
    ]
    rows = []
    for name, table in tables:
        module = cast(Any, network.get_submodule(name.rpartition(".")[0]))
        first = getattr(module, "padding_idx", None)
        offset = getattr(module, "offset", 0 if first is None else first + 1)
        length = getattr(table, "ds_shape", table.shape)[0]
        rows.append(int(length) - offset)
    return min(rows, default=None)


def takes(network: nn.Module, argument: str) -> bool:
    """Whether a model, without what is wrapped around it, can be called with an argument of this name."""
    base = getattr(network, "get_base_model", lambda: network)()
    return argument in inspect.signature(base.forward).parameters


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear layer stores its weight as inputs by outputs (GPT-2's Conv1D)."""
    return isinstance(module, Conv1D)
