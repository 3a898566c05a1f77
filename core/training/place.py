"""Where a trial is trained: an engine of its own, or a slot of a pack that it shares with others."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor, nn

from core.config import TrialConfig
from core.training.attaching import agreed_factors, attach
from core.training.engine import Engine
from core.training.pack import Pack, Slot
from core.training.passes import MicroBatch
from core.training.ranks import Group
from core.training.steps import Steps
from core.training.trained import Trained
from core.training.warm import Warm


class Place(Protocol):
    """What a trial needs of the place that it is trained in."""

    @property
    def trained(self) -> Trained:
        """What is trained."""
        ...

    def step(self, micro_batches: Iterable[MicroBatch]) -> None:
        """One optimiser step."""
        ...

    def alone(self) -> AbstractContextManager[nn.Module]:
        """Within the context the module that it gives is the model that the trial trains."""
        ...

    def full_value(self, parameter: Tensor) -> Tensor:
        """Full float32 value of a trained parameter on the CPU; every rank must take part."""
        ...

    def leave(self) -> None:
        """Let go of what is trained; the target model is as before."""
        ...


class OwnEngine:
    """An engine of the trial's own."""

    def __init__(self, trained: Trained, engine: Engine) -> None:
        """Train with ``engine``, which was built around ``trained``."""
        self.trained, self._engine = trained, engine

    def step(self, micro_batches: Iterable[MicroBatch]) -> None:
        """One optimiser step."""
        self._engine.step(micro_batches)

    def alone(self) -> AbstractContextManager[nn.Module]:
        """The engine's model reads nothing else."""
        return nullcontext(self._engine.module)

    def full_value(self, parameter: Tensor) -> Tensor:
        """Full float32 value of a trained parameter on the CPU; every rank must take part."""
        return self._engine.full_value(parameter)

    def leave(self) -> None:
        """Free the engine and detach what it trained."""
        self._engine.destroy()
        self.trained.detach()


def own_engine(config: TrialConfig, warm: Warm, steps: Steps, *, group: Group) -> Place:
    """Attach what the trial trains and build an engine around it."""
    known = warm.outlined if config.partitions == "base" else warm
    model = known.model(config)
    trained = attach(config, model, known.data(config), group, network=warm.network(config))
    try:
        engine = Engine(
            trained,
            engine=config.engine,
            optimizer=config.optimizer,
            plan=steps.plan,
            max_steps=config.selection.max_steps,
            dtype=model.dtype,
        )
    except BaseException:
        trained.detach()
        raise
    return OwnEngine(trained, engine)


class SlotOfPack:
    """A slot of a pack, for one trial."""

    def __init__(self, pack: Pack, slot: Slot) -> None:
        """Train in ``slot``, which was filled."""
        self._pack, self.trained = pack, slot

    @property
    def number(self) -> int:
        """Which slot it is."""
        return self.trained.number

    def step(self, micro_batches: Iterable[MicroBatch]) -> None:
        """One optimiser step of this slot, and of no other."""
        self._pack.step({self.number: micro_batches})

    def alone(self) -> AbstractContextManager[nn.Module]:
        """Within the context the network reads this slot only."""
        return self.trained.alone()

    def full_value(self, parameter: Tensor) -> Tensor:
        """Full float32 value of an increment on the CPU; every rank must take part."""
        return self._pack.full_value(parameter)

    def leave(self) -> None:
        """Leave the slot empty."""
        self.trained.detach()


def slot_of(
    config: TrialConfig, warm: Warm, steps: Steps, *, pack: Pack, number: int, group: Group
) -> SlotOfPack:
    """Fill a slot with the trial's adapter."""
    known = warm.outlined if config.partitions == "base" else warm
    factors = agreed_factors(config, known.model(config), known.data(config), group)
    slot = pack.slots[number]
    slot.fill(factors, config.adapter, config.optimizer, max_steps=config.selection.max_steps)
    return SlotOfPack(pack, slot)
