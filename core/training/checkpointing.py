"""Activation checkpointing: blocks keep their input and compute the rest again when its gradient is asked for."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from core.model.layers import blocks


@contextmanager
def checkpointed(
    network: nn.Module, *, again: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Iterator[None]:
    """Within the context the decoder blocks of a forward pass are checkpointed; its gradient may be taken later.

    Memory of activations falls from all layers' to the blocks' inputs and one block's layers; each block is
    computed twice. The result is the same: nothing in a pass is random, and what is computed again is what was
    computed before. transformers' own switch acts in training mode only, where dropout would act, too.

    Args:
        network: A causal language model, or what is wrapped around one.
        again: What a block is computed in the second time, so that it takes the same way through the code.

    Raises:
        ModelError: If the model has no list of blocks.
    """
    found = list(blocks(network, field="engine.activation_checkpointing"))
    for block in found:
        block.forward = partial(
            checkpoint,
            block.forward,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), again()),
        )
    try:
        yield
    finally:
        for block in found:
            del block.forward  # the class's own again
