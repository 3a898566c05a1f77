"""Whatever keeps Ray from starting is one error, and leaves no run."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from command_line import Command, is_refused, left_in_runs, write

from core.errors import ModelError, UserError
from tuning.apart import their_own_errors
from tuning.plan import not_started


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
