"""Door to ray: trials of Tune that share one pack. Each is a small actor; the pack steps all that wait.

A trial of Tune asks the pack for its next probe and waits. The pack brings all trials that wait one step
forward, and again, until one has its probe; it is told at once, and the pack gives it a moment to come back. A
trial that ends leaves its slot to the next.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    remove_placement_group,
)

from core.config import TrialConfig
from core.measuring.selection import Probe
from core.model.machine import oom_kills
from tuning.config import ResourcesSpec
from tuning.limits import Course, HungRankError, Limits, Part, Watch
from tuning.storage.home import Home, Workplace
from tuning.trainable import (
    ProbedTrial,
    Rank,
    broken_is_kept,
    bundles,
    log_of,
    record_failure,
    start_rank,
)

logger = logging.getLogger(__name__)

PACK = "pack"
"""Key of a Tune trial's configuration that names its pack."""

BARRIER_S = 0.5
"""How long a pack waits, at most, for a trial that was told of a probe and may come back."""

_CLOSE_TIMEOUT_S = 30.0
_SMALLEST = 2**20
"""Bytes of memory that a Tune actor asks for: Ray wants to be asked for something."""


SIZES = (1, 2, 4, 8, 16)
"""Trials of a pack that ``auto`` looks at."""
LEAST_GAIN = 1.1
"""What a pack must be faster than a trial alone, for each of its trials, to be worth it."""
LEAST_GAIN_ON_SHARED_GPU = 2.0
"""The same where trials alone would share a GPU, as processes of their own."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Trials of a pack, and why so many."""

    slots: int
    because: str


def choose(seconds: Mapping[int, float], *, least_gain: float) -> Choice:
    """The fastest size, or 1 where none is enough faster than a trial alone.

    Args:
        seconds: Of a step for each trial, by trials that make it together; of 1 at least.
        least_gain: What it must be faster than 1.
    """
    fastest = min(seconds, key=lambda size: seconds[size])
    gain = seconds[1] / seconds[fastest]
    shown = ", ".join(f"{1e3 * s:.0f} ms with {size}" for size, s in sorted(seconds.items()))
    timed = f"a step takes each trial {shown} in a pass"
    if fastest > 1 and gain >= least_gain:
        return Choice(slots=fastest, because=f"{timed}: {gain:.1f} times as fast as alone")
    return Choice(slots=1, because=f"{timed}: packing must be {least_gain:g} times as fast to pay")


def time_sizes(
    warm: Any, group: Any, work: tuple[TrialConfig, Sequence[int], float | None]
) -> dict[int, float]:
    """Runs on a rank: seconds of a step for each trial, by size; see :func:`choose`.

    Args:
        warm: What the rank keeps.
        group: The rank alone.
        work: A trial, sizes, and GiB that a rank may take, where that is known.
    """
    from core.estimate import rank_memory
    from core.training.speed import seconds_by_size

    trial, sizes, room_gib = work
    is_on_cpu = warm.model(trial).device.type == "cpu"

    def fits(size: int) -> bool:
        if room_gib is None:
            return True
        memory = rank_memory(trial, slots=size)
        return (memory.on_cpu if is_on_cpu else memory.on_gpu) <= room_gib * 2**30

    return seconds_by_size(trial, sizes, warm=warm, group=group, fits=fits)


