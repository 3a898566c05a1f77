"""A trial that is interrupted and goes on from a checkpoint ends as if it had not been: to the last bit on a CPU."""

from __future__ import annotations

import itertools
import json
import logging
import random
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupted import KINDS, SIX_STEPS, attempt, left_by, run_on_rank
from two_ranks import spawned

from core.config import TrialConfig
from core.errors import UserError
from core.measuring.selection import Probe
from core.store.checkpoints import folder_of, found
from core.training import resuming, steps
from core.training.engine import Engine
from core.training.optimizer_state import OptimizerState
from core.training.ranks import join_alone
from core.training.resuming import EndedEarlyError, Interruption
from core.training.retain_weight import DualVariable
from core.training.warm import Warm
from core.worker import SideBySide, probes
from tuning.train import finished_before, train_trial

pytestmark = pytest.mark.integration

TrialMaker = Callable[..., TrialConfig]


@pytest.fixture(scope="module")
def warm() -> Warm:
    """What one process keeps from attempt to attempt; ranks that are new have their own."""
    return Warm()


@pytest.fixture
def make_long(make_trial: TrialMaker) -> TrialMaker:
    """Trials of six steps with a checkpoint after the third."""

    def make(changes: Mapping[str, Any] | None = None) -> TrialConfig:
        return make_trial({**SIX_STEPS, **(changes or {})})

    return make


def goes_on_exactly(config: TrialConfig, folder: Path, *, killed_at: int = 4) -> list[Probe]:
    """An attempt that is killed and another after it, compared with one that is not."""
    whole, first, second = (folder / name for name in ("whole", "first", "second"))
    uninterrupted = attempt(config, whole)
    attempt(config, first, killed_at=killed_at)
    newest = found([first])[0]
    seen = attempt(config, second, earlier=[first])
    assert seen[-1].resumed_at == int(newest.name.removeprefix("step-"))
    assert [(p.step, p.stopped_by) for p in seen] == [(p.step, p.stopped_by) for p in uninterrupted]
    assert left_by(second) == left_by(whole)
    return seen


SOME: Mapping[str, Mapping[str, Any]] = {
    "whole-copies-of-every-weight": {
        **KINDS["full"],
        "engine.zero_stage": 0,
        "engine.dtype": "bf16",
    },
    "dropout-and-a-weight-that-adapts": {
        "method.forget_loss": "pdu",
        "method.pdu.retain_limit": 0.1,
        "method.pdu.warmup_steps": 4,
        "adapter.dropout": 0.2,
        "batch.micro_batch_size": 2,
    },
    "parts-of-every-weight": {"engine.zero_stage": 3, "engine.dtype": "bf16"},
}


@pytest.mark.parametrize("name", SOME)
def test_it_ends_as_if_it_had_not_been_interrupted(
    make_long: TrialMaker, tmp_path: Path, name: str
) -> None:
    seen = goes_on_exactly(make_long(SOME[name]), tmp_path)
    assert [(p.step, p.is_carried) for p in seen] == [(2, True), (4, False), (6, False)]
    assert left_by(tmp_path / "second")["saved"]


def check_two_ranks(configs: list[TrialConfig], folder: Path) -> None:
    spawned(run_on_rank, [config.model_dump_json() for config in configs], str(folder))
    for i, config in enumerate(configs):
        told = [json.loads((folder / f"{i}-{rank}.json").read_text("utf-8")) for rank in (0, 1)]
        assert told[0] == told[1]
        assert told[0]["steps"] == [[2, True], [4, False], [6, False]]
        parts = sorted(folder_of(folder / f"{i}-first", 3).glob("rank-*"))
        assert len(parts) == (1 if config.engine.zero_stage == 0 else 2)
        assert left_by(folder / f"{i}-second") == left_by(folder / f"{i}-whole")
        assert left_by(folder / f"{i}-second")["saved"]


def test_each_of_two_ranks_goes_on_with_its_own_part_and_ends_when_the_first_is_asked_to(
    make_long: TrialMaker, tmp_path: Path
) -> None:
    changes = {"engine.ranks": 2, "engine.zero_stage": 2, "engine.dtype": "bf16"}
    check_two_ranks([make_long(changes)], tmp_path)
    ended = json.loads((tmp_path / "0-1.json").read_text("utf-8"))["ended"]
    assert ended == 2, "what the first rank was asked, both do"
    assert len(list(folder_of(tmp_path / "0-ended", 2).glob("rank-*"))) == 2


