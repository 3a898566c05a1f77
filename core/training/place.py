"""Where a trial is trained: an engine of its own, or a slot of a pack that it shares with others."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Protocol

from torch import Tensor, nn

from core.config import TrialConfig
from core.model.layers import resolve_targets
from core.model.loading import LoadedModel
from core.store.artifacts import content_key
from core.training.attaching import agreed_factors, attach
from core.training.engine import Engine
from core.training.pack import Pack, Shape, Slot
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

    @property
    def layout(self) -> str:
        """Tells places apart that share out what their optimiser holds in different ways."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether every rank holds all of what :meth:`held` gives, and the same."""
        ...

    def held(self) -> dict[str, Tensor]:
        """Copies of what the optimiser holds of the trial on this rank; what is trained follows from it."""
        ...

    def go_on_from(self, tensors: Mapping[str, Tensor], *, step: int) -> None:
        """Be as after ``step`` steps, of which :meth:`held` gave ``tensors``; every rank must take part."""
        ...

    def leave(self) -> None:
        """Let go of what is trained; the target model is as before."""
        ...


class OwnEngine:
    """An engine of the trial's own."""

    def __init__(self, trained: Trained, engine: Engine, group: Group) -> None:
        """Train with ``engine``, which was built around ``trained`` on the ranks of ``group``."""
        self.trained, self._engine, self._group = trained, engine, group

    def step(self, micro_batches: Iterable[MicroBatch]) -> None:
        """One optimiser step."""
        self._engine.step(micro_batches)

    def alone(self) -> AbstractContextManager[nn.Module]:
        """The engine's model reads nothing else."""
        return nullcontext(self._engine.module)

    def full_value(self, parameter: Tensor) -> Tensor:
        """Full float32 value of a trained parameter on the CPU; every rank must take part."""
        return self._engine.full_value(parameter)

    @property
    def layout(self) -> str:
        """Follows from the sizes of the masters on this rank."""
        return content_key({"sizes": self._engine.held.sizes(0)})

    @property
    def is_whole(self) -> bool:
        """Whether every rank holds all of what :meth:`held` gives, and the same."""
        return self._engine.held.is_whole

    def held(self) -> dict[str, Tensor]:
        """Copies of what the optimiser holds of the trial on this rank."""
        return self._engine.held.read(0)

    def go_on_from(self, tensors: Mapping[str, Tensor], *, step: int) -> None:
        """Be as after ``step`` steps, of which :meth:`held` gave ``tensors``; every rank must take part."""
        self._engine.go_on_from(tensors, step=step, group=self._group)

    def leave(self) -> None:
        """Free the engine and detach what it trained."""
        self._engine.destroy()
        self.trained.detach()


def own_engine(config: TrialConfig, warm: Warm, steps: Steps, *, group: Group) -> Place:
    """Attach what the trial trains and build an engine around it."""
    known = warm.outlined if config.partitions == "base" else warm
    model = known.model(config)
    trained = attach(config, model, known.data(config), group, network=warm.network(config))
    with ExitStack() as if_it_fails:
        if_it_fails.callback(trained.detach)
        engine = Engine(
            trained,
            engine=config.engine,
            optimizer=config.optimizer,
            plan=steps.plan,
            max_steps=config.selection.max_steps,
            model=model,
            group=group,
        )
        if_it_fails.pop_all()
    return OwnEngine(trained, engine, group)


class SharedPack:
    """A pack for trials that come and go; it is made when the first of them comes to train."""

    def __init__(self, like: Sequence[TrialConfig], *, n_slots: int, group: Group) -> None:
        """Nothing is made yet.

        Args:
            like: Trials that say which layers and which rank the slots must have room for.
            n_slots: Trials at the same time.
            group: Ranks; all of them are called in the same order.
        """
        self._like, self._n_slots, self._group = tuple(like), n_slots, group
        self._pack: Pack | None = None

    def place(self, config: TrialConfig, warm: Warm, steps: Steps, *, number: int) -> "SlotOfPack":
        """Fill a slot with the trial's adapter."""
        known = warm.outlined if config.partitions == "base" else warm
        model = known.model(config)
        factors = agreed_factors(config, model, known.data(config), self._group)
        if self._pack is None:
            self._pack = Pack(
                warm.network(config),
                shape_for(self._like, model, n_slots=self._n_slots),
                engine=config.engine,
                group=self._group,
                dtype=model.dtype,
                reader=model.reader,
            )
        slot = self._pack.slots[number]
        slot.fill(factors, config.adapter, config.optimizer, max_steps=config.selection.max_steps)
        return SlotOfPack(self._pack, slot)

    def step(self, asked: Mapping[int, Iterable[MicroBatch]]) -> None:
        """One optimiser step of each slot that asks for one; see :meth:`~core.training.pack.Pack.step`."""
        assert self._pack is not None  # whoever asks fills a slot
        self._pack.step(asked)

    def close(self) -> None:
        """Give the network back as it was."""
        if self._pack is not None:
            self._pack.close()
            self._pack = None


class SlotOfPack:
    """A slot of a pack, for one trial."""

    def __init__(self, pack: Pack, slot: Slot) -> None:
        """Train in ``slot``, which was filled."""
        self._pack, self.trained = pack, slot

    def step(self, micro_batches: Iterable[MicroBatch]) -> None:
        """One optimiser step of this slot, and of no other."""
        self._pack.step({self.trained.number: micro_batches})

    def alone(self) -> AbstractContextManager[nn.Module]:
        """Within the context the network reads this slot only."""
        return self.trained.alone()

    def full_value(self, parameter: Tensor) -> Tensor:
        """Full float32 value of an increment on the CPU; every rank must take part."""
        return self._pack.full_value(parameter)

    @property
    def layout(self) -> str:
        """Follows from the pack's shape and the sizes of the slot's masters on this rank."""
        return self.trained.layout

    @property
    def is_whole(self) -> bool:
        """Whether every rank holds all of what :meth:`held` gives, and the same."""
        return self.trained.is_whole

    def held(self) -> dict[str, Tensor]:
        """Copies of what the optimiser holds of the trial on this rank."""
        return self.trained.held()

    def go_on_from(self, tensors: Mapping[str, Tensor], *, step: int) -> None:
        """Be as after ``step`` steps, of which :meth:`held` gave ``tensors``; every rank must take part."""
        self.trained.go_on_from(tensors, step=step)

    def leave(self) -> None:
        """Leave the slot empty."""
        self.trained.detach()


def shape_for(trials: Sequence[TrialConfig], model: LoadedModel, *, n_slots: int) -> Shape:
    """The layers that any of the trials adapts, and their largest rank.

    Raises:
        ModelError: If no layer matches the targets, a block does not exist, or a rank does not fit.
    """
    names: dict[str, None] = {}
    for trial in trials:
        adapter = trial.adapter
        found = resolve_targets(
            model.network, adapter.targets, rank=adapter.rank, layers=adapter.layers
        )
        names |= dict.fromkeys(found)
    return Shape(layers=tuple(names), rank=max(t.adapter.rank for t in trials), n_slots=n_slots)
