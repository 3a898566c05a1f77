"""What a rank of a trial needs at its peak, found by tracing the worker's own model, adapter and losses.

Nothing is computed: the model is traced with tensors that have shapes and no contents, and the bytes that
live at each moment are added up. Losses choose tokens by their labels, which such a trace cannot follow, so
they run on a small vocabulary, and what they hold is counted in copies of the logits.

Shapes: T tokens of a row, N counted tokens, V vocabulary.
"""

import logging
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from core.config import AdapterConfig, EngineConfig, MethodConfig, ModelConfig
from core.config.method import Need
from core.data.layouts import Layout
from core.data.tokens import TokenRow
from core.errors import ModelError, first_line
from core.losses import FORGET_LOSSES, RETAIN_LOSSES, Outputs, Residual
from core.losses.outputs import Given
from core.metrics.probes import token_sums
from core.model.attention import attending_by_row
from core.model.layers import linear_shape, resolve_targets
from core.model.loading import outlined_network
from core.model.reading import Reader, may_read_end_to_end
from core.training.adapter import DifferenceAdapter, InitialFactors
from core.training.checkpointing import checkpointed
from core.training.dropout import InputDropout
from core.training.trained import LARGEST_BUCKET

_SMALL_V, _SMALL_T = 1024, 9
_SMALL_N = 2 * (_SMALL_T - 1)
_STAGE_3_LIVE = 10**9
"""Parameters that DeepSpeed gathers at a time under ZeRO 3, at most (its default)."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Shape of one forward pass: tokens of each row, and how many of them are context."""

    rows: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, rows: Sequence[TokenRow]) -> "Pass":
        """That of some rows; their order plays no part."""
        return cls(rows=tuple(sorted((len(row.ids), row.n_context) for row in rows)))

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(length for length, _ in self.rows)

    def as_rows(self) -> list[TokenRow]:
        """Rows of this shape, of one token each."""
        return [TokenRow((0,) * length, n_context) for length, n_context in self.rows]


@dataclass(frozen=True, kw_only=True)
class States:
    """What is held of the weights of a rank, bytes.

    Attributes:
        device: On the device that computes.
        offloaded: In the memory of the machine beside.
    """

    device: int
    offloaded: int


def held_states(
    frozen: int, trained: int, engine: EngineConfig, *, width: int, splits_frozen: bool = False
) -> States:
    r"""Bytes of weights, gradients and AdamW's states of one rank.

    With ``m`` frozen and ``n`` trained weights of ``width`` bytes over ``r`` ranks: all ``m`` or, where they are
    split, a share ``1 / r``, and under stage 3 what is gathered of all weights at a time; the trained ones,
    their gradient (from stage 2 on a share), and two float32 moments; from stage 1 on a float32 copy, its
    gradient and the moments of a share ``1 / r``; at stage 0 such a copy only where the weights are no
    float32; and one bucket in which gradients are summed up.

    Args:
        frozen: Weights that are not trained.
        trained: Weights that are.
        engine: Stage, ranks and offload.
        width: Bytes of a weight where the model computes.
        splits_frozen: Each rank keeps its part of the frozen weights.
    """
    stage, ranks = engine.zero_stage, engine.ranks
    share = ranks if stage >= 1 else 1
    has_master = stage >= 1 or width < 4
    optimizer = trained * (8 + (8 if has_master else 0)) // share
    gradient = trained * width // (ranks if stage >= 2 else 1)
    bucket = min(trained, LARGEST_BUCKET) * width if stage in (1, 2) else 0
    kept = trained * width // (ranks if stage == 3 else 1)
    gathered = min(frozen + trained, _STAGE_3_LIVE) * width if stage == 3 else 0
    weights = frozen * width // (ranks if splits_frozen else 1)
    away = optimizer if engine.offload != "none" else 0
    return States(
        device=weights + kept + gradient + bucket + gathered + optimizer - away, offloaded=away
    )


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that live, of those that are made while it is entered.

    Args:
        before: Tensors that were there before, which may be read and do not count.

    Attributes:
        now: Bytes that live.
        peak: The most that lived at a time.
    """

    def __init__(self, before: Iterable[Tensor]) -> None:
        """Nothing is counted yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._before = [tensor.untyped_storage() for tensor in before]
        self._known: dict[int, Any] = dict.fromkeys(s._cdata for s in self._before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        made = func(*args, **(kwargs or {}))
        for leaf in made if isinstance(made, list | tuple) else (made,):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def forget(_: Any) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)


