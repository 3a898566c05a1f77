"""Trials in a pack end where they would have ended alone, whatever is trained beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from two_ranks import spawned

from core.config import TrialConfig
from core.config.method import FORGET_LOSS_FACTS
from core.measuring.selection import Probe
from core.model.loading import weights_checksum
from core.training.ranks import Group, join, join_alone
from core.training.warm import Warm
from core.worker import SideBySide, probes

pytestmark = pytest.mark.integration

WITHIN = 1e-5
N_STEPS = 3

TrialMaker = Callable[..., TrialConfig]
Series = list[Mapping[str, float]]


@pytest.fixture(scope="module")
def make_short(make_trial: TrialMaker) -> TrialMaker:
    """Trials of three steps that no rule ends early."""

    def make(changes: Mapping[str, Any] | None = None) -> TrialConfig:
        values: dict[str, Any] = {
            "selection.max_steps": N_STEPS,
            "selection.past_target": None,
            "selection.constraints": [],
        }
        return make_trial(values | dict(changes or {}))

    return make


def alone(config: TrialConfig, folder: Path | None = None) -> Series:
    return [p.metrics for p in probes(config, folder=folder, warm=Warm())]


def side_by_side(
    configs: Sequence[TrialConfig],
    *,
    n_slots: int | None = None,
    folders: Mapping[int, Path] | None = None,
    group: Group | None = None,
    warm: Warm | None = None,
    stops: Callable[[int, Probe], bool] = lambda _, probe: False,
) -> list[Series]:
    """The probes of each trial; a slot that is free takes the next one."""
    group = group or join_alone(configs[0].engine)[0]
    trials = SideBySide(configs, n_slots=n_slots or len(configs), group=group, warm=warm or Warm())
    seen: list[Series] = [[] for _ in configs]
    left, going = list(range(len(configs))), dict[int, int]()
    try:
        while left or going:
            for slot in range(n_slots or len(configs)):
                if slot not in going and left:
                    going[slot] = left.pop(0)
                    folder = (folders or {}).get(going[slot])
                    trials.begin(slot, configs[going[slot]], folder=folder)
            for slot, number in list(going.items()):
                probe = trials.go_on(slot)
                if probe is None:
                    continue
                seen[number].append(probe.metrics)
                if probe.stopped_by is not None or stops(number, probe):
                    trials.end(slot)
                    del going[slot]
            trials.step()
    finally:
        trials.close()
    return seen


def assert_agree(found: Series, expected: Series, *, where: object = "") -> None:
    assert len(found) == len(expected) > 0, where
    for step, (one, other) in enumerate(zip(found, expected, strict=True), start=1):
        kept = {k: v for k, v in one.items() if "perplexity" not in k}  # the exponential of another
        wanted = {k: v for k, v in other.items() if "perplexity" not in k}
        assert kept == pytest.approx(wanted, rel=0, abs=WITHIN, nan_ok=True), (where, step)


# Losses, initialisations and settings

_RETAIN: Mapping[str, str] = {
    "rmu": "activation",
    "residual": "residual",
    "ga": "kl",
    "ihl": "none",
}

PACKS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "first-half-of-the-losses": [
        {"method.forget_loss": loss, "method.retain_loss": _RETAIN.get(loss, "nll")}
        for loss in list(FORGET_LOSS_FACTS)[::2]
    ],
    "second-half-of-the-losses": [
        {"method.forget_loss": loss, "method.retain_loss": _RETAIN.get(loss, "nll")}
        for loss in list(FORGET_LOSS_FACTS)[1::2]
    ],
    "initialisations": [
        {"method.adapter_init": init, "adapter.rank": rank, "adapter.scaling": scaling}
        for init, rank, scaling in (
            ("lora", 2, 4.0),
            ("svd", 8, 1.0),
            ("fila", 4, 2.0),
            ("vila", 6, 0.5),
        )
    ],
    "settings": [
        {"optimizer.learning_rate": 1e-4, "optimizer.weight_decay": 0.5, "seed": 3},
        {"optimizer.beta1": 0.5, "optimizer.beta2": 0.9, "optimizer.epsilon": 1e-3},
        {"optimizer.gradient_clipping": 0.01, "batch.global_batch_size": 6},
        {
            "optimizer.gradient_clipping": 0.0,
            "batch.global_batch_size": 6,
            "batch.micro_batch_size": 2,
        },
        {"optimizer.schedule": "linear", "optimizer.warmup_steps": 1, "selection.select": "last"},
        {
            "method.retain_weight": 4.0,
            "method.forget_weight": 0.5,
            "method.retain_source": "general",
        },
        {"adapter.targets": "mlp", "selection.probe_every": 2},
        {"adapter.targets": "attention", "adapter.layers": [1]},
    ],
    "extents-of-probes": [
        {"selection.rows_per_probe": "adaptive", "optimizer.learning_rate": 1e-4},
        {"selection.skip_probes": True, "optimizer.learning_rate": 1e-4},
        {"selection.rows_per_probe": "adaptive", "selection.skip_probes": True},
        {},
    ],
}


@pytest.mark.parametrize("name", PACKS)
def test_a_pack_ends_where_its_trials_end_alone(make_short: TrialMaker, name: str) -> None:
    configs = [make_short(changes) for changes in PACKS[name]]
    for config, found in zip(configs, side_by_side(configs), strict=True):
        assert_agree(found, alone(config), where=config.method)


def test_activation_checkpointing_goes_with_packing(make_short: TrialMaker) -> None:
    configs = [
        make_short({"engine.activation_checkpointing": True} | dict(changes))
        for changes in PACKS["first-half-of-the-losses"][-2:]
    ]
    for config, found in zip(configs, side_by_side(configs), strict=True):
        assert_agree(found, alone(config), where=config.method)


# Ends and beginnings


def test_a_slot_that_is_free_takes_the_next_trial_and_its_neighbour_never_notices(
    make_short: TrialMaker, tmp_path: Path
) -> None:
    configs = [
        make_short({"selection.max_steps": 6, "method.adapter_init": "svd"}),
        make_short({"selection.max_steps": 2, "adapter.rank": 8, "optimizer.learning_rate": 1e-2}),
        make_short({"selection.max_steps": 3, "adapter.rank": 2, "method.adapter_init": "svd"}),
        make_short({"selection.max_steps": 1, "adapter.targets": "attention"}),
    ]
    folders = {i: tmp_path / "packed" / str(i) for i in range(len(configs))}
    warm = Warm()
    found = side_by_side(configs, n_slots=2, folders=folders, warm=warm)
    for i, config in enumerate(configs):
        other = tmp_path / "alone" / str(i)
        assert_agree(found[i], alone(config, other), where=i)
        assert_same_files(folders[i], other)
    weights = dict(warm.network(configs[0]).named_parameters())
    assert weights_checksum(weights) == warm.checksum


def assert_same_files(folder: Path, other: Path) -> None:
    names = sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    assert sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file()) == names
    lines = [
        [json.loads(line) for line in (at / "history.jsonl").read_text("utf-8").splitlines()]
        for at in (folder, other)
    ]
    for one, another in zip(*lines, strict=True):
        assert one.keys() == another.keys()
        assert one.get("is_best") == another.get("is_best")
        assert one.get("stopped_by") == another.get("stopped_by")
    saved = [load_file(at / "adapter" / "adapter_model.safetensors") for at in (folder, other)]
    torch.testing.assert_close(saved[0], saved[1], atol=WITHIN, rtol=0)
    settings = [
        (at / "adapter" / "adapter_config.json").read_text("utf-8") for at in (folder, other)
    ]
    assert settings[0] == settings[1]


def test_a_trial_that_is_stopped_early_leaves_the_others_alone(make_short: TrialMaker) -> None:
    configs = [make_short({"seed": seed}) for seed in (0, 1, 2)]
    found = side_by_side(configs, stops=lambda number, probe: number == 1 and probe.step == 1)
    assert [len(series) for series in found] == [N_STEPS, 1, N_STEPS]
    for config, series in zip(configs, found, strict=True):
        assert_agree(series, alone(config)[: len(series)])


# Engines


ENGINES: Mapping[str, Mapping[str, Any]] = {
    f"zero-{stage}": {"engine.zero_stage": stage} for stage in range(4)
} | {"offloaded": {"engine.zero_stage": 2, "engine.offload": "optimizer"}}

MIXED: Sequence[Mapping[str, Any]] = [
    {"adapter.rank": 2, "batch.micro_batch_size": 2},
    {"selection.max_steps": 1, "method.adapter_init": "svd"},
    {"optimizer.learning_rate": 1e-3, "adapter.rank": 8, "method.adapter_init": "svd"},
    {"method.forget_loss": "npo", "method.retain_loss": "kl", "optimizer.gradient_clipping": 0.1},
]
"""More trials than the two slots of the packs below: one ends at once, and two come after others."""


@pytest.fixture(scope="module")
def mixed_alone(make_short: TrialMaker) -> list[Series]:
    return [alone(make_short({**changes, "engine.zero_stage": 0})) for changes in MIXED]


@pytest.mark.parametrize("name", ENGINES)
def test_every_zero_stage_takes_a_pack(
    make_short: TrialMaker, mixed_alone: list[Series], name: str
) -> None:
    configs = [make_short({**changes, **ENGINES[name]}) for changes in MIXED]
    for i, found in enumerate(side_by_side(configs, n_slots=2)):
        assert_agree(found, mixed_alone[i], where=i)


def run_rank(rank: int, host: str, port: int, trials: Sequence[Sequence[str]], folder: str) -> None:
    """One of two ranks: packs one after the other in one group."""
    packs = [[TrialConfig.model_validate_json(text) for text in pack] for pack in trials]
    group = join(rank, 2, host, port, packs[0][0].engine)
    for i, configs in enumerate(packs):
        found = side_by_side(configs, n_slots=2, group=group)
        plain = [[dict(metrics) for metrics in series] for series in found]
        Path(folder, f"{i}-{rank}.json").write_text(json.dumps(plain), encoding="utf-8")


@pytest.fixture(scope="module")
def two_ranks(make_short: TrialMaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("packs")
    packs = [
        [
            make_short({**changes, "engine.zero_stage": stage, "engine.ranks": 2})
            for changes in MIXED_ON_TWO
        ]
        for stage in range(4)
    ]
    spawned(run_rank, [[c.model_dump_json() for c in pack] for pack in packs], str(folder))
    yield folder


MIXED_ON_TWO = [{**MIXED[0], "batch.micro_batch_size": 1}, *MIXED[1:]]


@pytest.mark.parametrize("stage", range(4))
def test_two_ranks_train_a_pack_as_one(
    two_ranks: Path, mixed_alone: list[Series], stage: int
) -> None:
    seen = [json.loads((two_ranks / f"{stage}-{rank}.json").read_text("utf-8")) for rank in (0, 1)]
    assert seen[0] == seen[1], "every rank sees the same probes"
    for i, found in enumerate(seen[0]):
        assert_agree(found, mixed_alone[i], where=i)
