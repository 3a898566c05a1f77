"""Door to peft: adapters in difference form, which leave the base model's weights alone.

A trained layer computes

    W x + s [(B0 + dB)(A0 + dA) - B0 A0] x  =  W x + s [(B0 + dB) dA + dB A0] x

with frozen A0, B0 and trained increments dA, dB that start at zero. So the model starts exactly as the
target model whatever the initialisation; small updates are not lost when computing in bf16, because no
two nearly equal products are subtracted; and switching the adapter off gives the reference model.
Ordinary LoRA is the case B0 = 0.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import peft
import torch
from peft.tuners import lora
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from core.errors import FileError, foreign, in_a_line
from core.store.artifacts import save_tensors
from core.store.durable import commit, commit_json
from core.training.dropout import InputDropout
from core.training.lora_format import CONFIG_FILE, WEIGHTS_FILE, SavedLora, refuse_foreign_code
from core.training.trained import Gather

ADAPTER = "default"


@dataclass(frozen=True, kw_only=True)
class InitialFactors:
    """Frozen factors of one layer: ``a`` ``(r, inputs)``, ``b`` ``(outputs, r)`` or ``None`` for zero."""

    a: Tensor
    b: Tensor | None


class DifferenceLinear(lora.Linear):
    """PEFT's LoRA layer with its weights read as increments on frozen initial factors."""

    initial_a: Tensor
    initial_b: Tensor | None
    taps: "list[tuple[Tensor, Tensor]] | None" = None
    dropped: Callable[[Tensor], Tensor] = staticmethod(lambda x: x)

    @property
    def moved_a(self) -> nn.Linear:
        """The increment dA, as a linear map ``(r, inputs)``."""
        return cast(nn.Linear, self.lora_A[ADAPTER])

    @property
    def moved_b(self) -> nn.Linear:
        """The increment dB, as a linear map ``(outputs, r)``."""
        return cast(nn.Linear, self.lora_B[ADAPTER])

    def set_initial(self, factors: InitialFactors, dtype: torch.dtype) -> None:
        """Take the frozen factors and set the increments to zero."""
        device = self.moved_a.weight.device
        self.register_buffer("initial_a", factors.a.to(device, dtype), persistent=False)
        b = None if factors.b is None else factors.b.to(device, dtype)
        self.register_buffer("initial_b", b, persistent=False)
        for increment in (self.moved_a, self.moved_b):
            nn.init.zeros_(increment.weight)
            increment.to(dtype)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``W x + s [(B0 + dB) dA + dB A0] x``, where some of the second ``x`` may be dropped."""
        result = cast(Tensor, self.base_layer(x, *args, **kwargs))
        if self.disable_adapters:
            return result
        x = self.dropped(x)
        scaling = float(self.scaling[ADAPTER])
        if self.taps is None and not hasattr(self.moved_a.weight, "ds_id"):  # whole on this rank
            moved_both = (self.moved_a.weight, self.moved_b.weight)
            added: Tensor = _Added.apply(  # type: ignore[no-untyped-call]
                result, x, *moved_both, self.initial_a, self.initial_b, scaling
            )
            return added
        moved: Tensor = self.moved_a(x)
        difference: Tensor = self.moved_b(moved + F.linear(x, self.initial_a))
        if self.taps is not None:
            return self._tapped(result, moved, difference, scaling)
        result = torch.add(result, difference, alpha=scaling)
        if self.initial_b is None:
            return result
        flat = torch.addmm(  # product, scaling and sum in one pass over the outputs
            result.flatten(0, -2), moved.flatten(0, -2), self.initial_b.T, alpha=scaling
        )
        return flat.view_as(result)

    def _tapped(self, base: Tensor, moved: Tensor, difference: Tensor, scaling: float) -> Tensor:
        """The same sum, with its two parts kept."""
        if self.initial_b is not None:
            difference = difference + F.linear(moved, self.initial_b)
        added = scaling * difference
        assert self.taps is not None
        self.taps.append((added, base.detach()))
        return base + added


class _Added(torch.autograd.Function):
    """``y + s [(B0 + dB) dA + dB A0] x`` in two products, and its gradient in four.

    With ``C = [dA; A0]`` and ``D = [B0 + dB, dB]`` it is ``y + s D C x``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        result: Tensor,
        x: Tensor,
        moved_a: Tensor,
        moved_b: Tensor,
        initial_a: Tensor,
        initial_b: Tensor | None,
        scaling: float,
    ) -> Tensor:
        flat = x.flatten(0, -2)
        both_a = torch.cat([moved_a, initial_a])
        both_b = torch.cat([moved_b if initial_b is None else initial_b + moved_b, moved_b], dim=1)
        inner = flat @ both_a.T
        ctx.save_for_backward(flat, inner, both_a, both_b)
        ctx.scaling, ctx.shape = scaling, x.shape
        added = torch.empty_like(
            result
        )  # no view: some models write into a layer's output (Falcon)
        flat_added = added.view(-1, added.shape[-1])
        torch.addmm(result.flatten(0, -2), inner, both_b.T, alpha=scaling, out=flat_added)
        return added

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        flat, inner, both_a, both_b = ctx.saved_tensors
        rank, g = len(both_a) // 2, gradient.flatten(0, -2)
        of_inner = (g @ both_b).mul_(ctx.scaling)
        of_x = (of_inner @ both_a).view(ctx.shape) if ctx.needs_input_grad[1] else None
        of_a = of_inner[:, :rank].T @ flat
        of_both_b = (g.T @ inner).mul_(ctx.scaling)
        of_b = of_both_b[:, :rank] + of_both_b[:, rank:]
        return gradient, of_x, of_a, of_b, None, None, None


