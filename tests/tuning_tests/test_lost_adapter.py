"""A trial whose best probe is feasible has its adapter in the run folder, or it is no result."""

from pathlib import Path

import pytest
from analytic_study import spec_of
from driven_sweep import drive

from core.store.durable import read_lines

SPEC = spec_of(budget={"trials": 2, "max_steps": 3})


@pytest.mark.parametrize(("is_shared", "told"), [(True, "TrialEnded"), (False, "TrialBroke")])
def test_a_feasible_trial_is_a_result_only_with_its_adapter(
    tmp_path: Path, is_shared: bool, told: str
) -> None:
    drive(SPEC, tmp_path, is_shared=is_shared)
    events = [line["event"] for line in read_lines(tmp_path / "events.jsonl")]
    assert [e for e in events if e in ("TrialEnded", "TrialBroke")] == [told, told]


def test_a_lost_adapter_is_named_with_what_to_do(tmp_path: Path) -> None:
    drive(SPEC, tmp_path, is_shared=False)
    broken = [x for x in read_lines(tmp_path / "events.jsonl") if x["event"] == "TrialBroke"]
    assert all(line["is_final"] for line in broken)
    assert (
        "trials/0000/attempt-1/adapter holds no adapter: the run folder is not"
        in broken[0]["reason"]
    )
    assert "put it on storage that all nodes share" in broken[0]["reason"]