class PackRank(Rank):
    """One process of a pack: trials in its slots, which are told apart by number."""

    def open_pack(self, like: Sequence[TrialConfig], n_slots: int) -> None:
        """Make room for ``n_slots`` trials, none of them larger than those of ``like``."""
        from core.worker import SideBySide

        self._logs: dict[int, logging.FileHandler] = {}
        self._workplaces: dict[int, Workplace] = {}
        self._trials = SideBySide(like, n_slots=n_slots, group=self._group, warm=self._warm)

    def begin_in(self, slot: int, config: TrialConfig, home: Home) -> None:
        """Begin a trial in a slot that is free, or go on from a checkpoint of earlier attempts."""
        from core.training.resuming import Interruption

        folder, earlier = home.folder, tuple[Path, ...]()
        if self._group.is_first:
            self._workplaces[slot] = home.enter()
            folder, earlier = self._workplaces[slot].folder, self._workplaces[slot].earlier
            self._logs[slot] = log_of(folder)
            logger.setLevel(logging.INFO)
        self._trials.begin(slot, config, folder=folder, interruption=Interruption(earlier=earlier))

    def go_on(self, slot: int) -> Probe | None:
        """Bring a trial to its next probe, or to where it waits for a step."""
        workplace = self._workplaces.get(slot)
        with self._logged(slot), broken_is_kept(workplace):
            probe = self._trials.go_on(slot)
            if probe is not None:
                logger.info("step %d after %.1f s", probe.step, probe.seconds)
            if workplace is not None:
                workplace.commit(is_told=probe is not None)
            return probe

    def step(self) -> None:
        """Make the steps that trials wait for, together."""
        self._trials.step()

    def end(self, slot: int) -> None:
        """End the trial of a slot, which verifies the base weights."""
        log, workplace = self._logs.pop(slot, None), self._workplaces.pop(slot, None)
        try:
            self._trials.end(slot)
        finally:
            if log is not None:
                log.close()
            if workplace is not None:
                workplace.leave()

    @contextmanager
    def _logged(self, slot: int) -> Iterator[None]:
        """Within the context this process's log goes to the trial's ``log.txt``, the first rank's only."""
        log = self._logs.get(slot)
        if log is None:
            yield
            return
        logging.getLogger().addHandler(log)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(log)


