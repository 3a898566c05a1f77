"""Every method as a whole trial on a tiny model that has memorised its forget set."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import transformers

from core.config import TrialConfig
from core.config.method import METHODS, ForgetLossId
from core.data.batches import collate
from core.errors import DataError, ModelError
from core.losses import kl_loss, sequence_nll
from core.losses.alignment import counted_logits
from core.measuring.baselines import baseline_levels
from core.measuring.selection import Probe
from core.model.loading import weights_checksum
from core.store.durable import read_lines
from core.training.full_parameters import is_model_folder
from core.training.ranks import Group, join_alone
from core.training.reference import Reference
from core.training.warm import Warm
from core.worker import probes, report_measurement

pytestmark = pytest.mark.integration

TrialMaker = Callable[..., TrialConfig]

RATES: Mapping[str, float] = {"rmu": 1e-2, "residual": 1e-2, "ihl": 1e-2, "satimp": 1e-2}


@pytest.fixture(scope="module")
def warm() -> Warm:
    return Warm()


def run(config: TrialConfig, warm: Warm, folder: Path | None = None) -> tuple[Probe, ...]:
    return tuple(probes(config, warm=warm, folder=folder))


def method_changes(name: str) -> dict[str, Any]:
    changes: dict[str, Any] = {f"method.{k}": v for k, v in METHODS[name].items()}
    changes["optimizer.learning_rate"] = RATES.get(METHODS[name]["forget_loss"], 5e-3)
    if METHODS[name].get("alternatives") == "field":
        changes["data.forget.fields"] = {"text": "text", "alternative": "other"}
    return changes | {"selection.past_target": None, "selection.max_steps": 6}


@pytest.fixture(scope="module")
def forget_with_alternatives(
    tiny_data: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The forget set, each row with an alternative."""
    path = tmp_path_factory.mktemp("alternatives") / "forget.jsonl"
    rows = [json.loads(line) for line in tiny_data["forget"].read_text("utf-8").splitlines()]
    for i, row in enumerate(rows):
        row["other"] = f"a quiet harbour and a yellow lamp {i}"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", METHODS)
def test_a_method_changes_how_the_forget_set_is_predicted(
    name: str, make_trial: TrialMaker, warm: Warm, forget_with_alternatives: Path
) -> None:
    changes = method_changes(name)
    if "data.forget.fields" in changes:
        changes["data.forget.source"] = str(forget_with_alternatives)
    series = run(make_trial(changes), warm)
    assert [p.step for p in series] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(v) for v in series[-1].metrics.values())
    untouched = run(make_trial({"optimizer.learning_rate": 1e-12}), warm)[0].metrics
    assert abs(series[-1].metrics["forget_nll"] - untouched["forget_nll"]) > 0.02


def test_every_forget_loss_has_a_named_method() -> None:
    assert {m["forget_loss"] for m in METHODS.values()} == set(get_args(ForgetLossId))


def test_a_forget_weight_of_zero_leaves_the_retain_loss_alone(
    make_trial: TrialMaker, warm: Warm
) -> None:
    with_zero = run(make_trial({"method.forget_weight": 0.0, "seed": 5}), warm)
    assert with_zero[-1].metrics["forget_closure"] < 0.05
    assert with_zero[-1].metrics["retain_drop"] < 0.02


# The reference model


