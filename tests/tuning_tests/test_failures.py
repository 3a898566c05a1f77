"""Memory that was not enough: how it is recognised, what is done about it, and when a trial is given up."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch

from core.config import TrialConfig
from core.store.durable import commit_json
from tuning.failures import (
    FAILURE_FILE,
    Exhausted,
    Failure,
    Remedy,
    choose_remedy,
    exhausted,
    halved,
    read_failure,
    record_remedy,
    remedies,
)

TrialMaker = Callable[..., TrialConfig]


@pytest.mark.parametrize(
    ("kind", "message", "kernel_killed", "expected"),
    [
        pytest.param(
            "OutOfMemoryError",
            "CUDA out of memory. Tried to allocate 2 GiB.",
            False,
            "gpu",
            id="cuda",
        ),
        pytest.param(
            "RuntimeError",
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried",
            False,
            "machine",
            id="cpu",
        ),
        pytest.param(
            "OutOfMemoryError",
            "Task was killed due to the node running low on memory.",
            False,
            "machine",
            id="monitor-of-ray",
        ),
        pytest.param(
            "ActorDiedError", "The actor died.", True, "machine", id="killed-by-the-kernel"
        ),
        pytest.param("ActorDiedError", "The actor died.", False, None, id="killed-by-somebody"),
        pytest.param("RuntimeError", "sizes do not match", True, None, id="another-error"),
        pytest.param("MemoryError", "", False, "machine", id="python"),
    ],
)
def test_memory_that_was_not_enough_is_told_from_other_errors(
    kind: str, message: str, kernel_killed: bool, expected: Exhausted | None
) -> None:
    assert exhausted(kind, message, kernel_killed=kernel_killed) == expected


def test_torch_says_what_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert exhausted(type(caught.value).__name__, str(caught.value)) == "machine"


def failure(whose: Exhausted | None) -> Failure:
    return Failure(kind="X", reason="x", is_user_error=False, exhausted=whose, remedy=None)


@pytest.mark.parametrize(
    ("whose", "concurrent", "before", "expected"),
    [
        pytest.param("machine", 3, 0, "concurrency", id="fewer-trials-first"),
        pytest.param("machine", 1, 0, "micro_batch", id="alone-on-the-machine"),
        pytest.param("gpu", 3, 0, "micro_batch", id="gpu"),
        pytest.param("gpu", 1, 1, None, id="once-only"),
        pytest.param("machine", 3, 1, None, id="once-only-on-the-machine"),
    ],
)
def test_the_remedy_is_taken_once(
    make_trial: TrialMaker,
    whose: Literal["gpu", "machine"],
    concurrent: int,
    before: int,
    expected: Remedy | None,
) -> None:
    found = choose_remedy(failure(whose), make_trial(), concurrent=concurrent, before=before)
    assert found == expected


def test_half_a_pass_is_the_same_step(make_trial: TrialMaker) -> None:
    trial = make_trial({"batch": {"global_batch_size": 8, "probe_batch_size": 5}})
    smaller = halved(trial)
    assert smaller is not None
    plan, before = smaller.batch_plan(), trial.batch_plan()
    assert plan.global_batch_size == before.global_batch_size == 8
    assert (before.micro_batch_size, before.gradient_accumulation_steps) == (8, 1)
    assert (plan.micro_batch_size, plan.gradient_accumulation_steps) == (4, 2)
    assert smaller.batch.probe_batch_size == 2
    assert smaller.model_copy(update={"batch": trial.batch}) == trial


@pytest.mark.parametrize("rows", [1, 3])
def test_a_pass_of_an_odd_number_of_rows_is_not_halved(make_trial: TrialMaker, rows: int) -> None:
    trial = make_trial({"batch.global_batch_size": rows})
    assert halved(trial) is None
    assert choose_remedy(failure("gpu"), trial, concurrent=1, before=0) is None


def test_an_attempt_without_a_word_died(tmp_path: Path) -> None:
    found = read_failure(tmp_path)
    assert (found.is_user_error, found.exhausted, found.remedy) == (False, None, None)
    assert found.reason.startswith("Died: ")


def test_remedies_outlive_the_driver(tmp_path: Path) -> None:
    broke, whole = tmp_path / "attempt-1", tmp_path / "attempt-2"
    whole.mkdir()
    record = {"kind": "RuntimeError", "message": "x", "is_user_error": False, "exhausted": "gpu"}
    commit_json(broke / FAILURE_FILE, record)
    assert remedies([broke, whole]) == set()
    record_remedy(broke, "micro_batch")
    assert remedies([broke, whole]) == {"micro_batch"}
    assert read_failure(broke).exhausted == "gpu"