# All of it: make checkpoints

STAGES, DTYPES = (0, 1, 2, 3), ("fp32", "bf16")


@pytest.mark.matrix
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_stage_kind_and_precision(
    make_long: TrialMaker, tmp_path: Path, stage: int, kind: str, dtype: str
) -> None:
    changes = {**KINDS[kind], "engine.zero_stage": stage, "engine.dtype": dtype}
    goes_on_exactly(make_long(changes), tmp_path)


@pytest.mark.matrix
@pytest.mark.parametrize(("stage", "offload"), [(2, "optimizer"), (3, "parameters")])
def test_what_is_offloaded_goes_on_too(
    make_long: TrialMaker, tmp_path: Path, stage: int, offload: str
) -> None:
    changes = {"engine.zero_stage": stage, "engine.offload": offload, "engine.dtype": "bf16"}
    goes_on_exactly(make_long(changes), tmp_path)


@pytest.mark.matrix
def test_every_stage_kind_and_precision_on_two_ranks(make_long: TrialMaker, tmp_path: Path) -> None:
    configs = [
        make_long(
            {**KINDS[kind], "engine.zero_stage": stage, "engine.dtype": dtype, "engine.ranks": 2}
        )
        for stage, kind, dtype in itertools.product(STAGES, KINDS, DTYPES)
    ]
    check_two_ranks(configs, tmp_path)


@pytest.mark.matrix
@pytest.mark.parametrize("lost", ["moments", "passes", "warm-up", "rows"])
def test_the_comparison_notices_what_is_not_carried_over(
    make_long: TrialMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """So the tests above would fail if a part of the state were left out of a checkpoint."""
    if lost == "moments":
        whole = OptimizerState.read
        monkeypatch.setattr(
            OptimizerState,
            "read",
            lambda self, group: {
                name: torch.zeros_like(value) if "exp_avg" in name else value
                for name, value in whole(self, group).items()
            },
        )
    elif lost == "passes":
        restored = Engine.go_on_from

        def without_passes(self: Engine, *args: Any, **kwargs: Any) -> None:
            restored(self, *args, **kwargs)
            self._n_passes = 0

        monkeypatch.setattr(Engine, "go_on_from", without_passes)
    elif lost == "warm-up":
        monkeypatch.setattr(
            DualVariable, "go_on_from", lambda self, state, step: setattr(self, "value", 1.0)
        )
    else:
        monkeypatch.setattr(steps, "deque", lambda *_, **__: None)
    with pytest.raises(AssertionError):
        goes_on_exactly(make_long(SOME["dropout-and-a-weight-that-adapts"]), tmp_path)


STOPS: Mapping[str, Mapping[str, Any]] = {
    "past_target": {
        "method.forget_loss": "ga",
        "method.retain_loss": "none",
        "optimizer.learning_rate": 3e-2,
        "selection.past_target": {"patience": 1},
        "selection.landing": "auto",
    },
    "no_effect": {
        "optimizer.learning_rate": 1e-9,
        "selection.no_effect": {"after": 0.7},
    },
    "stop_when": {
        "method.forget_loss": "ga",
        "method.retain_loss": "none",
        "optimizer.learning_rate": 2e-3,
        "selection.stop_when": [{"metric": "memorization_accuracy", "at_most": 0.5}],
    },
    "retain_guard": {
        "method.retain_loss": "none",
        "method.forget_loss": "ga",
        "optimizer.learning_rate": 1e-2,
        "selection.retain_guard": {
            "limit": 0.001,
            "hard_limit": 999.0,
            "grace_steps": 1,
            "patience": 3,
        },
    },
    "skipped": {"selection.skip_probes": True, "selection.rows_per_probe": "adaptive"},
}
"""Rules that end a trial, or leave probes out."""


@pytest.mark.matrix
@pytest.mark.parametrize("rule", STOPS)
def test_it_is_stopped_by_the_same_rule_at_the_same_step(
    make_long: TrialMaker, tmp_path: Path, rule: str
) -> None:
    always = {
        "selection.max_steps": 12,
        "selection.probe_every": 1,
        "selection.checkpoint_every": 1,
    }
    seen = goes_on_exactly(make_long({**always, **STOPS[rule]}), tmp_path, killed_at=2)
    assert 2 < seen[-1].step < 12 or rule == "skipped"
    assert seen[-1].stopped_by == {"retain_guard": None, "skipped": "budget"}.get(rule, rule)
    assert any(probe.skipped for probe in seen) == (rule == "skipped")


# A slot of a pack


def side_by_side(
    configs: list[TrialConfig],
    folders: list[Path],
    *,
    killed_at: int | None = None,
    earlier: Mapping[int, Path] | None = None,
) -> None:
    """Trials in slots, from the last slot to the first; all are killed when one has told of a probe so late."""
    trials = SideBySide(
        configs, n_slots=len(configs) + 1, group=join_alone(configs[0].engine)[0], warm=Warm()
    )
    going = dict(enumerate(range(len(configs)), start=1 if earlier else 0))
    for slot, number in going.items():
        before = (earlier or {}).get(number)
        trials.begin(
            slot,
            configs[number],
            folder=folders[number],
            interruption=Interruption(earlier=[before] if before else []),
        )
    while going:
        for slot in list(going):
            probe = trials.go_on(slot)
            if probe is not None and (probe.stopped_by or probe.step == killed_at):
                trials.end(slot)
                del going[slot]
        trials.step()
    trials.close()


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.matrix)])
def test_a_trial_goes_on_in_another_slot_of_another_pack(
    make_long: TrialMaker, tmp_path: Path, stage: int
) -> None:
    changes = {"engine.packing": 3, "engine.zero_stage": stage, "engine.dtype": "bf16"}
    configs = [make_long({**changes, "adapter.rank": rank}) for rank in (2, 4)]
    folders = {
        name: [tmp_path / f"{name}-{i}" for i in (0, 1)] for name in ("whole", "first", "second")
    }
    side_by_side(configs, folders["whole"])
    side_by_side(configs, folders["first"], killed_at=4)
    side_by_side(configs, folders["second"], earlier=dict(enumerate(folders["first"])))
    for whole, second in zip(folders["whole"], folders["second"], strict=True):
        assert left_by(second) == left_by(whole)
        assert left_by(second)["saved"]