def test_cached_terms_of_the_reference_model_are_those_of_a_forward_pass(
    make_trial: TrialMaker, warm: Warm
) -> None:
    config = make_trial()
    model, data = warm.model(config), warm.data(config)
    rows = data["forget"][:5]
    reference = Reference(model, data["forget"])
    batch = collate(rows, model.device)
    with torch.no_grad():
        network: Any = model.network
        output = network(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    assert reference.gives_logits
    torch.testing.assert_close(reference.nll(rows), sequence_nll(output.logits, batch.labels))
    distance = kl_loss(
        counted_logits(output.logits, batch.labels)[0], reference.logits(rows), batch.labels
    )
    assert float(distance) == pytest.approx(0.0, abs=1e-6)
    real = batch.mask.bool()
    torch.testing.assert_close(
        reference.hidden(rows, block=0)[real], output.hidden_states[1][real], rtol=1e-4, atol=1e-5
    )
    rivals = reference.adversarial_labels(rows)
    assert not bool((rivals == batch.labels)[batch.labels != -100].any())


def test_reference_terms_are_computed_once_for_all_trials(
    make_trial: TrialMaker, artifact_cache: Path
) -> None:
    changes = {"method.forget_loss": "npo", "method.retain_loss": "kl"}
    run(make_trial(changes), Warm())
    before = sorted((artifact_cache / "reference").rglob("*.safetensors"))
    run(make_trial(changes | {"optimizer.learning_rate": 1e-4}), Warm())
    assert sorted((artifact_cache / "reference").rglob("*.safetensors")) == before
    assert before


def test_npo_starts_from_the_reference_also_under_fila(make_trial: TrialMaker, warm: Warm) -> None:
    """With the difference form the untouched adapter is the reference model whatever its factors."""
    series = {}
    for init in ("lora", "fila", "vila"):
        changes = {
            "method.forget_loss": "npo",
            "method.adapter_init": init,
            "optimizer.learning_rate": 1e-12,
            "selection.max_steps": 1,
        }
        series[init] = run(make_trial(changes), warm)[0].metrics["forget_nll"]
    assert series["fila"] == pytest.approx(series["lora"], abs=1e-5)
    assert series["vila"] == pytest.approx(series["lora"], abs=1e-5)


def test_a_block_that_is_none_before_the_last_is_refused(
    make_trial: TrialMaker, warm: Warm
) -> None:
    config = make_trial({"method.forget_loss": "rmu", "method.rmu.layer": 1})
    with pytest.raises(ModelError, match=r"method\.rmu\.layer: must lie in \[0, 0\].*got 1"):
        run(config, warm)


def test_the_dual_variable_rises_while_the_retain_loss_is_above_its_limit(
    make_trial: TrialMaker, warm: Warm
) -> None:
    seen = {}
    for limit in (0.0, 100.0):
        changes = {
            "method.forget_loss": "pdu",
            "method.pdu.retain_limit": limit,
            "method.pdu.warmup_steps": 1,
        }
        seen[limit] = [p.metrics["dual_variable"] for p in run(make_trial(changes), warm)]
    assert seen[0.0][0] == 1.0  # warm-up
    assert seen[0.0][1:] == sorted(seen[0.0][1:])
    assert seen[0.0][-1] > 1.0
    assert seen[100.0][-1] == 0.0


# Full-parameter unlearning


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_full_parameter_unlearning_trains_a_copy_and_saves_a_whole_model(
    make_trial: TrialMaker, warm: Warm, tmp_path: Path, stage: int
) -> None:
    changes = {
        "adapter.kind": "full",
        "engine.zero_stage": stage,
        "method.forget_loss": "ga",
        "optimizer.learning_rate": 3e-4,
    }
    config = make_trial(changes)
    checksum = weights_checksum(dict(warm.model(config).network.named_parameters()))
    series = run(config, warm, tmp_path)
    assert series[-1].metrics["forget_closure"] > 0.02
    assert weights_checksum(dict(warm.model(config).network.named_parameters())) == checksum
    folder = tmp_path / "adapter"
    assert is_model_folder(folder)
    best = next(
        line for line in reversed(read_lines(tmp_path / "history.jsonl")) if line.get("is_best")
    )
    group, _meeting = join_alone(config.engine)
    found = report_measurement(config, folder, warm=warm, group=group).metrics
    assert found["forget_nll"] == pytest.approx(best["metrics"]["forget_nll"], abs=1e-3)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.num_parameters() == warm.model(config).network.num_parameters()  # type: ignore[operator]


def test_full_parameter_stages_make_the_same_steps(make_trial: TrialMaker, warm: Warm) -> None:
    found = []
    for stage in (0, 2):
        changes = {"adapter.kind": "full", "engine.zero_stage": stage, "method.forget_loss": "npo"}
        config = make_trial(changes | {"optimizer.learning_rate": 1e-4})
        found.append([dict(p.metrics) for p in run(config, warm)])
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


# The whole forget set, and rules that stop


def test_the_whole_forget_set_is_one_batch(make_trial: TrialMaker, warm: Warm) -> None:
    batch = {"whole_forget_set": True, "micro_batch_size": 4}
    whole = run(make_trial({"batch": batch}), warm)
    eight = run(make_trial({"batch": {"global_batch_size": 8}}), warm)
    assert [dict(p.metrics) for p in whole] == [
        pytest.approx(dict(p.metrics), abs=1e-4) for p in eight
    ]


def test_a_forget_set_that_micro_batches_do_not_divide_is_refused(
    make_trial: TrialMaker, warm: Warm
) -> None:
    config = make_trial({"batch": {"whole_forget_set": True, "micro_batch_size": 3}})
    with pytest.raises(DataError, match=r"batch\.whole_forget_set: the 8 forget rows must be"):
        run(config, warm)


def test_a_trial_stops_when_all_named_forget_metrics_are_low_enough(
    make_trial: TrialMaker, warm: Warm
) -> None:
    changes = {
        "method.forget_loss": "ga",
        "optimizer.learning_rate": 2e-2,
        "selection.max_steps": 12,
        "selection.past_target": None,
        "selection.stop_when": [
            {"metric": "el_3", "at_most": 0.2},
            {"metric": "memorization_accuracy", "at_most": 0.3},
        ],
    }
    series = run(make_trial(changes), warm)
    assert series[-1].stopped_by == "stop_when"
    last, before = series[-1].metrics, series[0].metrics
    assert last["el_3"] <= 0.2
    assert last["memorization_accuracy"] <= 0.3
    assert all(
        p.metrics["el_3"] > 0.2 or p.metrics["memorization_accuracy"] > 0.3 for p in series[:-1]
    )
    assert before["memorization_accuracy"] > 0.3


def test_el_of_more_tokens_than_the_rows_have_is_refused(
    make_trial: TrialMaker, warm: Warm
) -> None:
    with pytest.raises(ModelError, match=r"el_500 needs forget rows of more than 500 tokens"):
        run(make_trial({"selection.stop_when": [{"metric": "el_500", "at_most": 0.1}]}), warm)


# Equal utility, and a retain-only model


@pytest.mark.parametrize("utility", ["retain_utility", "retain_extraction_strength"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_calibration_scales_the_difference_back_until_utility_is_kept(
    make_trial: TrialMaker, warm: Warm, tmp_path: Path, utility: str, kind: str
) -> None:
    changes = {
        "adapter.kind": kind,
        "method.forget_loss": "ga",
        "method.retain_loss": "none",
        "optimizer.learning_rate": 2e-2 if kind == "lora" else 1e-3,
        "selection.metric": "forget_closure_at_utility",
        "selection.utility": utility,
        "selection.tau": 0.95,
        "selection.constraints": [],
        "selection.past_target": None,
        "selection.retain_guard": None,
    }
    config = make_trial(changes)
    series = run(config, warm, tmp_path)
    last = series[-1].metrics
    assert 0.0 < last["calibration_factor"] < 1.0
    assert last["forget_closure_at_utility"] == last["forget_closure"]
    assert last["unscaled_forget_closure"] != last["forget_closure"]
    assert last["unscaled_retain_drop"] > last["retain_drop"]
    if utility == "retain_utility":
        assert last["retain_utility"] >= 0.95
    # What is saved is the calibrated model.
    best = next(
        line for line in reversed(read_lines(tmp_path / "history.jsonl")) if line.get("is_best")
    )
    group, _meeting = join_alone(config.engine)
    found = report_measurement(config, tmp_path / "adapter", warm=warm, group=group).metrics
    assert found["forget_nll"] == pytest.approx(best["metrics"]["forget_nll"], abs=1e-3)
    assert found["forget_closure_at_utility"] == found["forget_closure"]


def test_a_trial_that_overshot_is_judged_where_it_lies_on_target(
    make_trial: TrialMaker, warm: Warm, tmp_path: Path
) -> None:
    """Nearly no utility is asked for, so that the largest factor is 1, which lies far past the target."""
    changes = {
        "method.forget_loss": "ga",
        "method.retain_loss": "none",
        "optimizer.learning_rate": 2e-2,
        "selection.metric": "forget_closure_at_utility",
        "selection.tau": 0.01,
        "selection.constraints": [],
        "selection.past_target": None,
        "selection.retain_guard": None,
    }
    config = make_trial(changes)
    last = run(config, warm, tmp_path)[-1]
    metrics, target = last.metrics, read_lines(tmp_path / "history.jsonl")[0]["target_nll"]
    assert metrics["unscaled_forget_closure"] < 0.8
    assert 0.0 < metrics["calibration_factor"] < 1.0
    assert metrics["forget_closure_at_utility"] == metrics["forget_closure"] > 0.97
    assert metrics["forget_nll"] == pytest.approx(target, abs=0.1)
    low, high = last.intervals["forget_closure_at_utility"]
    assert low < metrics["forget_closure"] <= high
    assert last.intervals["unscaled_forget_closure"][1] < low


@pytest.mark.parametrize("has_approximate", [True, False], ids=["approximate", "none"])
def test_a_retain_only_model_is_the_target(
    make_trial: TrialMaker, tiny_model: Path, tmp_path: Path, has_approximate: bool
) -> None:
    torch.manual_seed(1)
    settings = transformers.AutoConfig.from_pretrained(tiny_model)
    other = transformers.AutoModelForCausalLM.from_config(settings)
    other.save_pretrained(tmp_path / "never-saw-it")
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(
        tmp_path / "never-saw-it"
    )
    folder = tmp_path / "run"
    changes = {} if has_approximate else {"data.approximate": None}
    config = make_trial({"model.retain_only": str(tmp_path / "never-saw-it")} | changes)
    warm = Warm()
    last = run(config, warm, folder)[-1]
    first = read_lines(folder / "history.jsonl")[0]
    assert first["target_nll"] == pytest.approx(math.log(settings.vocab_size), rel=0.1)
    levels = baseline_levels(config, warm, Group(rank=0, size=1), part="probe")
    assert (levels["unseen"] == levels["target"]) is not has_approximate
    assert set(last.intervals) >= {"forget_closure", "retain_drop", "retain_forgetting"}


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_bf16_steps_are_the_same_under_zero_0_and_1(
    make_trial: TrialMaker, warm: Warm, kind: str
) -> None:
    """DeepSpeed's wrapper of stage 0 makes a step while it is built; it must not count as the first."""
    found = []
    for stage in (0, 1):
        changes = {
            "adapter.kind": kind,
            "engine.zero_stage": stage,
            "engine.dtype": "bf16",
            "method.forget_loss": "ga",
            "optimizer.learning_rate": 3e-4 if kind == "full" else 3e-3,
            "optimizer.weight_decay": 0.1,
        }
        found.append([p.metrics["forget_nll"] for p in run(make_trial(changes), warm)])
    assert found[0] == pytest.approx(found[1], abs=2e-3)


def test_under_zero_3_the_reference_is_asked_and_says_what_the_cache_says(
    make_trial: TrialMaker,
) -> None:
    """There the output layer is partitioned, so logits come from a pass with the adapter off."""
    found = []
    for stage in (1, 3):
        changes = {
            "engine.zero_stage": stage,
            "method.forget_loss": "undial",
            "method.retain_loss": "kl",
        }
        found.append([dict(p.metrics) for p in run(make_trial(changes), Warm())])
    for cached, asked in zip(*found, strict=True):
        assert asked == pytest.approx(cached, abs=1e-4)