class PackHost:
    """Owns the ranks of a pack, and has them step the trials that wait."""

    def __init__(
        self,
        like: Sequence[TrialConfig],
        *,
        n_slots: int,
        resources: ResourcesSpec,
        limits: Limits,
    ) -> None:
        """Nothing is started yet."""
        self._watch = Watch(Limits(hang_s=limits.hang_s))  # of trials, each looks itself
        self._courses: dict[int, Course] = {}
        self._like, self._n_slots, self._resources = tuple(like), n_slots, resources
        self._ranks: list[Any] = []
        self._place: PlacementGroup | None = None
        self._slots: dict[str, int] = {}
        self._waiting: dict[str, asyncio.Future[Probe]] = {}
        self._changed = asyncio.Event()
        self._at_work = asyncio.Lock()
        self._driving: asyncio.Task[None] | None = None

    async def begin(self, name: str, config: TrialConfig, home: Home) -> None:
        """Begin a trial, or go on with it; ranks are started with the first."""
        async with self._at_work:
            if not self._ranks:
                await self._start(config)
            free = set(range(self._n_slots)) - set(self._slots.values())
            if not free:
                raise RuntimeError("the pack has no free slot")
            slot = min(free)
            await self._on_all("begin_in", slot, config, home)
            self._slots[name] = slot
            self._courses[slot] = Course(config.selection, is_resumed=bool(home.earlier))
        if self._driving is None:
            self._driving = asyncio.create_task(self._drive())

    async def advance(self, name: str) -> Probe:
        """The trial's next probe, when the pack has come to it."""
        if name not in self._slots:
            raise RuntimeError("the pack that the trial was in broke, and has none of it left")
        self._waiting[name] = asyncio.get_running_loop().create_future()
        self._changed.set()
        return await self._waiting[name]

    async def end(self, name: str) -> None:
        """End a trial; its slot is free then."""
        async with self._at_work:
            self._waiting.pop(name, None)  # its trial has stopped waiting
            if name in self._slots:
                try:
                    await self._on_all("end", self._slots[name])
                finally:
                    self._slots.pop(name, None)
        self._changed.set()

    async def _drive(self) -> None:
        """Have all trials that wait make a step, again and again; the one that is due for a probe is told it."""
        while True:
            await self._all_there()
            async with self._at_work:
                waiting = {name: self._slots[name] for name in self._waiting}
                if not waiting:
                    continue
                try:
                    outcomes = await self._turn(list(waiting.values()))
                except (ray.exceptions.RayError, HungRankError) as err:
                    self._broke(err)
                    continue
            for name, outcome in zip(waiting, outcomes, strict=True):
                if isinstance(outcome, Probe):
                    self._waiting.pop(name).set_result(outcome)
                elif outcome is not None:
                    self._waiting.pop(name).set_exception(outcome)

    async def _turn(self, slots: list[int]) -> list[Probe | Exception | None]:
        """What each trial has come to after one step together: nothing, a probe, or an error of its own.

        With several ranks a trial that breaks on one breaks the pack: others may be waiting for that rank.

        Raises:
            RayError: If the pack broke.
            HungRankError: If it does not go on.
        """
        came = [[rank.go_on.remote(slot) for slot in slots] for rank in self._ranks]
        stepped = [rank.step.remote() for rank in self._ranks]  # in the order of the calls
        is_alone = len(self._ranks) == 1
        parts = {self._courses[slot].next_part for slot in slots}
        part: Part = "load" if "load" in parts else "pause" if "pause" in parts else "step"
        all_came = asyncio.gather(
            *(ref for of_rank in came for ref in of_rank), return_exceptions=is_alone
        )
        found = await self._within(all_came, part)
        outcomes: list[Any] = list(found[: len(slots)])  # the first rank's; all say the same
        for slot, outcome in zip(slots, outcomes, strict=True):
            if isinstance(outcome, ray.exceptions.RayTaskError):
                self._slots = {name: own for name, own in self._slots.items() if own != slot}
                await self._on_all("end", slot)
            elif isinstance(outcome, BaseException):
                raise outcome
        await self._within(asyncio.gather(*stepped), "step")
        for slot, outcome in zip(slots, outcomes, strict=True):
            if isinstance(outcome, Probe):
                self._courses[slot].probed(outcome.step)
            elif outcome is None:
                self._courses[slot].stepped()
        return outcomes

    async def _within(self, calls: "asyncio.Future[list[Any]]", part: Part) -> list[Any]:
        """What the ranks return, in the time that it may take.

        Raises:
            HungRankError: If it takes longer.
        """
        began = time.monotonic()
        calls.add_done_callback(_looked_at)  # also if nobody waits for it any more
        ended, _ = await asyncio.wait({calls}, timeout=self._watch.timeout_s(part))
        if not ended:
            size = len(self._ranks)
            raise self._watch.expired(part, silent=range(size), size=size)
        self._watch.took(part, time.monotonic() - began)
        return calls.result()

    async def _all_there(self) -> None:
        """Return when all trials wait, or the others have had their moment."""
        while not self._waiting:
            self._changed.clear()
            await self._changed.wait()
        loop = asyncio.get_running_loop()
        until = loop.time() + BARRIER_S
        while len(self._waiting) < len(self._slots):
            self._changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), until - loop.time())
            if loop.time() >= until:
                return

    async def _start(self, config: TrialConfig) -> None:
        size = config.engine.ranks
        if size > 1 and self._place is None:  # new ranks take the places of those before
            self._place = placement_group(
                bundles(self._resources),
                strategy=self._resources.placement.upper(),
                name=ray.get_runtime_context().get_actor_name(),
            )
            await self._place.ready()
        self._ranks = [
            start_rank(self._resources, self._place, bundle=i, kind=PackRank) for i in range(size)
        ]
        host, port = await self._ranks[0].open.remote(size)
        joined = [
            r.join.remote(i, size, host, port, config.engine) for i, r in enumerate(self._ranks)
        ]
        await asyncio.gather(*joined)
        await self._on_all("open_pack", self._like, self._n_slots)

    async def _on_all(self, method: str, *args: Any) -> list[Any]:
        """Call all ranks; the first that fails speaks for all, for others may be waiting for it."""
        return list(await asyncio.gather(*(getattr(r, method).remote(*args) for r in self._ranks)))

    def _broke(self, err: Exception) -> None:
        """Everybody is told, and whoever comes next finds new ranks."""
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks, self._slots = [], {}
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            future.set_exception(err)