class DifferenceAdapter:
    """The adapter of one trial on a frozen model.

    Attributes:
        model: The PEFT model that hosts it; its trainable parameters are the increments.
        rank: Rank of the increments.
        scaling: Strength s.
    """

    def __init__(
        self,
        network: nn.Module,
        factors: Mapping[str, InitialFactors],
        *,
        rank: int,
        scaling: float,
        dtype: torch.dtype,
        dropout: InputDropout | None = None,
    ) -> None:
        """Attach increments to the named layers of ``network``."""
        self.rank, self.scaling = rank, scaling
        self._dropout = dropout
        self._targets = list(factors)
        config = _lora_config(self._targets, rank=rank, scaling=scaling)
        config._register_custom_module({nn.Linear: DifferenceLinear, Conv1D: DifferenceLinear})
        self.model = peft.get_peft_model(network, config, autocast_adapter_dtype=False).eval()
        for name, layer in self._layers():
            layer.set_initial(factors[name], dtype)
            if dropout is not None:
                layer.dropped = partial(dropout, layer=name)

    def _layers(self) -> Iterator[tuple[str, DifferenceLinear]]:
        for name, module in self.model.named_modules():
            if isinstance(module, DifferenceLinear):
                yield name.removeprefix("base_model.model."), module

    def increments(self) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
        """Name, dA ``(r, inputs)`` and dB ``(outputs, r)`` of every layer: the trained parameters."""
        for name, layer in self._layers():
            yield (
                name,
                cast(nn.Parameter, layer.moved_a.weight),
                cast(nn.Parameter, layer.moved_b.weight),
            )

    @property
    def is_transposed(self) -> bool:
        """Whether the layers store weights as inputs by outputs (GPT-2's Conv1D)."""
        return any(isinstance(layer.get_base_layer(), Conv1D) for _, layer in self._layers())

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """Within the context the model is the reference model: the adapter is off."""
        layers = [layer for _, layer in self._layers()]
        # Not peft's disable_adapter: leaving that makes frozen adapters trainable again.
        for layer in layers:
            layer._disable_adapters = True
        try:
            yield self.model
        finally:
            for layer in layers:
                layer._disable_adapters = False

    def dropping(self, *number: int) -> AbstractContextManager[None]:
        """Within the context inputs are dropped as they are in the pass of that number."""
        return nullcontext() if self._dropout is None else self._dropout.during(*number)

    def scaled(self, factor: float) -> AbstractContextManager[None]:
        """Within the context the trained difference counts ``factor`` times."""
        return scaled(self.model, factor)

    @contextmanager
    def tapped(self) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
        """Within the context each forward pass leaves what the adapter adds, and the layer's own output.

        Yields:
            Layer name to pairs of shape ``(B, T, outputs)``, one for each forward pass; the first
            carries a gradient, the second none.
        """
        layers = dict(self._layers())
        taken: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
        for name, layer in layers.items():
            layer.taps = taken[name]
        try:
            yield taken
        finally:
            for layer in layers.values():
                layer.taps = None

    def detach(self) -> None:
        """Remove the adapter; the network is as before."""
        self.model.unload()

    def save(
        self, folder: Path, tensors: Mapping[str, Tensor], *, base: str, factor: float = 1.0
    ) -> None:
        """Commit what :meth:`exported` gave, the difference scaled by ``factor``; see :func:`save_adapter`."""
        save_adapter(
            folder,
            tensors,
            scaling=self.scaling * factor,
            base=base,
            transposed=self.is_transposed,
        )

    def exported(self, gather: Gather) -> dict[str, Tensor]:
        """Factors of the difference as an ordinary LoRA on the original model, float32.

        ``A' = [dA; A0], B' = [B0 + dB, dB]`` of rank 2r; or ``A' = A0 + dA, B' = dB`` of rank r where
        B0 = 0.

        Args:
            gather: Gives a parameter's full float32 value on every rank (masters, ZeRO 3 parts).
        """
        tensors: dict[str, Tensor] = {}
        for name, layer in self._layers():
            initial = InitialFactors(a=layer.initial_a, b=layer.initial_b)
            moved_a, moved_b = gather(layer.moved_a.weight), gather(layer.moved_b.weight)
            tensors |= ordinary_lora(name, initial, moved_a, moved_b)
        return tensors

    def unmoved(self, gather: Gather) -> list[str]:
        """Layers whose increments are still zero: the first gradient of a layer moves at least one of the two."""
        moved = {
            name: [bool(gather(increment).any()) for increment in increments]
            for name, *increments in self.increments()
        }
        return [name for name, either in moved.items() if not any(either)]

    def initial_rms(self) -> tuple[float, float]:
        """Root mean square of all entries of A0 and of B0 (0 where B0 = 0)."""
        return rms_of(
            InitialFactors(a=layer.initial_a, b=layer.initial_b) for _, layer in self._layers()
        )


