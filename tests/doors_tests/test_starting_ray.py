"""Whatever keeps Ray from starting is one error, and leaves no run."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from command_line import Command, is_refused, left_in_runs, write

from core.errors import ModelError, UserError
from tuning.apart import a_rank, their_own_errors
from tuning.files import load_sweep
from tuning.plan import Launch, not_started, ray_for


def test_a_ray_that_cannot_start_is_told_with_what_looks_at_the_machine() -> None:
    said = str(not_started(RuntimeError("The current node timed out during startup.")))
    assert said.startswith("Ray does not start on this machine: The current node timed out")
    assert "`unlearn-tune doctor` looks at what it needs" in said


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no such host:6379", "nothing://x"]
)
@pytest.mark.integration
def test_a_cluster_that_does_not_answer_is_refused(
    tune: Command, tiny_sweep: Any, address: str
) -> None:
    done = tune("sweep", write(tiny_sweep), "--address", address)
    is_refused(
        done,
        f"--address {address}: the cluster does not answer: ",
        "; check the address",
        after_it_began=True,
    )
    assert left_in_runs() == []


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_the_rank_that_was_asked_for_memory_prepares_with_as_many_threads_as_trials_take(
    tune: Command, tiny_sweep: Any
) -> None:
    def itself(warm: Any, group: Any, argument: None) -> tuple[int, int, bool]:
        import os

        import torch

        return os.getpid(), torch.get_num_threads(), group is not None

    spec = load_sweep(write(tiny_sweep))
    with ray_for(spec, Launch()) as plan:
        assert plan.needs is not None
        if plan.cluster.gpus:
            pytest.skip("here a process that ends looks at the GPU, too")
        assert plan.early is not None
        process, _, has_group = ray.get(plan.early.call.remote(itself, None))
        assert not has_group
        with a_rank(plan.spec, threads=1, early=plan.early) as call:
            assert call(itself, None) == (process, 1, True)
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(plan.early.call.remote(itself, None))  # it makes room for trials
    fixed = load_sweep(write(tiny_sweep | {"resources": {"max_concurrent": 1, "gpus_per_rank": 0}}))
    with ray_for(fixed, Launch()) as plan:
        assert plan.early is None


@pytest.mark.parametrize(
    ("err", "kind", "said"),
    [
        pytest.param(
            ray.exceptions.RayTaskError("f", "traceback", ModelError("model.source: gone")),
            ModelError, "model.source: gone", id="a-user's",
        ),
        pytest.param(
            ray.exceptions.RayTaskError("f", "traceback", PermissionError(13, "denied", "/cache")),
            PermissionError, "/cache", id="the-system's",
        ),
        pytest.param(
            ray.exceptions.RayTaskError("f", "traceback", KeyError("a bug")),
            ray.exceptions.RayTaskError, "traceback", id="a-bug",
        ),
        pytest.param(
            ray.exceptions.WorkerCrashedError(), UserError, "ended without a word: WorkerCrashedError", id="crash"
        ),
        pytest.param(
            ray.exceptions.OutOfMemoryError("killed"), UserError, "the machine's memory was not enough", id="memory"
        ),
    ],
)  # fmt: skip
def test_an_error_of_another_process_is_raised_as_itself(
    err: Exception, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said), their_own_errors():
        raise err