@dataclass(frozen=True, kw_only=True)
class TracedStep:
    """What a forward and backward pass hold beside the model's weights, bytes.

    Attributes:
        forward: At the end of the forward pass: what backward needs, without the logits.
        largest: The most at any moment of both.
        logits: The logits of the pass.
    """

    forward: int
    largest: int
    logits: int


@dataclass(frozen=True, kw_only=True)
class TracedProbe:
    """What a forward pass without gradient holds beside the model's weights, bytes.

    Attributes:
        largest: The most at any moment, without the logits.
        logits: The logits of the pass.
    """

    largest: int
    logits: int


@lru_cache(maxsize=64)
def traced_step(
    model: ModelConfig,
    adapter: AdapterConfig,
    at: Pass,
    *,
    dtype: torch.dtype,
    needs: frozenset[Need] = frozenset(),
    checkpoints: bool = False,
) -> TracedStep:
    """Trace a forward and backward pass through the model with what is trained of it.

    Args:
        model: The model.
        adapter: What is trained of it.
        at: Shape of the pass.
        dtype: Of the weights.
        needs: What losses keep of it: ``hidden``, ``residuals``.
        checkpoints: Blocks keep their input only.

    Raises:
        ModelError: If the model's configuration is not on this machine, or what it does depends on what it reads.
    """
    with _outlined(model, adapter, at, dtype=dtype) as outline:
        trained, attached = outline.trained, outline.attached
        tapped = attached is not None and "residuals" in needs
        taps: Any = attached.tapped() if tapped and attached is not None else nullcontext({})

        @contextmanager
        def dropping() -> Iterator[None]:
            with nullcontext() if attached is None else attached.dropping(0):
                yield

        @contextmanager
        def again() -> Iterator[None]:
            with attending_by_row(trained, outline.layout), dropping():
                yield

        keeping = checkpointed(trained, again=again) if checkpoints else nullcontext()
        with Live(outline.before) as live, taps as kept, dropping(), keeping:
            output = trained(**outline.arguments, output_hidden_states="hidden" in needs)
            logits = output.logits
            width = logits.nbytes
            forward = live.now - width
            del output
            logits.backward(torch.empty_like(logits))
            del logits, kept
        return TracedStep(forward=forward, largest=live.peak, logits=width)


@lru_cache(maxsize=64)
def traced_probe(
    model: ModelConfig, adapter: AdapterConfig, at: Pass, *, dtype: torch.dtype
) -> TracedProbe:
    """Trace a forward pass without gradient; arguments and errors as those of :func:`traced_step`."""
    with (
        _outlined(model, adapter, at, dtype=dtype) as outline,
        Live(outline.before) as live,
        torch.no_grad(),
    ):
        width = outline.trained(**outline.arguments).logits.nbytes
    return TracedProbe(largest=live.peak - width, logits=width)


@dataclass(frozen=True, kw_only=True)
class _Outline:
    """A model of tensors without contents, and a pass that it can be called with."""

    trained: nn.Module
    attached: DifferenceAdapter | None
    layout: Layout
    arguments: Mapping[str, Any]
    before: Sequence[Tensor]


@contextmanager
def _outlined(
    model: ModelConfig, adapter: AdapterConfig, at: Pass, *, dtype: torch.dtype
) -> Iterator[_Outline]:
    """Within the context nothing is computed; what cannot be told without is refused."""
    network = outlined_network(model, dtype)
    trained: nn.Module = network
    attached: DifferenceAdapter | None = None
    if adapter.kind == "full":
        network.requires_grad_(True)
    else:
        attached = _attached(network, adapter, dtype)
        trained = attached.model
    try:
        reader = Reader(end_to_end=may_read_end_to_end(network))
        layout = reader.lay(at.as_rows(), torch.device("cpu"))
        keeps = {"logits_to_keep": layout.predicting} if reader.end_to_end else {}
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            attending_by_row(trained, layout),
            _without_complaints(),
        ):
            _fill(trained)
            yield _Outline(
                trained=trained,
                attached=attached,
                layout=layout,
                arguments={**layout.inputs, **keeps, "use_cache": False},
                before=[*trained.parameters(), *trained.buffers(), *layout.inputs.values()],
            )
    except RuntimeError as err:
        raise ModelError(
            f"model.source: what {type(network).__name__} holds cannot be told without computing: {first_line(err)}"
        ) from err


