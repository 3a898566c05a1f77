"""A whole trial on a tiny model that has memorised its forget set: what is recorded is what was made."""

import json
import math
import os
import random
import string
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from core.config import EngineConfig, TrialConfig
from core.errors import DataError, NothingToForgetError, UserError
from core.measuring.baselines import baseline_sums
from core.measuring.meter import Meter
from core.measuring.reporting import GuardReporter
from core.measuring.selection import Probe
from core.metrics.intervals import Sums, intervals
from core.metrics.probes import MEASURED, level
from core.model.loading import forward_of, weights_checksum
from core.store.durable import read_lines
from core.training.ranks import join_alone
from core.training.warm import Warm
from core.worker import TrialResult, probes, report_measurement, run_trial, share_work

pytestmark = pytest.mark.integration

TrialMaker = Callable[..., TrialConfig]

KINDS: Mapping[str, Mapping[str, Any]] = {
    "lora": {"method.adapter_init": "lora"},
    "svd": {"method.adapter_init": "svd", "optimizer.learning_rate": 5e-4},
    "fila": {"method.adapter_init": "fila", "optimizer.learning_rate": 5e-4},
    "kl": {"method.retain_loss": "kl"},
    "bf16": {
        "method.adapter_init": "fila",
        "optimizer.learning_rate": 5e-4,
        "engine.dtype": "bf16",
    },
}


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A trial that ran to its end, and how much of it was on disk when each probe was handed out."""

    config: TrialConfig
    folder: Path
    probes: tuple[Probe, ...]
    lines_at_probe: tuple[list[dict[str, Any]], ...]
    adapters_at_probe: tuple[bool, ...]

    @property
    def best(self) -> dict[str, Any]:
        return [line for line in read_lines(self.folder / "history.jsonl") if line.get("is_best")][
            -1
        ]


@pytest.fixture(scope="module")
def warm() -> Warm:
    return Warm()


@pytest.fixture(scope="module", params=KINDS)
def finished(
    request: pytest.FixtureRequest,
    make_trial: TrialMaker,
    warm: Warm,
    tmp_path_factory: pytest.TempPathFactory,
) -> Finished:
    config = make_trial(KINDS[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    seen, lines, adapters = [], [], []
    for probe in probes(config, folder=folder, warm=warm):
        seen.append(probe)
        lines.append(read_lines(folder / "history.jsonl"))
        adapters.append((folder / "adapter" / "adapter_model.safetensors").exists())
    return Finished(
        config=config,
        folder=folder,
        probes=tuple(seen),
        lines_at_probe=tuple(lines),
        adapters_at_probe=tuple(adapters),
    )


def metrics_of(result: TrialResult | tuple[Probe, ...]) -> list[dict[str, float]]:
    series = result.probes if isinstance(result, TrialResult) else result
    return [dict(p.metrics) for p in series]


def assert_same(
    found: list[dict[str, float]], expected: list[dict[str, float]], *, within: float
) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=0, abs=within, nan_ok=True)


def forget_nll(network: Any, tokenizer: Any, texts: list[str], *, max_tokens: int) -> float:
    """Nats per token over all rows, one row at a time, by transformers' own loss."""
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"][:max_tokens]])
        with torch.no_grad():
            loss = network(input_ids=ids, labels=ids).loss
        total += float(loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


# What a trial leaves


def test_a_trial_probes_every_step_and_ends_with_its_budget(finished: Finished) -> None:
    assert [p.step for p in finished.probes] == [1, 2, 3, 4]
    assert [p.stopped_by for p in finished.probes] == [None, None, None, "budget"]
    assert all(math.isfinite(v) for p in finished.probes for v in p.metrics.values())
    seconds = [p.seconds for p in finished.probes]
    assert seconds == sorted(seconds)


def test_a_trial_forgets_at_a_feasible_probe(finished: Finished) -> None:
    assert finished.best["metrics"]["forget_closure"] > 0.05
    assert finished.best["metrics"]["retain_drop"] <= 0.10


def test_a_probe_and_its_adapter_are_on_disk_before_the_probe_is_handed_out(
    finished: Finished,
) -> None:
    had_best = False
    for probe, lines, has_adapter in zip(
        finished.probes, finished.lines_at_probe, finished.adapters_at_probe, strict=True
    ):
        assert [line["step"] for line in lines] == list(range(probe.step + 1))
        assert lines[-1]["metrics"] == probe.metrics
        assert lines[-1]["stopped_by"] == probe.stopped_by
        had_best = had_best or lines[-1]["is_best"]
        assert has_adapter == had_best


def test_the_history_begins_with_the_untouched_model(finished: Finished) -> None:
    first = finished.lines_at_probe[0][0]
    assert first["step"] == 0
    for name in ("forget_closure", "retain_drop", "general_drop", "retain_accuracy_drop"):
        assert first["metrics"][name] == 0.0
    assert first["metrics"]["retain_utility"] == 1.0
    assert first["target_nll"] - first["metrics"]["forget_nll"] > 0.3
    has_b0 = finished.config.method.adapter_init != "lora"
    assert (first["initial_rms"]["b0"] > 0) == has_b0
    assert first["initial_rms"]["a0"] > 0


def test_stock_peft_on_the_original_model_gives_the_recorded_forget_nll(
    finished: Finished, tiny_data: Mapping[str, Path]
) -> None:
    config = finished.config
    is_low = config.engine.dtype == "bf16"
    original = transformers.AutoModelForCausalLM.from_pretrained(
        config.model.source, dtype=torch.bfloat16 if is_low else torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(config.model.source)
    stock = peft.PeftModel.from_pretrained(original, str(finished.folder / "adapter")).eval()
    texts = [
        json.loads(line)["text"]
        for line in tiny_data["forget"].read_text(encoding="utf-8").splitlines()
    ]
    found = forget_nll(stock, tokenizer, texts, max_tokens=config.data.forget.max_tokens)
    assert found == pytest.approx(
        finished.best["metrics"]["forget_nll"], abs=3e-2 if is_low else 1e-3
    )


def test_the_adapter_is_a_plain_float32_lora_of_the_expected_rank(finished: Finished) -> None:
    tensors = load_file(finished.folder / "adapter" / "adapter_model.safetensors")
    rank = finished.config.adapter.rank * (
        1 if finished.config.method.adapter_init == "lora" else 2
    )
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert {t.shape[0] for n, t in tensors.items() if ".lora_A." in n} == {rank}
    assert {t.shape[1] for n, t in tensors.items() if ".lora_B." in n} == {rank}
    settings = json.loads((finished.folder / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert settings["lora_alpha"] / settings["r"] == finished.config.adapter.scaling
    assert settings["base_model_name_or_path"] == finished.config.model.source


def test_a_saved_adapter_is_reported_on_rows_that_no_probe_saw(
    finished: Finished, warm: Warm
) -> None:
    group, _meeting = join_alone(finished.config.engine)
    found = report_measurement(
        finished.config, finished.folder / "adapter", warm=warm, group=group
    ).metrics
    low = finished.config.engine.dtype == "bf16"
    best = finished.best["metrics"]
    assert found["forget_nll"] == pytest.approx(best["forget_nll"], abs=3e-2 if low else 1e-3)
    assert found["retain_nll"] != best["retain_nll"]
    model = warm.model(finished.config)
    warm.verify()
    assert warm.checksum == weights_checksum(dict(model.network.named_parameters()))


def test_the_target_is_the_level_of_the_whole_approximate_set_on_both_splits(
    make_trial: TrialMaker, warm: Warm
) -> None:
    """Not of the half that a split would have: those two levels differ."""
    config, data = make_trial(), warm.data(make_trial())
    group, _meeting = join_alone(config.engine)
    probe, report = (baseline_sums(config, warm, group, part=p) for p in ("probe", "report"))
    assert level(probe["target"]) == level(report["target"])
    halves = [data["approximate_probe"], data["approximate_report"]]
    model = warm.model(config)
    meter = Meter(model, group, batch_size=4)
    sums = [meter.row_sums(forward_of(model.network), rows) for rows in halves]
    assert level(sums[0]).nll != pytest.approx(level(sums[1]).nll, abs=1e-3)
    assert level(np.concatenate(sums)).nll == pytest.approx(level(probe["target"]).nll, abs=1e-4)


def test_the_history_holds_what_its_intervals_follow_from(finished: Finished, warm: Warm) -> None:
    """Row sums of the untouched model and of the best probe, as short JSON; the metrics follow from them."""
    lines = read_lines(finished.folder / "history.jsonl")
    untouched, best = lines[0], finished.best
    tokens = {name: np.array(of["tokens"], float) for name, of in untouched["rows"].items()}

    def sums(line: dict[str, Any], names: Iterable[str]) -> dict[str, Sums]:
        rows = {name: line["rows"][name] for name in names}
        return {
            name: np.stack([of["nll"], of["correct"], tokens[name]], axis=1)
            for name, of in rows.items()
        }

    now, before = sums(best, MEASURED), sums(untouched, (*MEASURED, "target", "unseen"))
    for name in MEASURED:
        assert level(now[name]).nll == pytest.approx(best["metrics"][f"{name}_nll"], abs=1e-4)
        assert level(now[name]).accuracy == best["metrics"][f"{name}_accuracy"]
    assert level(before["target"]).nll == pytest.approx(untouched["target_nll"], abs=1e-4)
    for name, ends in intervals(now, before).items():
        assert best["intervals"][name] == pytest.approx(ends, abs=1e-3), name
    data = warm.data(finished.config)
    halves = [len(data[f"approximate_{part}"]) for part in ("probe", "report")]
    assert len(tokens["target"]) == sum(halves)


# Repetition


@pytest.mark.parametrize("kind", ["lora", "fila"])
def test_the_same_trial_gives_the_same_numbers_on_a_fresh_and_in_a_warm_process(
    make_trial: TrialMaker, kind: str
) -> None:
    config = make_trial(KINDS[kind])
    warm = Warm()
    fresh = metrics_of(tuple(probes(config, warm=warm)))
    other = make_trial({"adapter.rank": 8, "optimizer.learning_rate": 1e-2, "seed": 3})
    assert metrics_of(tuple(probes(other, warm=warm))) != fresh
    again = metrics_of(tuple(probes(config, warm=warm)))
    assert_same(again, fresh, within=1e-6)
    assert_same(metrics_of(tuple(probes(config, warm=Warm()))), fresh, within=1e-6)


def test_a_trial_that_is_closed_early_leaves_the_network_as_it_was(make_trial: TrialMaker) -> None:
    config = make_trial({"method.adapter_init": "svd"})
    expected = metrics_of(tuple(probes(config, warm=Warm())))
    warm = Warm()
    network = warm.model(config).network
    names = [name for name, _ in network.named_modules()]
    checksum = weights_checksum(dict(network.named_parameters()))
    trial = probes(config, warm=warm)
    first = next(iter(trial))
    trial.close()
    assert dict(first.metrics) == pytest.approx(expected[0], abs=1e-6)
    assert warm.model(config).network is network
    assert [name for name, _ in network.named_modules()] == names
    assert weights_checksum(dict(network.named_parameters())) == checksum
    assert not any(p.requires_grad for p in network.parameters())
    assert_same(metrics_of(tuple(probes(config, warm=warm))), expected, within=1e-6)


def test_the_seed_changes_the_trial_and_not_the_splits(make_trial: TrialMaker, warm: Warm) -> None:
    one, other = make_trial({"seed": 1}), make_trial({"seed": 2})
    assert warm.data(one) is warm.data(other)
    found = [metrics_of(tuple(probes(c, warm=warm)))[-1]["forget_nll"] for c in (one, other)]
    assert found[0] != found[1]


def test_probing_less_often_does_not_change_the_steps(make_trial: TrialMaker, warm: Warm) -> None:
    every = tuple(probes(make_trial(), warm=warm))
    seldom = tuple(probes(make_trial({"selection.probe_every": 3}), warm=warm))
    assert [p.step for p in seldom] == [3, 4]
    assert_same(metrics_of(seldom), metrics_of(every)[2:], within=1e-6)


def test_what_is_shared_is_found_again(make_trial: TrialMaker, artifact_cache: Path) -> None:
    config = make_trial({"method.adapter_init": "fila", "fisher.exponent": 1.0})
    group, _meeting = join_alone(config.engine)
    share_work(config, warm=Warm(), group=group)
    before = sorted(artifact_cache.rglob("*"))
    tuple(probes(config, warm=Warm()))
    assert sorted(artifact_cache.rglob("*")) == before


JOINING = """
import os
from pathlib import Path
from core.config import EngineConfig
from core.training.ranks import join_alone
join_alone(EngineConfig(device="cpu"))
maps = Path("/proc/self/maps").read_text(encoding="utf-8")
print(sorted(line.split()[-1] for line in maps.splitlines() if "deepspeed" in line.rpartition("/")[2]))
"""


def test_deepspeed_compiles_nothing_and_takes_no_shared_memory(tmp_path: Path) -> None:
    """Without a compiler, and where a killed process left a lock that a compilation would wait at for ever."""
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir()
    lock.touch()
    launcher = {
        "OMPI_COMM_WORLD_LOCAL_RANK": "3",
        "LOCAL_RANK": "3",
        "RANK": "3",
        "WORLD_SIZE": "8",
    }
    done = subprocess.run(
        [sys.executable, "-c", JOINING],
        env=os.environ | launcher | {"PATH": "/nowhere", "TORCH_EXTENSIONS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deepspeed_shm_comm", "lock"]


def test_an_interface_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,eth77")
    with pytest.raises(UserError, match=r"GLOO_SOCKET_IFNAME: .*, got eth77; unset it"):
        join_alone(EngineConfig(device="cpu"))


# Ends


def ascent(limit: Mapping[str, Any], *, learning_rate: float) -> dict[str, Any]:
    """Gradient ascent alone: nothing holds the retained text."""
    return {
        "method.forget_loss": "ga",
        "method.retain_loss": "none",
        "optimizer.learning_rate": learning_rate,
        "selection.max_steps": 12,
        "selection.past_target": None,
        "selection.retain_guard": limit,
    }


def test_ascent_without_a_retain_loss_is_stopped_within_grace_and_patience(
    make_trial: TrialMaker,
) -> None:
    guard = {"limit": 0.05, "hard_limit": 999.0, "grace_steps": 2, "patience": 2}
    config = make_trial(ascent(guard, learning_rate=3e-2))
    result = run_trial(config, GuardReporter(config.selection))
    assert len(result.probes) == 4
    assert result.decision.verdict is not None
    assert result.decision.verdict.stopped_by == "retain_guard"
    assert result.decision.verdict.limit == 0.05
    last = result.probes[-1].metrics
    assert max(last["retain_drop"], last["general_drop"]) > 0.05


def test_the_hard_limit_stops_at_the_first_probe_above_it(make_trial: TrialMaker) -> None:
    guard = {"limit": 0.05, "hard_limit": 0.5, "grace_steps": 9, "patience": 9}
    config = make_trial(ascent(guard, learning_rate=3e-2))
    result = run_trial(config, GuardReporter(config.selection))
    worst = [max(p.metrics["retain_drop"], p.metrics["general_drop"]) for p in result.probes]
    assert len(result.probes) < 12
    assert worst[-1] > 0.5
    assert all(value <= 0.5 for value in worst[:-1])
    assert result.decision.verdict is not None
    assert result.decision.verdict.limit == 0.5


def test_an_overshooting_trial_ends_past_its_target(make_trial: TrialMaker, warm: Warm) -> None:
    changes = ascent({"limit": 99.0, "hard_limit": 999.0}, learning_rate=3e-2)
    config = make_trial(changes | {"selection.past_target": {"patience": 2}})
    series = tuple(probes(config, warm=warm))
    assert len(series) < 12
    assert [p.stopped_by for p in series[:-1]] == [None] * (len(series) - 1)
    assert series[-1].stopped_by == "past_target"
    closures = [p.metrics["forget_closure"] for p in series]
    assert closures[-1] < closures[-2] < closures[-3]


def test_text_that_the_model_never_saw_is_nothing_to_forget(
    make_trial: TrialMaker, tmp_path: Path
) -> None:
    rng = random.Random(99)
    unseen = ["".join(rng.choices(string.ascii_lowercase + " ", k=30)) for _ in range(8)]
    path = tmp_path / "unseen.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in unseen), encoding="utf-8")
    config = make_trial({"data.forget.source": str(path)})
    with pytest.raises(
        NothingToForgetError,
        match=r"data\.forget: there is nothing to forget: its cross-entropy \d+\.\d+ must lie at least 0\.3",
    ):
        next(iter(probes(config, warm=Warm())))


def test_a_general_set_without_training_rows_is_refused_where_the_retain_loss_reads_it(
    make_trial: TrialMaker, tmp_path: Path, warm: Warm
) -> None:
    path = tmp_path / "general.jsonl"
    rows = [f"an ordinary sentence, number {i}" for i in range(12)]  # 6 to probe, 6 to report
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in rows), encoding="utf-8")
    config = make_trial({"data.general.source": str(path), "method.retain_source": "general"})
    with pytest.raises(
        DataError, match=r"data\.general: no row is left to train on after data\.probe_rows"
    ):
        next(iter(probes(config, warm=warm)))
