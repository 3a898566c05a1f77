"""A sweep file that names a retain-only model: it must be there, and hold a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Command, WriteSpec, ends_refused
from small_sweep import ABSENT, fixed_rate_values, problems, spec_of

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("verb", ["validate", "sweep"])
def test_a_retain_only_model_that_is_not_there_is_refused_with_advice(
    tune: Command, write_spec: WriteSpec, verb: str
) -> None:
    file = write_spec(fixed_rate_values({"model.retain_only": "./prepared/retain_only"}))
    ends_refused(
        tune(verb, file),
        "file.yaml: 1 problem",
        "model.retain_only: './prepared/retain_only' is no folder",
        "; `unlearn-tune prepare` makes one",
    )
    assert not Path("runs").exists()


def test_a_retain_only_folder_that_holds_no_model_is_refused(
    tune: Command, write_spec: WriteSpec, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    file = write_spec(fixed_rate_values({"model.retain_only": str(tmp_path / "empty")}))
    ends_refused(tune("validate", file), "model.retain_only: folder", "holds no config.json")


def test_with_a_retain_only_model_no_approximate_set_is_needed(
    tune: Command, write_spec: WriteSpec, tiny_model: Path
) -> None:
    changes = {"data.approximate": ABSENT, "model.retain_only": str(tiny_model)}
    assert list(spec_of(changes).trial_data().sources) == ["forget", "retain", "general"]
    assert tune("validate", write_spec(fixed_rate_values(changes))).status == 0


def test_without_either_the_sweep_is_refused_beside_all_other_problems() -> None:
    found = problems({"data.approximate": ABSENT, "data.genera": {}, "method.forget_loss": "ihll"})
    assert [p.partition(": ")[0] for p in found] == [
        "data.genera",
        "method.forget_loss",
        "data.approximate",
    ]
    assert "name a model that never saw the forget set as model.retain_only" in found[-1]
