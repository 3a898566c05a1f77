"""Ranks, micro-batches and ZeRO stages change how a trial is computed, and not what it computes."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor
from two_ranks import spawned

from core.config import TrialConfig
from core.data.batches import collate, reading_order
from core.data.tokens import TokenRow, TokenSplits
from core.model.layers import dense_weight
from core.model.loading import load_model
from core.training.adapter import InitialFactors
from core.training.initialisation import initial_factors
from core.training.ranks import join
from core.training.warm import Warm
from core.worker import probes

pytestmark = pytest.mark.integration

N_STEPS = 10
COMPARED = ("forget_nll", "retain_nll", "general_nll")
WITHIN = 1e-5

TrialMaker = Callable[..., TrialConfig]
Series = list[dict[str, float]]


def cut_to_lengths(path: Path, source: Path, lengths: Sequence[int]) -> Path:
    """The texts of ``source`` cut to the given numbers of bytes, in turn; short and long ones mixed."""
    texts = [json.loads(line)["text"] for line in source.read_text(encoding="utf-8").splitlines()]
    rows = [text[: lengths[i % len(lengths)]] for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def make_uneven(
    make_trial: TrialMaker, tiny_data: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> TrialMaker:
    """Ten steps over rows of 5 to 64 tokens, so unevenly spread that a mean of means would differ."""
    folder = tmp_path_factory.mktemp("uneven")
    retain = cut_to_lengths(folder / "retain.jsonl", tiny_data["retain"], [64, 7, 64, 12, 33])
    forget = cut_to_lengths(
        folder / "forget.jsonl", tiny_data["forget"], [64, 5, 64, 64, 6, 64, 11, 64]
    )

    def make(changes: Mapping[str, Any] | None = None) -> TrialConfig:
        values: dict[str, Any] = {
            "data.forget.source": str(forget),
            "data.retain.source": str(retain),
            "method.adapter_init": "svd",
            "optimizer.learning_rate": 1e-3,
            "optimizer.gradient_clipping": 0.5,
            "batch.global_batch_size": 8,
            "selection.max_steps": N_STEPS,
            "selection.past_target": None,
            "selection.constraints": [],
        }
        return make_trial(values | dict(changes or {}))

    return make


def series_of(config: TrialConfig) -> Series:
    return [{name: p.metrics[name] for name in COMPARED} for p in probes(config, warm=Warm())]


def assert_agree(found: Series, expected: Series, *, within: float = WITHIN) -> None:
    assert len(found) == len(expected) == N_STEPS
    for step, (one, other) in enumerate(zip(found, expected, strict=True), start=1):
        assert one == pytest.approx(other, rel=0, abs=within), f"step {step}"


@pytest.fixture(scope="module")
def one_rank(make_uneven: TrialMaker) -> Series:
    """The trial that everything is compared with: one rank, one micro-batch, ZeRO 0."""
    return series_of(make_uneven({"engine.zero_stage": 0}))


def test_the_rows_are_uneven_and_the_trial_moves(make_uneven: TrialMaker, one_rank: Series) -> None:
    warm = Warm()
    data = warm.data(make_uneven())
    lengths = [len(row.ids) for part in ("forget", "retain_train") for row in data[part]]
    assert min(lengths) == 5
    assert max(lengths) == 64
    assert abs(one_rank[-1]["forget_nll"] - one_rank[0]["forget_nll"]) > 0.1


# Against a loop that knows nothing of DeepSpeed or of adapters in difference form


def plain_model(config: TrialConfig, factors: Mapping[str, InitialFactors]) -> Any:
    """Stock LoRA that starts at the same factors, on base weights without their product."""
    model = load_model(config.model, config.engine).network
    scaling = config.adapter.scaling
    for name, factor in factors.items():
        if factor.b is not None:
            dense_weight(model.get_submodule(name)).sub_(scaling * factor.b @ factor.a)
    adapted = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=config.adapter.rank,
            lora_alpha=int(scaling * config.adapter.rank),
            target_modules=list(factors),
            task_type="CAUSAL_LM",
        ),
    )
    with torch.no_grad():
        for name, factor in factors.items():
            layer: Any = adapted.get_submodule(f"base_model.model.{name}")
            layer.lora_A["default"].weight.copy_(factor.a)
            if factor.b is not None:
                layer.lora_B["default"].weight.copy_(factor.b)
    return adapted.eval()


def logits_and_targets(model: Any, rows: Sequence[TokenRow]) -> tuple[Tensor, Tensor]:
    """Of every counted token of the rows, one row at a time: no padding anywhere."""
    logits, targets = [], []
    for row in rows:
        ids = torch.tensor([row.ids])
        first = max(1, row.n_context)
        logits.append(model(input_ids=ids, use_cache=False).logits[0, first - 1 : -1])
        targets.append(ids[0, first:])
    return torch.cat(logits), torch.cat(targets)


def hinge(logits: Tensor, targets: Tensor) -> Tensor:
    probs = logits.softmax(dim=-1)
    is_answer = torch.nn.functional.one_hot(targets, logits.shape[-1]).bool()
    return (1 + probs[is_answer] - probs.masked_fill(is_answer, 0.0).max(dim=-1).values).mean()


def plain_loop(
    config: TrialConfig, data: TokenSplits, factors: Mapping[str, InitialFactors]
) -> Series:
    model = plain_model(config, factors)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.optimizer.learning_rate, weight_decay=0.0)
    forget = reading_order(data["forget"], seed=config.seed, purpose="forget")
    retain = reading_order(data["retain_train"], seed=config.seed, purpose="retain")
    parts = {"forget_nll": "forget", "retain_nll": "retain_probe", "general_nll": "general_probe"}
    found: Series = []
    for _ in range(N_STEPS):
        loss = hinge(*logits_and_targets(model, list(islice(forget, 8))))
        loss = loss + torch.nn.functional.cross_entropy(
            *logits_and_targets(model, list(islice(retain, 8)))
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.optimizer.gradient_clipping)
        optimizer.step()
        with torch.no_grad():
            found.append(
                {
                    name: float(
                        torch.nn.functional.cross_entropy(*logits_and_targets(model, data[part]))
                    )
                    for name, part in parts.items()
                }
            )
    return found


@pytest.mark.parametrize("init", ["lora", "svd", "fila"])
def test_one_rank_equals_a_plain_pytorch_loop_with_stock_lora(
    make_uneven: TrialMaker, init: str
) -> None:
    config = make_uneven({"method.adapter_init": init, "engine.zero_stage": 1})
    warm = Warm()
    data = warm.data(config)
    factors = initial_factors(config, warm.model(config), data)
    assert_agree(series_of(config), plain_loop(config, data, factors))


# Layouts


@pytest.mark.parametrize("loss", ["nll", "kl"])
def test_one_times_eight_equals_eight_times_one_micro_batches(
    make_uneven: TrialMaker, loss: str
) -> None:
    method = {"method.retain_loss": loss}
    whole = series_of(make_uneven(method | {"batch.micro_batch_size": 8}))
    for micro in (1, 2):
        assert_agree(series_of(make_uneven(method | {"batch.micro_batch_size": micro})), whole)


def test_the_probe_batch_size_changes_nothing(make_uneven: TrialMaker, one_rank: Series) -> None:
    assert_agree(series_of(make_uneven({"batch.probe_batch_size": 1})), one_rank)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stages_agree(make_uneven: TrialMaker, one_rank: Series, stage: int) -> None:
    assert_agree(series_of(make_uneven({"engine.zero_stage": stage})), one_rank)


# Clipping: by DeepSpeed at stage 0, inside the optimiser at stages 1 and 2 in bf16


CLIPPED: Mapping[str, Any] = {
    "engine.dtype": "bf16",
    "optimizer.gradient_clipping": 0.02,
    "optimizer.epsilon": 1e-3,  # a small one would divide the length of a gradient out
    "optimizer.learning_rate": 1e-2,
}
WITHIN_BF16 = 0.02


@pytest.fixture(scope="module")
def clipped(make_uneven: TrialMaker) -> Series:
    """One rank in bf16, clipped by DeepSpeed."""
    return series_of(make_uneven({**CLIPPED, "engine.zero_stage": 0}))


def test_so_low_a_limit_is_felt(make_uneven: TrialMaker, clipped: Series) -> None:
    free = series_of(
        make_uneven({**CLIPPED, "engine.zero_stage": 0, "optimizer.gradient_clipping": 0.0})
    )
    assert abs(free[-1]["forget_nll"] - clipped[-1]["forget_nll"]) > 3 * WITHIN_BF16


@pytest.mark.parametrize("stage", [1, 2])
def test_the_optimiser_clips_as_deepspeed_does(
    make_uneven: TrialMaker, clipped: Series, stage: int
) -> None:
    found = series_of(make_uneven({**CLIPPED, "engine.zero_stage": stage}))
    assert_agree(found, clipped, within=WITHIN_BF16)


# Ranks


def run_rank(rank: int, host: str, port: int, trials: Sequence[str], folder: str) -> None:
    """One of two ranks: the trials one after the other in one group."""
    configs = [TrialConfig.model_validate_json(text) for text in trials]
    group = join(rank, 2, host, port, configs[0].engine)
    for i, config in enumerate(configs):
        warm = Warm()
        place = Path(folder, f"trial-{i}")
        found = [
            {name: p.metrics[name] for name in COMPARED}
            for p in probes(config, folder=place, warm=warm, group=group)
        ]
        Path(folder, f"{i}-{rank}.json").write_text(json.dumps(found), encoding="utf-8")


TWO_RANKS: Mapping[str, Mapping[str, Any]] = {
    "zero-0": {"engine.zero_stage": 0},
    "zero-1-micro-2": {"engine.zero_stage": 1, "batch.micro_batch_size": 2},
    "zero-2": {"engine.zero_stage": 2},
    "zero-3": {"engine.zero_stage": 3},
}
CLIPPED_ON_TWO = (1, 2)
"""Stages at which a trial in bf16 is clipped on two ranks, after the others."""


@pytest.fixture(scope="module")
def two_ranks(
    make_uneven: TrialMaker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, list[TrialConfig]]]:
    """The folder in which two processes have written what each of them saw of each trial."""
    folder = tmp_path_factory.mktemp("ranks")
    clipped = [{**CLIPPED, "engine.zero_stage": stage} for stage in CLIPPED_ON_TWO]
    configs = [
        make_uneven({**changes, "engine.ranks": 2}) for changes in [*TWO_RANKS.values(), *clipped]
    ]
    spawned(run_rank, [c.model_dump_json() for c in configs], str(folder))
    yield folder, configs


@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks_equal_one(two_ranks: Any, one_rank: Series, name: str) -> None:
    folder, _ = two_ranks
    i = list(TWO_RANKS).index(name)
    seen = [json.loads((folder / f"{i}-{rank}.json").read_text("utf-8")) for rank in (0, 1)]
    assert seen[0] == seen[1], "every rank sees the same probes"
    assert_agree(seen[0], one_rank)


@pytest.mark.parametrize("stage", CLIPPED_ON_TWO)
def test_two_ranks_clip_by_the_norm_of_both(two_ranks: Any, clipped: Series, stage: int) -> None:
    folder, _ = two_ranks
    i = len(TWO_RANKS) + CLIPPED_ON_TWO.index(stage)
    seen = [json.loads((folder / f"{i}-{rank}.json").read_text("utf-8")) for rank in (0, 1)]
    assert seen[0] == seen[1]
    # each rank rounds its own gradient to bf16, and the two go apart slowly
    for found, expected in zip(seen[0][:3], clipped[:3], strict=True):
        assert found == pytest.approx(expected, rel=0, abs=2 * WITHIN_BF16)


@pytest.mark.parametrize("name", TWO_RANKS)
def test_the_rows_of_both_ranks_are_committed_in_the_order_of_the_set(
    two_ranks: Any, make_uneven: TrialMaker, name: str
) -> None:
    folder, _ = two_ranks
    place = folder / f"trial-{list(TWO_RANKS).index(name)}"
    untouched, *lines = map(json.loads, (place / "history.jsonl").read_text("utf-8").splitlines())
    rows = Warm().data(make_uneven())
    best = [line for line in lines if line["is_best"]][-1]
    for part, found in best["rows"].items():
        expected = rows["forget" if part == "forget" else f"{part}_probe"]
        tokens = untouched["rows"][part]["tokens"]
        assert tokens == [row.n_counted for row in expected]
        assert all(nll > 0.0 for nll in found["nll"])
        level = sum(found["nll"]) / sum(tokens)
        assert level == pytest.approx(best["metrics"][f"{part}_nll"], abs=1e-4)


@pytest.mark.parametrize("name", ["zero-1-micro-2", "zero-3"])
def test_the_adapter_of_two_ranks_loads_in_stock_peft(two_ranks: Any, name: str) -> None:
    folder, configs = two_ranks
    i = list(TWO_RANKS).index(name)
    config: TrialConfig = configs[i]
    place = folder / f"trial-{i}"
    original = transformers.AutoModelForCausalLM.from_pretrained(config.model.source)
    stock = peft.PeftModel.from_pretrained(original, str(place / "adapter")).eval()
    lines = (place / "history.jsonl").read_text("utf-8").splitlines()
    best = [line for line in map(json.loads, lines) if line.get("is_best")][-1]
    rows = Warm().data(config)["forget"]
    with torch.no_grad():
        found = float(torch.nn.functional.cross_entropy(*logits_and_targets(stock, rows)))
    assert found == pytest.approx(best["metrics"]["forget_nll"], abs=1e-4)
    batch = collate(rows, torch.device("cpu"))
    assert batch.n_counted == sum(len(row.ids) - 1 for row in rows)
