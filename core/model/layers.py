"""The layers of a model: which of them carry an adapter, and how their weights lie."""

import inspect
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from core.config import TargetGroup
from core.errors import ModelError

_GROUP_PATTERNS: Mapping[str, re.Pattern[str]] = {
    "attention": re.compile(r"(^|\.)[^.]*(attn|attention)[^.]*\."),
    "mlp": re.compile(r"(^|\.)([^.]*(mlp|ffn|feed_forward)[^.]*\.|fc\d+$)"),
}


def resolve_targets(
    network: nn.Module, group: TargetGroup, *, rank: int, layers: Sequence[int] | None = None
) -> list[str]:
    """Names of the linear layers of a group, found by looking at the model.

    Args:
        network: A causal language model; ``nn.Linear`` and GPT-2's ``Conv1D`` count as linear.
        group: ``attention``, ``mlp`` or ``all`` (both; never the output layer).
        rank: Rank that has to fit into each of them.
        layers: Blocks that they lie in, from 0; anywhere if absent.

    Raises:
        ModelError: If no layer matches, a layer is smaller than the rank, or a block does not exist.
    """
    output = getattr(network, "get_output_embeddings", lambda: None)()
    linear = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    }
    patterns = [p for g, p in _GROUP_PATTERNS.items() if group in (g, "all")]
    names = [name for name in linear if any(p.search(name) for p in patterns)]
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
    patterns = [p for g, p in _GROUP_PATTERNS.items() if group in (g, "all")]
    weights = {
        name: parameter.numel()
        for name, parameter in network.named_parameters()
        if parameter.ndim >= 2 and any(p.search(name) for p in patterns)
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
    """Name and list of the blocks: the longest list of modules that lies in no other list (of experts, say)."""
    lists = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList)
        and not any(part.isdecimal() for part in name.split("."))
    ]
    if not lists:
        raise ModelError(
            f"{field}: {type(network).__name__} has no list of blocks; leave {field} out"
        )
    return max(lists, key=lambda found: len(found[1]))


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
    shape = tuple(getattr(weight, "ds_shape", weight.shape))
    return (shape[1], shape[0]) if isinstance(module, Conv1D) else (shape[0], shape[1])


def dense_weight(module: nn.Module) -> Tensor:
    """Weight as ``(outputs, inputs)``: GPT-2's Conv1D stores the transpose."""
    weight = cast(nn.Parameter, module.weight).detach()
    return weight.T if isinstance(module, Conv1D) else weight


def oriented(module: nn.Module, tensor: Tensor) -> Tensor:
    """A tensor of the weight's own shape, turned to ``(outputs, inputs)``."""
    return tensor.T if isinstance(module, Conv1D) else tensor


def vocabulary_size(network: nn.Module) -> int:
    """Number of token ids that the model knows."""
    return int(cast(Any, network).get_input_embeddings().num_embeddings)


def takes(network: nn.Module, argument: str) -> bool:
    """Whether a model, without what is wrapped around it, can be called with an argument of this name."""
    base = getattr(network, "get_base_model", lambda: network)()
    return argument in inspect.signature(base.forward).parameters


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear layer stores its weight as inputs by outputs (GPT-2's Conv1D)."""
    return isinstance(module, Conv1D)