def ordinary_lora(
    name: str, initial: InitialFactors, moved_a: Tensor, moved_b: Tensor
) -> dict[str, Tensor]:
    """What a layer is saved as; see :meth:`DifferenceAdapter.exported`.

    Args:
        name: Of the layer in the original model.
        initial: Frozen factors.
        moved_a: The increment dA, float32 on the CPU.
        moved_b: The increment dB, likewise.
    """
    a0 = initial.a.detach().float().cpu()
    if initial.b is None:
        a, b = a0 + moved_a, moved_b
    else:
        b0 = initial.b.detach().float().cpu()
        a, b = torch.cat([moved_a, a0]), torch.cat([b0 + moved_b, moved_b], dim=1)
    prefix = f"base_model.model.{name}"
    return {f"{prefix}.lora_A.weight": a.contiguous(), f"{prefix}.lora_B.weight": b.contiguous()}


def save_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    scaling: float,
    base: str,
    transposed: bool = False,
) -> None:
    """Commit a folder that stock ``PeftModel.from_pretrained(original, folder)`` loads, of old releases too.

    Args:
        folder: Where; files of an older adapter are replaced one by one, weights last.
        tensors: What :meth:`DifferenceAdapter.exported` gave.
        scaling: Strength s = alpha / r.
        base: Name of the original model for ``base_model_name_or_path``.
        transposed: Whether the original model's layers are GPT-2's Conv1D.
    """
    suffix = ".lora_A.weight"
    ranks = {len(t) for name, t in tensors.items() if name.endswith(suffix)}
    assert len(ranks) == 1
    names = [
        n.removesuffix(suffix).removeprefix("base_model.model.")
        for n in tensors
        if n.endswith(suffix)
    ]
    rank, tensors = ranks.pop(), dict(tensors)
    alpha = float(scaling * rank)
    if (
        not alpha.is_integer()
    ):  # some readers take whole numbers only: the strength goes into the factors
        alpha = float(rank)
        tensors |= {n: t * scaling for n, t in tensors.items() if not n.endswith(suffix)}
    saved = SavedLora(base=base, rank=rank, alpha=alpha, targets=names, is_transposed=transposed)
    commit_json(folder / CONFIG_FILE, saved.as_json())
    commit(
        folder / WEIGHTS_FILE,
        lambda path: save_tensors(tensors, path, metadata={"format": "pt"}),
    )


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The factors of a saved adapter, by their names in the file.

    Raises:
        FileError: If the file is damaged.
    """
    path = folder / WEIGHTS_FILE

    def refused(err: Exception) -> FileError:
        return FileError(str(path), f"cannot be read ({in_a_line(err)}); restore it from a copy")

    with foreign(refused):
        return dict(load_file(path))


def load_adapter(network: nn.Module, folder: Path) -> nn.Module:
    """Stock PEFT: attach a saved adapter to its original model for reading.

    Raises:
        FileError: If its weights are not in safetensors, or its configuration names what PEFT would go and load.
    """
    refuse_foreign_code(folder)
    model: nn.Module = peft.PeftModel.from_pretrained(network, str(folder))
    return model.eval()


@contextmanager
def scaled(model: nn.Module, factor: float) -> Iterator[None]:
    """Within the context every low-rank layer of ``model``, ours or stock PEFT's, counts ``factor`` times."""
    layers = [m for m in model.modules() if isinstance(m, lora.LoraLayer)]
    before = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        for name in layer.scaling:
            layer.scaling[name] *= factor
    try:
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling.update(scaling)


def _lora_config(targets: list[str], *, rank: int, scaling: float) -> peft.LoraConfig:
    alpha = float(scaling * rank)
    return peft.LoraConfig(
        r=rank,
        lora_alpha=cast(int, int(alpha) if alpha.is_integer() else alpha),  # peft takes floats too
        lora_dropout=0.0,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )


def rms_of(factors: Iterable[InitialFactors]) -> tuple[float, float]:
    """Root mean square of all entries of A0 and of B0 (0 where B0 = 0)."""
    known = list(factors)
    return _rms([f.a for f in known]), _rms([f.b for f in known if f.b is not None])


def _rms(tensors: list[Tensor]) -> float:
    count = sum(t.numel() for t in tensors)
    return (sum(float(t.float().square().sum()) for t in tensors) / count) ** 0.5 if count else 0.0
