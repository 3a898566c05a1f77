"""What losses need beside logits and labels: one class for each need.

A need is made for the rows of one role. It says what it wants of a forward pass, ``prepare`` computes what
can be known before anything is attached to the model, and ``give`` meets the need for some of the rows.

Shapes: B rows, T tokens, V vocabulary, D width of the model, O outputs of a layer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from core.config import TrialConfig
from core.config.method import Need
from core.data.alternatives import alternative_rows
from core.data.positions import refuse_long_pieces
from core.data.tokens import TokenRow, TokenSplits
from core.errors import ModelError
from core.losses import Residual, random_labels
from core.losses.outputs import Given
from core.model.layers import n_blocks, n_positions, vocabulary_size
from core.model.loading import LoadedModel
from core.seeding import derive_seed
from core.training.passes import Forwarded, Wanted
from core.training.reference import Reference


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What needs are made from: the trial, its model, and the reference model's terms for the rows."""

    config: TrialConfig
    model: LoadedModel
    reference: Reference


class NeedProvider(Protocol):
    """Meets one need of a loss for the rows of one role."""

    @property
    def wanted(self) -> Wanted:
        """What it wants of a forward pass; known once it is prepared."""
        ...

    def prepare(self) -> None:
        """Compute, or find in the cache, what the rows need, while nothing is attached to the model."""
        ...

    def give(self, rows: Sequence[TokenRow], forwarded: Forwarded) -> Given:
        """What meets the need for ``rows``, of which ``forwarded`` is the forward pass."""
        ...


class ReferenceNll:
    """Cross-entropy of whole rows under the reference model, from the cache."""

    wanted = Wanted()

    def __init__(self, around: Surroundings) -> None:
        """Nothing is computed yet."""
        self._reference = around.reference

    def prepare(self) -> None:
        """Measure all rows."""
        self._reference.prepare("nll")

    def give(self, rows: Sequence[TokenRow], forwarded: Forwarded) -> Tensor:
        """Float32 ``(B,)``, nats."""
        return self._reference.nll(rows)


class ReferenceLogits:
    """Logits of the reference model: from its cached last hidden states, or by asking it at each step.

    The cache serves where the output layer alone turns hidden states into logits, and is whole: under
    ZeRO 3 that of the target model is partitioned.
    """

    def __init__(self, around: Surroundings) -> None:
        """Nothing is computed yet."""
        self._reference = around.reference
        self._may_cache = around.config.partitions != "base"
        self._is_cached = False

    @property
    def wanted(self) -> Wanted:
        """A pass of the reference model, where the cache does not serve."""
        return Wanted(reference_logits=not self._is_cached)

    def prepare(self) -> None:
        """Look whether the cache serves, and fill it."""
        self._is_cached = self._may_cache and self._reference.gives_logits
        if self._is_cached:
            self._reference.prepare("last_hidden")

    def give(self, rows: Sequence[TokenRow], forwarded: Forwarded) -> Tensor:
        """``(N, V)``."""
        if self._is_cached:
            return self._reference.logits(rows)
        assert forwarded.reference_logits_NV is not None  # wanted
        return forwarded.reference_logits_NV


class BlockOutput:
    """Output of block ``rmu.layer`` of the model being trained."""

    def __init__(self, around: Surroundings) -> None:
        """Find the block.

        Raises:
            ModelError: If it is none before the last.
        """
        self.wanted = Wanted(block=steered_block(around.config, around.model))

    def prepare(self) -> None:
        """Nothing: it comes from each pass."""

    def give(self, rows: Sequence[TokenRow], forwarded: Forwarded) -> Tensor:
        """``(B, T, D)``, with gradient."""
        assert forwarded.block_BTD is not None  # wanted
        return forwarded.block_BTD


class ReferenceBlockOutput:
    """Output of the same block of the reference model, from the cache."""

    wanted = Wanted()

    def __init__(self, around: Surroundings) -> None:
        """Find the block.

        Raises:
            ModelError: If it is none before the last.
        """
        self._reference = around.reference
        self._block = steered_block(around.config, around.model)

    def prepare(self) -> None:
        """Read all rows."""
        self._reference.prepare("block_hidden", block=self._block)

    def give(self, rows: Sequence[TokenRow], forwarded: Forwarded) -> Tensor:
        """``(B, T, D)``; zero on padding."""
        return self._reference.hidden(rows, block=self._block)


class ControlVector:
    """RMU's control vector: uniform entries, normalised to length ``rmu.steering``."""

    def __init__(self, around: Surroundings) -> None:
        """It is drawn when the block's output is first seen: only the pass knows its width.

        Raises:
            ModelError: If there is no such block.
        """
        self.wanted = Wanted(block=steered_block(around.config, around.model))
        self._seed, self._length = around.config.seed, around.config.method.rmu.steering
        self._drawn: Tensor | None = None

    def prepare(self) -> None:
        """Nothing: drawing costs nothing."""

    def give(self, rows: Sequence[TokenRow], forwarded: Forwarded) -> Tensor:
        """``(D,)``, the same for all rows."""
        if self._drawn is None:
            block = forwarded.block_BTD
            assert block is not None  # wanted
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "control"))
            vector = torch.rand(block.shape[-1], generator=generator)
            self._drawn = (vector * (self._length / float(vector.norm()))).to(block.device)
        return self._drawn