def _looked_at(calls: "asyncio.Future[list[Any]]") -> None:
    """Take notice of an error, which asyncio would report as one that nobody saw."""
    if not calls.cancelled():
        calls.exception()


class PackedTrial(ProbedTrial):
    """A trial in a slot of a pack."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first trial."""
        self._begun = False
        self._assign(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial."""
        self._end()
        self._assign(new_config)
        return True

    def _next_probe(self) -> Probe:
        """Wait for the pack to come to it."""
        if not self._begun:
            begun = self._pack.begin.remote(self._name, self._config, self._home)
            self._begun = True
            self._within(begun)
        probe: Probe = self._within(self._pack.advance.remote(self._name))
        return probe

    def _within(self, call: Any) -> Any:
        """What the pack returns; the slot is left where the attempt takes too long.

        Raises:
            TrialTimeoutError: If it does.
        """
        try:
            return ray.get(call, timeout=self._watch.left_s)
        except ray.exceptions.GetTimeoutError:
            self._end(timeout_s=_CLOSE_TIMEOUT_S)
            raise self._watch.expired("load", silent=(), size=1) from None

    def cleanup(self) -> None:
        """End the trial, which verifies the base weights."""
        self._end(timeout_s=_CLOSE_TIMEOUT_S)

    def _end(self, timeout_s: float | None = None) -> None:
        """End the trial in its pack; a pack that died or hangs has nothing left to say."""
        if not self._begun:
            return
        self._begun = False
        try:
            ray.get(self._pack.end.remote(self._name), timeout=timeout_s)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            logger.warning("the pack did not answer")
        except ray.exceptions.RayTaskError as err:
            self._record_failure(err)

    def _assign(self, config: dict[str, Any]) -> None:
        self._pack: Any = ray.get_actor(config[PACK])
        self._config: TrialConfig = config["trial"]
        self._home: Home = config["home"]
        self._name = str(self._home.folder)
        limits: Limits = config["limits"]
        self._watch = Watch(limits)
        self._begun = False
        self._kills_before = oom_kills()

    def _record_failure(self, err: Exception) -> None:
        record_failure(self._home, err, kernel_killed=oom_kills() > self._kills_before)


def start_packs(
    like: Sequence[TrialConfig],
    *,
    n_packs: int,
    n_slots: int,
    resources: ResourcesSpec,
    limits: Limits,
) -> dict[str, Any]:
    """Packs by name; they end with the last reference to them. One that dies comes back empty.

    Args:
        like: Trials that say which layers and which rank the slots must have room for.
        n_packs: How many.
        n_slots: Trials of each at the same time.
        resources: What each of their ranks occupies.
        limits: How long they may go without a step.
    """
    names = [f"unlearn-tune-pack-{i}" for i in range(n_packs)]
    host = ray.remote(PackHost)
    return {
        name: host.options(name=name, num_cpus=0, max_restarts=-1, max_concurrency=1000).remote(
            like, n_slots=n_slots, resources=resources, limits=limits
        )
        for name in names
    }


def end_packs(packs: Mapping[str, Any]) -> None:
    """End packs, and free the places of their ranks, which Ray would keep until the driver ends."""
    for name, pack in packs.items():
        ray.kill(pack)
        with suppress(ValueError):  # a pack of one rank has none
            remove_placement_group(get_placement_group(name))


def packed_placement(*, name: str = "") -> tune.PlacementGroupFactory:
    """A packed trial's place: next to nothing, for the pack has its own; ``name`` as in other trials' places."""
    return tune.PlacementGroupFactory([{"memory": float(_SMALLEST)}], name=name)
