"""On a model that has its retain set by heart: what a guard in nats stops, and what the share lets go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from core.config import TrialConfig
from core.errors import NothingToForgetError
from core.measuring.baselines import baseline_levels
from core.measuring.reporting import GuardReporter
from core.measuring.scale import RetainScale, limit_warnings
from core.metrics.probes import Levels
from core.training.ranks import Group
from core.training.warm import Warm
from core.worker import TrialResult, probes, run_trial, share_work
from tuning.objective import Outcome, conclude

pytestmark = pytest.mark.integration

TrialMaker = Callable[..., TrialConfig]
ALONE = Group(rank=0, size=1)

FORGETTING: Mapping[str, Mapping[str, Any]] = {
    "ga": {"method.forget_loss": "ga", "method.retain_weight": 4.0},
    "npo": {"method.forget_loss": "npo", "method.retain_weight": 4.0},
    "ihl": {"method.forget_loss": "ihl", "method.retain_weight": 1.0},
}
"""Trials that all forget; their retained text dips, and the retain loss holds it."""


@pytest.fixture(scope="module")
def warm() -> Warm:
    return Warm()


def plain(levels: Levels) -> dict[str, float]:
    return {f"{name}_nll": at.nll for name, at in levels.items()} | {
        f"{name}_accuracy": at.accuracy for name, at in levels.items()
    }


def limits(metric: str) -> dict[str, Any]:
    return {
        "selection.constraints": [{"metric": metric, "at_most": 0.10}],
        "selection.retain_guard": {"metrics": [metric], "limit": 0.10, "hard_limit": 0.50},
        "selection.past_target": None,
        "selection.max_steps": 12,
        "optimizer.learning_rate": 1e-2,
    }


def outcome(config: TrialConfig, warm: Warm) -> Outcome:
    result: TrialResult = run_trial(config, GuardReporter(config.selection), warm=warm)
    return conclude(result.probes, config.selection, result.decision.verdict)


def test_nats_stop_every_trial_that_forgets_and_the_share_lets_them_finish(
    make_trial: TrialMaker, warm: Warm
) -> None:
    found: dict[str, list[Outcome]] = {}
    scale = RetainScale.of(
        *(plain(baseline_levels(make_trial(), warm, ALONE, part=p)) for p in ("probe", "report"))
    )
    assert scale.metric == "retain_forgetting", scale.why
    for metric in ("retain_drop", scale.metric):
        found[metric] = [
            outcome(make_trial(dict(method) | limits(metric)), warm)
            for method in FORGETTING.values()
        ]
    nats, share = found["retain_drop"], found["retain_forgetting"]
    assert {o.stopped_by for o in nats} == {"retain_guard"}
    assert max(o.value for o in nats) < 0.35
    assert {o.stopped_by for o in share} == {"budget"}
    assert all(o.feasible for o in share)
    assert max(o.value for o in share) > 0.9
    for best in share:  # what was kept, in words that do not depend on the scale
        assert best.metrics["retain_accuracy_drop"] < 0.2
        assert best.metrics["retain_forgetting"] == pytest.approx(
            best.metrics["retain_drop"] / scale_on_probes(make_trial, warm).advantage
        )


def scale_on_probes(make_trial: TrialMaker, warm: Warm) -> RetainScale:
    return RetainScale.of(plain(baseline_levels(make_trial(), warm, ALONE, part="probe")))


def test_a_tenth_of_a_nat_is_warned_of_on_this_model(make_trial: TrialMaker, warm: Warm) -> None:
    baseline = plain(baseline_levels(make_trial(), warm, ALONE, part="probe"))
    nats = make_trial(limits("retain_drop")).selection
    (warning,) = limit_warnings(nats, baseline)
    assert "the limit of retain_drop, 0.1 from the untouched model, lies far below" in warning
    assert limit_warnings(make_trial(limits("retain_forgetting")).selection, baseline) == []


# What is not defined is refused before the first trial


def ordinary(folder: Path, tiny_data: Mapping[str, Path]) -> dict[str, Any]:
    """A retain set that the model predicts no better than unseen text: gibberish of the same kind."""
    rows = [json.loads(line) for line in tiny_data["approximate"].read_text("utf-8").splitlines()]
    path = folder / "unknown.jsonl"
    texts = ["".join(reversed(row["text"])) for row in rows] + [
        row["text"].replace("a", "q") + " x" for row in rows
    ]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return {"data.retain.source": str(path)}


def test_a_share_of_no_advantage_is_refused_with_both_numbers(
    make_trial: TrialMaker, tiny_data: Mapping[str, Path], tmp_path: Path
) -> None:
    changes = ordinary(tmp_path, tiny_data)
    rule = (
        r"constraints: retain_forgetting is not defined on the probe split: unseen text's cross-entropy "
        r"\d+\.\d{3} must lie at least 0\.3 nats above the retain set's \d+\.\d{3}; limit retain_drop instead"
    )
    config = make_trial(changes | limits("retain_forgetting"))
    with pytest.raises(NothingToForgetError, match=rule):
        next(iter(probes(config, warm=Warm())))
    levels = share_work(make_trial(changes | limits("retain_drop")), warm=Warm(), group=ALONE)
    assert RetainScale.of(plain(levels)).metric == "retain_drop"


@pytest.mark.parametrize("part", ["probe", "report"])
def test_an_accuracy_closure_with_nothing_to_close_is_refused_on_both_splits(
    make_trial: TrialMaker, warm: Warm, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    config = make_trial({"selection.metric": "accuracy_closure"})
    levels = baseline_levels(config, warm, ALONE, part=part)
    gap = levels["forget"].accuracy - levels["target"].accuracy
    assert gap > 0.05
    monkeypatch.setattr("core.measuring.baselines.MIN_GAP_ACCURACY", gap + 1e-6)
    rule = r"objective\.metric: accuracy_closure has nothing to close: the forget set's accuracy \d\.\d{3} must lie"
    with pytest.raises(NothingToForgetError, match=rule):
        baseline_levels(config, warm, ALONE, part=part)
    nll = make_trial()
    assert baseline_levels(nll, warm, ALONE, part=part) == levels, "only where it is the objective"


# A retain-only model


def test_unseen_text_is_measured_under_the_retain_only_model(
    make_trial: TrialMaker, warm: Warm, tiny_model: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    settings = transformers.AutoConfig.from_pretrained(tiny_model)
    folder = tmp_path / "never-saw-it"
    transformers.AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    alone = make_trial({"model.source": str(folder)})
    untrained = Warm()
    measured = untrained_level(alone, untrained)
    levels = baseline_levels(
        make_trial({"model.retain_only": str(folder)}), Warm(), ALONE, part="probe"
    )
    assert levels["unseen"].nll == pytest.approx(measured, abs=1e-6)
    assert levels["approximate"].nll != pytest.approx(measured, abs=1e-2)
    plain_levels = baseline_levels(make_trial(), warm, ALONE, part="probe")
    assert plain_levels["unseen"] == plain_levels["approximate"]


def untrained_level(config: TrialConfig, warm: Warm) -> float:
    """Cross-entropy of all approximate rows under the model of ``config``, row by row."""
    model, data = warm.model(config), warm.data(config)
    total, count = 0.0, 0
    for row in (*data["approximate_probe"], *data["approximate_report"]):
        ids = torch.tensor([row.ids])
        logits = model.network(input_ids=ids).logits[0, :-1].float()
        targets = ids[0, 1:]
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        count += len(targets)
    return total / count
