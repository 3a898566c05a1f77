"""K adapters trained in one forward and backward pass over one frozen model.

Each slot has its own rank, strength, initial factors, optimiser settings, schedule and losses. A slot's loss is
its own share, and what is differentiated is the sum: no parameter is shared, so each slot gets the gradient it
would have alone. A step whose gradient is not finite changes nothing of its slot, as DeepSpeed has it for an
engine of one trial, and nothing of the others.
"""

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from core.config import AdapterConfig, EngineConfig, OptimizerConfig
from core.model.layers import is_transposed, linear_shape
from core.model.reading import PADDED, Reader
from core.store.artifacts import content_key
from core.training.adapter import InitialFactors, ordinary_lora, rms_of, save_adapter
from core.training.engine import deepspeed_config, full_value, rate_at
from core.training.optimizer_state import OptimizerState
from core.training.packed_layer import Division, PackedLayer
from core.training.passes import Forwarded, MicroBatch
from core.training.ranks import Group, deepspeed
from core.training.reading import Taken, read_parts
from core.training.slot_optimizer import SlotAdamW
from core.training.trained import Gather

ATTACHED_AS = "packed_increments"
"""Name of the increments among the network's modules, while the engine looks at them."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What every adapter of a pack fits into.

    Attributes:
        layers: Names of the layers that any of them is on.
        rank: Largest rank.
        n_slots: Adapters at the same time.
    """

    layers: tuple[str, ...]
    rank: int
    n_slots: int