@contextmanager
def _without_complaints() -> Iterator[None]:
    """An operation that cannot be traced is raised; torch would print it, too."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _attached(network: nn.Module, adapter: AdapterConfig, dtype: torch.dtype) -> DifferenceAdapter:
    names = resolve_targets(network, adapter.targets, rank=adapter.rank, layers=adapter.layers)
    with torch.device("meta"):
        factors = {}
        for name in names:
            outputs, inputs = linear_shape(network.get_submodule(name))
            factors[name] = InitialFactors(
                a=torch.empty(adapter.rank, inputs), b=torch.empty(outputs, adapter.rank)
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return DifferenceAdapter(
                network,
                factors,
                rank=adapter.rank,
                scaling=adapter.scaling,
                dtype=dtype,
                dropout=InputDropout(adapter.dropout, seed=0),
            )


def _fill(network: nn.Module) -> None:
    """Put tensors with a device and no contents in place of those without a device."""
    made: dict[int, Tensor] = {}
    old = list(network.parameters()) + list(network.buffers())  # their ids stay taken meanwhile

    def like(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return made[id(tensor)]

    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                filled = nn.Parameter(like(parameter), requires_grad=parameter.requires_grad)
                module._parameters[name] = filled
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = like(buffer)
    del old


@lru_cache(maxsize=64)
def loss_width(method: MethodConfig, *, dtype: torch.dtype) -> float:
    """Bytes that a step's losses hold at their peak, forward and backward, over those of the pass's logits.

    Measured on a small vocabulary; all tokens of all roles count. At least 2: the logits and their gradient.
    """
    roles = n_roles(method)
    size = (roles * _SMALL_N, _SMALL_V)
    start = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
    start.requires_grad_()
    with Live([start]) as live:
        logits = start * 1.0
        _loss(method, logits).backward()
        del logits
    return max(2.0, float(live.peak / start.nbytes))


def n_roles(method: MethodConfig) -> int:
    """Roles whose rows a step reads together: forget, alternative, retain."""
    reads = FORGET_LOSSES[method.forget_loss].reads
    return (2 if reads == "both" else 1) + (RETAIN_LOSSES[method.retain_loss] is not None)


def _loss(method: MethodConfig, logits_NV: Tensor) -> Tensor:
    """The loss of a step, two rows of each role."""
    forget, retain = FORGET_LOSSES[method.forget_loss], RETAIN_LOSSES[method.retain_loss]
    parts = iter(logits_NV.split(_SMALL_N))
    seen = {
        role: _outputs(next(parts), forget.needs)
        for role in ("forget", "alternative")
        if forget.reads in (role, "both")
    }
    loss = forget.compute(seen.get("forget"), seen.get("alternative"), method)
    if retain is not None:
        loss = loss + retain.compute(_outputs(next(parts), retain.needs), method)
    return loss


def _outputs(logits_NV: Tensor, needs: frozenset[Need]) -> Outputs:
    ids = torch.randint(_SMALL_V, (2, _SMALL_T))
    return Outputs(
        logits=logits_NV,
        labels_BT=ids,
        given={need: _GIVEN[need](logits_NV, ids) for need in needs},
    )


def _hidden(logits_NV: Tensor, ids_BT: Tensor) -> Tensor:
    return logits_NV.flatten()[: 4 * ids_BT.numel()].view(*ids_BT.shape, 4) + 0.0


def _residuals(logits_NV: Tensor, ids_BT: Tensor) -> Sequence[Residual]:
    part = _hidden(logits_NV, ids_BT)
    return [Residual(added_BTO=part * 1.0, base_BTO=part.detach() + 1.0, direction_O=torch.ones(4))]


_GIVEN: Mapping[Need, Callable[[Tensor, Tensor], Given]] = {
    "reference_nll": lambda logits, ids: torch.ones(len(ids)),
    "reference_logits": lambda logits, ids: logits.detach() + 1.0,
    "hidden": _hidden,
    "reference_hidden": lambda logits, ids: _hidden(logits, ids).detach(),
    "control": lambda logits, ids: torch.ones(4),
    "residuals": _residuals,
    "random_labels": lambda logits, ids: (ids + 1) % logits.shape[-1],
    "adversarial_labels": lambda logits, ids: (ids + 1) % logits.shape[-1],
}


@lru_cache(maxsize=4)
def reading_width(*, dtype: torch.dtype) -> float:
    """Bytes that a probe holds of a pass at its peak, over those of the pass's logits."""
    logits = torch.zeros((_SMALL_N, _SMALL_V), dtype=dtype)
    labels = torch.ones((2, _SMALL_T), dtype=torch.long)
    with Live([logits, labels]) as live, torch.no_grad():
        token_sums(logits, labels)
    return 1.0 + float(live.peak / logits.nbytes)
