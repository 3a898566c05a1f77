"""Door to transformers' attention: rows that lie end to end, each of which attends to itself alone.

Shapes: P tokens of all rows, B rows, T tokens of the longest, H heads, K heads of keys and values, G = H / K,
E width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from core.data.layouts import EndToEnd, Layout

PLAIN_UP_TO = 128
"""Tokens of a row up to which a CPU multiplies, masks and multiplies: torch's fused attention takes
longer there, forward and backward pass together. Beyond, the scores would need too much memory."""

_NAME = "unlearn_tune_rows"
_LAYOUT: ContextVar[EndToEnd | None] = ContextVar("layout", default=None)


@contextmanager
def attending_by_row(network: nn.Module, layout: Layout) -> Iterator[None]:
    """Within the context the network reads ``layout``, forward and, if entered again, once more for a gradient."""
    if not isinstance(layout, EndToEnd):
        yield
        return
    ALL_ATTENTION_FUNCTIONS.register(_NAME, rows_attention)
    config: Any = network.config
    parts = [config, *filter(None, (getattr(config, name, None) for name in config.sub_configs))]
    before = [part._attn_implementation for part in parts]
    token = _LAYOUT.set(layout)
    config._attn_implementation = _NAME  # and so the parts'
    try:
        yield
    finally:
        _LAYOUT.reset(token)
        for part, implementation in zip(parts, before, strict=True):  # the whole first
            part._attn_implementation = implementation


def rows_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row of the layout that is being read.

    Args:
        module: The layer, unused.
        query: ``(1, H, P, E)``.
        key: ``(1, K, P, E)``.
        value: ``(1, K, P, E')``.
        attention_mask: Ignored: rows are causal, and have no padding.
        scaling: Of the scores; one over the root of E if absent.
        sliding_window: Tokens that a token sees at most, itself included.
        softcap: Bound of the scores, through a hyperbolic tangent.
        kwargs: What else the model passes along.

    Returns:
        ``(1, P, H, E')``, and no weights.
    """
    layout = _LAYOUT.get()
    assert layout is not None  # the implementation is set within `attending_by_row`
    heads, groups = key.shape[1], query.shape[1] // key.shape[1]
    n, longest = layout.n_rows, layout.longest
    q, k, v = (_rows_of(x, heads, layout) for x in (query, key, value))  # (K B, G T, E)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    is_windowed = sliding_window is not None and sliding_window < longest
    if softcap is None and (q.device.type != "cpu" or longest > PLAIN_UP_TO):
        mask = _seen(longest, sliding_window, q.device) if is_windowed else None
        found = F.scaled_dot_product_attention(
            q.view(heads * n, groups, longest, -1),
            k.unsqueeze(1).expand(-1, groups, -1, -1),
            v.unsqueeze(1).expand(-1, groups, -1, -1),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
        ).flatten(1, 2)
    else:
        hidden = _hidden(layout, groups, sliding_window if is_windowed else None, q)
        if softcap is None:
            scores = torch.baddbmm(hidden, q, k.transpose(1, 2), alpha=scaling)
        else:
            scores = softcap * torch.tanh(torch.bmm(q, k.transpose(1, 2)) * (scaling / softcap))
            scores = scores + hidden
        found = torch.bmm(scores.softmax(dim=-1), v)
    return _tokens_of(found, heads, groups, layout), None


def _seen(longest: int, window: int | None, device: torch.device) -> Tensor:
    """Bool ``(T, T)``: which tokens each token sees."""
    seen = torch.ones((longest, longest), dtype=torch.bool, device=device).tril_()
    return seen if window is None else seen.triu_(1 - window)


def _hidden(layout: EndToEnd, groups: int, window: int | None, like: Tensor) -> Tensor:
    """``(G T, T)``, of the kind of ``like``: 0 where a token sees another, minus infinity elsewhere."""
    key = ("hidden", groups, window, like.dtype)
    if key not in layout.kept:
        seen = _seen(layout.longest, window, like.device)
        hidden = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
        layout.kept[key] = (hidden.masked_fill_(~seen, -torch.inf).repeat(groups, 1),)
    return layout.kept[key][0]


def _rows_of(states: Tensor, heads: int, layout: EndToEnd) -> Tensor:
    """From ``(1, K G, P, E)`` to ``(K B, G T, E)``."""
    index, place, _ = _indices(states.shape[1], heads, layout)
    found: Tensor = _Spread.apply(states.reshape(-1, states.shape[-1]), index, place)  # type: ignore[no-untyped-call]
    return found.view(heads * layout.n_rows, -1, states.shape[-1])


def _tokens_of(states: Tensor, heads: int, groups: int, layout: EndToEnd) -> Tensor:
    """From ``(K B, G T, E)`` to ``(1, P, K G, E)``."""
    *_, by_token = _indices(heads * groups, heads, layout)
    found: Tensor = _Gathered.apply(states.reshape(-1, states.shape[-1]), by_token)  # type: ignore[no-untyped-call]
    return found.view(1, -1, heads * groups, states.shape[-1])


def _indices(n_heads: int, heads: int, layout: EndToEnd) -> tuple[Tensor, ...]:
    """What stands at each place of ``(K, B, G, T)`` of ``(K G, P)``; the places of these; those of ``(P, K G)``."""
    key = ("places", n_heads, heads)
    if key not in layout.kept:
        groups, n_tokens, device = (
            n_heads // heads,
            len(layout.token_index),
            layout.token_index.device,
        )
        head = torch.arange(n_heads, device=device).view(heads, 1, groups, 1)
        token = layout.padding_index.view(1, layout.n_rows, 1, layout.longest)
        row = layout.token_index // layout.longest
        above = (head.view(n_heads, 1) // groups) * layout.n_rows + row
        group = head.view(n_heads, 1) % groups
        place = (above * groups + group) * layout.longest + layout.token_index % layout.longest
        index = (head * n_tokens + token).flatten()
        layout.kept[key] = index, place.flatten(), place.T.flatten()
    return layout.kept[key]


class _Spread(torch.autograd.Function):
    """Tokens to the places of a padded layout, on whose padding stands some token that nobody sees."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, index: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return states.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors  # what stands on padding has no gradient: nothing is added up
        return gradient.index_select(0, place), None, None


class _Gathered(torch.autograd.Function):
    """Back to the tokens: what stands on padding is left behind."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        ctx.n_places = len(states)
        return states.index_select(0, place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors
        found = gradient.new_zeros(ctx.n_places, gradient.shape[-1])
        return found.index_copy_(0, place, gradient), None