class Pack:
    """A frozen network with K slots for adapters, and the DeepSpeed engine around it."""

    def __init__(
        self,
        network: nn.Module,
        shape: Shape,
        *,
        engine: EngineConfig,
        group: Group,
        dtype: torch.dtype,
        reader: Reader = PADDED,
    ) -> None:
        """Attach empty slots to ``network``, which must be complete, on its device and in ``dtype``."""
        self.network, self.shape = network, shape
        self._group, self._engine_config, self._reader = group, engine, reader
        self._device = next(network.parameters()).device
        together = self._device.type != "cpu"
        self.division = Division(shape.n_slots, self._device, together=together)
        self.layers = {
            name: PackedLayer(
                linear_shape(network.get_submodule(name)), shape.rank, self.division, dtype=dtype
            )
            for name in shape.layers
        }
        self._increments = nn.ModuleDict({str(i): e for i, e in enumerate(self.layers.values())})
        self._hooks = [
            network.get_submodule(name).register_forward_hook(layer.hook)
            for name, layer in self.layers.items()
        ]
        of_slots = [
            [p for layer in self.layers.values() for p in layer.increments(slot)]
            for slot in range(shape.n_slots)
        ]
        self.optimizer = SlotAdamW(of_slots, total=group.sum)
        n_trained = sum(p.numel() for own in of_slots for p in own)
        with self._attached():
            self._engine, *_ = deepspeed().initialize(
                model=network,
                optimizer=self.optimizer,
                model_parameters=[p for own in of_slots for p in own],
                dist_init_required=False,
                config=deepspeed_config(engine, dtype, n_trained=n_trained, without_norm=True),
            )
        self.held = OptimizerState(self._engine.optimizer, zero_stage=engine.zero_stage)
        self.slots = tuple(Slot(self, i) for i in range(shape.n_slots))

    def step(self, asked: Mapping[int, Iterable[MicroBatch]]) -> None:
        """One optimiser step of each slot that asks for one; the others stay as they are.

        Args:
            asked: Slot to its micro-batches on this rank. All ranks ask for the same slots.
        """
        waiting = {slot: list(micro_batches) for slot, micro_batches in sorted(asked.items())}
        self.division.marked.zero_()
        n_passes = max(map(len, waiting.values()))
        with self._attached():
            for i in range(n_passes):
                is_last = i == n_passes - 1
                self._engine.set_gradient_accumulation_boundary(is_last)
                loss = self._loss({slot: own[i : i + 1] for slot, own in waiting.items()})
                # DeepSpeed averages over ranks; that is undone here, as in an engine of one trial
                self._engine.backward(loss * self._group.size, scale_wrt_gas=False)
                if is_last:
                    self.optimizer.ask(waiting.keys() - self._marked())
                    for slot in waiting:
                        self.slots[slot].set_rate()
                self._engine.step()
        self.optimizer.ask(())

    @contextmanager
    def _attached(self) -> Iterator[None]:
        """Within the context the increments are among the network's modules, as the engine needs it.

        At other times the network has none but its own, for whoever looks at it, or freezes all it has.
        """
        self.network.add_module(ATTACHED_AS, self._increments)
        try:
            yield
        finally:
            delattr(self.network, ATTACHED_AS)

    def _loss(self, now: Mapping[int, Sequence[MicroBatch]]) -> Tensor:
        """Sum of the slots' shares, from one pass over the rows of all of them, slot after slot.

        A slot without a micro-batch left has no rows in the pass, and gets a gradient of zero: DeepSpeed adds up
        what each pass gives, and reads buffers of earlier steps where one gives nothing.
        """
        parts = [(slot, part) for slot, own in now.items() for batch in own for part in batch.parts]
        owners = [slot for slot, _ in parts]

        def dividing(positions: Sequence[int]) -> AbstractContextManager[None]:
            lengths = dict.fromkeys(now, 0)
            for owner, n in zip(owners, positions, strict=True):
                lengths[owner] += n
            return self.division.among(lengths)

        found = read_parts(
            self._engine,
            [part for _, part in parts],
            module=self.network,
            reader=self._reader,
            device=self._device,
            trained=self,
            checkpoints=self._engine_config.activation_checkpointing,
            dividing=dividing,
        )
        losses = []
        for slot, own in now.items():
            gave = [f for owner, f in zip(owners, found, strict=True) if owner == slot]
            for batch in own:
                loss = batch.share([self.slots[slot].only_its_own(f) for f in gave])
                losses.append(torch.where(loss.isfinite(), loss, loss.new_zeros(())))
        return torch.stack(losses).sum()

    def _marked(self) -> set[int]:
        """Slots whose gradient is not finite, on any rank."""
        count = self._group.sum(self.division.marked.float())
        return {slot for slot, n in enumerate(count.tolist()) if n}

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """The network itself: where no slot is read, nothing is added."""
        yield self.network

    @contextmanager
    def tapped(self) -> Iterator[Taken]:
        """Within the context each pass leaves what the adapters add, and each layer's own output."""
        taken: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.layers}
        for name, layer in self.layers.items():
            layer.taps = taken[name]
        try:
            yield taken
        finally:
            for layer in self.layers.values():
                layer.taps = None

    def full_value(self, parameter: Tensor) -> Tensor:
        """Full float32 value of an increment, on the CPU; every rank must take part."""
        return full_value(parameter, zero_stage=self._engine_config.zero_stage)

    def put_back(self, slot: int, tensors: Mapping[str, Tensor]) -> None:
        """Fill a slot's part of the optimiser with what ``held`` gave of another, at whatever place it was."""
        self.optimizer.go_on(slot)
        self.held.write(slot, tensors)
        self.held.publish(slot, self._group)

    def close(self) -> None:
        """Let go of everything; the network is as before."""
        with self._attached():
            self._engine.destroy()
        for hook in self._hooks:
            hook.remove()
        self.slots, self.layers = (), {}
        del self._engine, self.optimizer, self.held, self._increments
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class Slot:
    """A place in a pack: the adapter of one trial, from :meth:`fill` to :meth:`detach`."""

    def __init__(self, pack: Pack, number: int) -> None:
        """Begin empty."""
        self._pack, self.number = pack, number
        self._names: tuple[str, ...] = ()
        self._n_steps = 0

    def fill(
        self,
        factors: Mapping[str, InitialFactors],
        adapter: AdapterConfig,
        optimizer: OptimizerConfig,
        *,
        max_steps: int,
    ) -> None:
        """Take an adapter at its start: increments, moments and count of steps are zero.

        Args:
            factors: Initial factors of the layers that it is on.
            adapter: Rank and strength.
            optimizer: Its settings.
            max_steps: Horizon of the schedule.
        """
        shape = self._pack.shape
        assert adapter.rank <= shape.rank  # a pack is made for its trials
        assert adapter.dropout == 0.0  # a trial that drops inputs is refused one
        assert set(factors) <= set(shape.layers)
        self._names, self._adapter = tuple(factors), adapter
        self._optimizer, self._max_steps, self._n_steps = optimizer, max_steps, 0
        for name, layer in self._pack.layers.items():
            layer.fill(self.number, factors.get(name))
        self._empty()
        self._pack.division.set_scaling(self.number, adapter.scaling)
        self._pack.optimizer.begin_anew(self.number, optimizer)

    @property
    def layout(self) -> str:
        """Tells packs apart that share a slot's weights out in different ways."""
        shape, sizes = self._pack.shape, self._pack.held.sizes(self.number)
        return content_key({"layers": shape.layers, "rank": shape.rank, "sizes": sizes})

    @property
    def is_whole(self) -> bool:
        """Whether every rank holds all of it, and the same."""
        return self._pack.held.is_whole

    def held(self) -> dict[str, Tensor]:
        """What the optimiser holds of it on this rank."""
        return self._pack.held.read(self.number)

    def go_on_from(self, tensors: Mapping[str, Tensor], *, step: int) -> None:
        """Be as after ``step`` steps, of which :meth:`held` gave ``tensors``; every rank takes part."""
        self._pack.put_back(self.number, tensors)
        self._n_steps = step

    def detach(self) -> None:
        """Leave the slot empty."""
        for layer in self._pack.layers.values():
            layer.fill(self.number, None)
        self._empty()
        self._names = ()

    def _empty(self) -> None:
        for layer in self._pack.layers.values():
            for increment in layer.increments(self.number):
                increment.data.zero_()
                if hasattr(increment, "ds_tensor"):  # under ZeRO 3 each rank holds a part
                    increment.ds_tensor.zero_()

    def set_rate(self) -> None:
        """Have the next step of this slot follow its schedule; call once for each step."""
        rate = rate_at(self._n_steps, self._optimizer, max_steps=self._max_steps)
        self._pack.optimizer.set_rate(self.number, rate)
        self._n_steps += 1

    def only_its_own(self, forwarded: Forwarded) -> Forwarded:
        """What a pass gave, of the layers that this slot's adapter is on."""
        taken = forwarded.adapter_outputs
        if not taken:
            return forwarded
        return replace(forwarded, adapter_outputs={name: taken[name] for name in self._names})

    @property
    def model(self) -> nn.Module:
        """The network, which reads this slot's adapter within :meth:`alone`."""
        return self._pack.network

    @contextmanager
    def alone(self) -> Iterator[nn.Module]:
        """Within the context the network that it gives is the one that this slot trains."""
        with self._pack.division.alone(self.number):
            yield self.model

    def reference(self) -> AbstractContextManager[nn.Module]:
        """Within the context the module that it gives is the reference model."""
        return self._pack.reference()

    def tapped(self) -> AbstractContextManager[Taken]:
        """Within the context each pass leaves what adapters add, layer by layer."""
        return self._pack.tapped()

    def dropping(self, *number: int) -> AbstractContextManager[None]:
        """Nothing is dropped: a trial that drops inputs is in no pack."""
        return nullcontext()

    @contextmanager
    def scaled(self, factor: float) -> Iterator[None]:
        """Within the context the trained difference counts ``factor`` times."""
        self._pack.division.set_scaling(self.number, self._adapter.scaling * factor)
        try:
            yield
        finally:
            self._pack.division.set_scaling(self.number, self._adapter.scaling)

    def increments(self, gather: Gather) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Layer, dA ``(r, inputs)`` and dB ``(outputs, r)`` of every layer it is on, read with ``gather``."""
        rank = self._adapter.rank
        for name in self._names:
            a, b = self._pack.layers[name].increments(self.number)
            yield name, gather(a)[:rank], gather(b)[:, :rank]

    def _factors(self, name: str) -> InitialFactors:
        factors = self._pack.layers[name].factors(self.number)
        assert factors is not None  # it is one of the layers that the adapter is on
        return factors

    def exported(self, gather: Gather) -> dict[str, Tensor]:
        """Factors of the difference as an ordinary LoRA; see :class:`~core.training.adapter.DifferenceAdapter`."""
        tensors: dict[str, Tensor] = {}
        for name, moved_a, moved_b in self.increments(gather):
            tensors |= ordinary_lora(name, self._factors(name), moved_a, moved_b)
        return tensors

    def save(
        self, folder: Path, tensors: Mapping[str, Tensor], *, base: str, factor: float = 1.0
    ) -> None:
        """Commit what :meth:`exported` gave, with the trained difference scaled by ``factor``."""
        save_adapter(
            folder,
            tensors,
            scaling=self._adapter.scaling * factor,
            base=base,
            transposed=any(is_transposed(self.model.get_submodule(n)) for n in self._names),
        )

    def initial_rms(self) -> tuple[float, float]:
        """Root mean square of all entries of A0 and of B0 (0 where B0 = 0)."""
        return rms_of(self._factors(name) for name in self._names)

    def unmoved(self, gather: Gather) -> list[str]:
        """Layers whose increments are still zero, read with ``gather``; every rank must take part."""
        return [
            name for name, a, b in self.increments(gather) if not (bool(a.any()) or bool(b.any()))
        ]