# Damage, and other trials


@pytest.fixture(scope="module")
def interrupted(
    make_trial: TrialMaker, warm: Warm, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrialConfig, Path]:
    """An attempt with two checkpoints, after its second and its fourth step."""
    config = make_trial({**SIX_STEPS, "selection.checkpoint_every": 1, "selection.max_steps": 8})
    folder = tmp_path_factory.mktemp("interrupted") / "first"
    attempt(config, folder, killed_at=6, warm=warm)
    return config, folder


def begun_at(config: TrialConfig, first: Path, second: Path, warm: Warm) -> int | None:
    """Where an attempt goes on."""
    return attempt(config, second, killed_at=1, earlier=[first], warm=warm)[0].resumed_at


def test_two_checkpoints_are_kept_and_no_draft(interrupted: tuple[TrialConfig, Path]) -> None:
    _, folder = interrupted
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "step-00000004",
        "step-00000005",
    ]


def test_a_damaged_one_is_passed_over_for_the_one_before_and_that_is_said(
    interrupted: tuple[TrialConfig, Path],
    warm: Warm,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config, whole = interrupted
    first = tmp_path / "first"
    shutil.copytree(whole, first)
    for step, damaged, expected in (
        (5, "rank-0.safetensors", 4),
        (4, "history.jsonl", None),
    ):
        path = folder_of(first, step) / damaged
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        caplog.clear()
        assert begun_at(config, first, tmp_path / f"after-{step}", warm) == expected
        assert f"{folder_of(first, step)} is not gone on from: {damaged} is damaged" in caplog.text
    assert "begins at step 0" in caplog.text


def test_a_checkpoint_of_another_configuration_version_or_data_is_refused(
    interrupted: tuple[TrialConfig, Path],
    warm: Warm,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, first = interrupted
    selection = config.selection.model_copy(update={"checkpoint_every": "off"})
    later = config.model_copy(update={"selection": selection})
    assert begun_at(later, first, tmp_path / "later", warm) == 5, (
        "how often they are made plays no part"
    )
    other = config.model_copy(update={"seed": 1})
    assert begun_at(other, first, tmp_path / "other", warm) is None
    assert "it is of another configuration" in caplog.text
    monkeypatch.setattr(resuming, "code_version", lambda: "next")
    assert begun_at(config, first, tmp_path / "newer", warm) is None
    assert "it is of another version of the code" in caplog.text


# Asked to end


def test_a_trial_that_is_asked_to_end_makes_a_checkpoint_after_its_step(
    make_long: TrialMaker, warm: Warm, tmp_path: Path
) -> None:
    config = make_long({"selection.checkpoint_every": "off", "selection.probe_every": 3})
    attempt(config, tmp_path / "whole", warm=warm)
    is_asked, first = threading.Event(), tmp_path / "first"
    trial = probes(config, folder=first, warm=warm, interruption=Interruption(is_asked=is_asked))
    assert next(trial).step == 3
    is_asked.set()
    with pytest.raises(EndedEarlyError, match="after step 3"):
        next(trial)
    assert found([first]) == [folder_of(first, 3)]
    seen = attempt(config, tmp_path / "second", earlier=[first], warm=warm)
    assert [(p.step, p.resumed_at) for p in seen] == [(3, 3), (6, 3)]
    assert left_by(tmp_path / "second") == left_by(tmp_path / "whole")


# When they are written


def test_auto_writes_none_in_a_short_trial_and_else_at_probes(
    make_long: TrialMaker, warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_long({"selection.checkpoint_every": "auto"})
    attempt(config, tmp_path / "short", warm=warm)
    assert found([tmp_path / "short"]) == []
    monkeypatch.setattr(resuming, "LEAST_S", 0.0)
    monkeypatch.setattr(resuming, "LARGEST_SHARE", 1e9)
    attempt(config, tmp_path / "long", warm=warm)
    assert found([tmp_path / "long"]) == [folder_of(tmp_path / "long", step) for step in (4, 2)]
    assert left_by(tmp_path / "long") == left_by(tmp_path / "short")


def test_a_disk_that_refuses_a_checkpoint_costs_the_checkpoint_alone(
    make_long: TrialMaker,
    warm: Warm,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    config = make_long()
    monkeypatch.setattr(resuming, "save_tensors", full)
    with caplog.at_level(logging.WARNING):
        seen = attempt(config, tmp_path / "full", warm=warm)
    assert [p.step for p in seen] == [2, 4, 6]
    assert "no checkpoint after step 3: [Errno 28]" in caplog.text
    assert list((tmp_path / "full" / "checkpoints").iterdir()) == []


def test_no_step_draws_from_a_generator_that_others_share(
    make_long: TrialMaker, warm: Warm, tmp_path: Path
) -> None:
    trial = probes(make_long(SOME["dropout-and-a-weight-that-adapts"]), folder=tmp_path, warm=warm)
    next(trial)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state())
    for _ in trial:
        pass
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state())
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert str(before[2]) == str(after[2])


# Without a sweep


class KilledError(Exception):
    pass


def test_train_goes_on_in_its_folder_and_says_what_a_finished_trial_found(
    make_long: TrialMaker, tmp_path: Path
) -> None:
    config, whole, out = make_long(), tmp_path / "whole", tmp_path / "out"
    said: list[str] = []

    def die_at_step_4(text: str) -> None:
        said.append(text)
        if text.startswith("step 4/"):
            raise KilledError

    expected = train_trial(config, whole, say=said.append)
    with pytest.raises(KilledError):
        train_trial(config, out, say=die_at_step_4)
    assert finished_before(config, out) is None
    said.clear()
    assert train_trial(config, out, say=said.append) == expected
    assert any("goes on from" in text and "after step 3" in text for text in said)
    assert left_by(out) == left_by(whole)
    assert not (out / "checkpoints").exists()
    assert finished_before(config, out) == expected
    with pytest.raises(UserError, match=r"trial\.yaml is another configuration than the one to"):
        finished_before(config.model_copy(update={"seed": 1}), out)
    with pytest.raises(UserError, match=r"holds no trial\.yaml, so no trial was begun there"):
        finished_before(config, tmp_path)