class AdapterOutputs:
    """What the adapter adds in each layer, and a fixed direction for each."""

    wanted = Wanted(adapter_outputs=True)

    def __init__(self, around: Surroundings) -> None:
        """Directions are drawn when a layer is first seen: only the pass knows which layers there are."""
        self._seed, self._device = around.config.seed, around.model.device
        self._directions: dict[str, Tensor] = {}

    def prepare(self) -> None:
        """Nothing: it comes from each pass."""

    def give(self, rows: Sequence[TokenRow], forwarded: Forwarded) -> Sequence[Residual]:
        """One for each adapted layer."""
        return [
            Residual(
                added_BTO=added,
                base_BTO=base,
                direction_O=self._direction(name, added.shape[-1]),
            )
            for name, (added, base) in forwarded.adapter_outputs.items()
        ]

    def _direction(self, name: str, size: int) -> Tensor:
        if name not in self._directions:
            seed = derive_seed(self._seed, "residual direction", name)
            drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed))
            self._directions[name] = (drawn / drawn.square().mean().sqrt()).to(self._device)
        return self._directions[name]


class RandomLabels:
    """Random tokens in place of the true ones, drawn once for each row, whatever batch it is in."""

    wanted = Wanted()

    def __init__(self, around: Surroundings) -> None:
        """Draws depend on the seed and the row alone."""
        self._seed = around.config.seed
        self._vocabulary = vocabulary_size(around.model.network)

    def prepare(self) -> None:
        """Nothing: drawing costs nothing."""

    def give(self, rows: Sequence[TokenRow], forwarded: Forwarded) -> Tensor:
        """Int64 ``(B, T)``; ``-100`` where the labels have it."""
        labels = forwarded.labels_BT
        drawn = torch.full_like(labels, 0)
        for i, row in enumerate(rows):
            seed = derive_seed(self._seed, "random labels", str(row.ids))
            drawn[i : i + 1] = random_labels(
                labels[i : i + 1], vocabulary=self._vocabulary, seed=seed
            )
        return drawn


class AdversarialLabels:
    """The reference model's likeliest wrong tokens, from the cache."""

    wanted = Wanted()

    def __init__(self, around: Surroundings) -> None:
        """Nothing is computed yet."""
        self._reference = around.reference

    def prepare(self) -> None:
        """Find them for all rows."""
        self._reference.prepare("adversarial_labels")

    def give(self, rows: Sequence[TokenRow], forwarded: Forwarded) -> Tensor:
        """Int64 ``(B, T)``; ``-100`` where nothing counts."""
        return self._reference.adversarial_labels(rows)


PROVIDERS: Mapping[Need, Callable[[Surroundings], NeedProvider]] = {
    "reference_nll": ReferenceNll,
    "reference_logits": ReferenceLogits,
    "reference_hidden": ReferenceBlockOutput,
    "hidden": BlockOutput,
    "control": ControlVector,
    "residuals": AdapterOutputs,
    "random_labels": RandomLabels,
    "adversarial_labels": AdversarialLabels,
}
"""Who meets each need."""


class Alternatives:
    """The row with an alternative answer for each forget row."""

    def __init__(self, config: TrialConfig, model: LoadedModel, data: TokenSplits) -> None:
        """Write them; each is drawn by its place in the forget set.

        Raises:
            DataError: If a row has no alternative, or nothing of one would be predicted.
        """
        self.rows = alternative_rows(
            data["forget"],
            data.forget_rows,
            model.tokenizer,
            config.data,
            alternatives=config.method.alternatives,
            seed=derive_seed(config.data.split_seed, "alternatives"),
        )
        refuse_long_pieces(self.rows, n_positions(model.network), what="method.alternatives")
        self._by_row = dict(zip(data["forget"], self.rows, strict=True))

    def give(self, rows: Sequence[TokenRow]) -> list[TokenRow]:
        """Those of some forget rows."""
        return [self._by_row[row] for row in rows]


def steered_block(config: TrialConfig, model: LoadedModel) -> int:
    """The block whose output is steered; the last one's passes the final norm and is no such place.

    Raises:
        ModelError: If ``method.rmu.layer`` is no block before the last.
    """
    blocks = n_blocks(model.network)
    layer = config.method.rmu.layer
    if layer is None:
        layer = min(blocks // 3, max(0, blocks - 2))
    if layer >= blocks - 1:
        raise ModelError(
            f"method.rmu.layer: must lie in [0, {blocks - 2}] for a model of {blocks} blocks, got {layer}"
        )
    return layer
