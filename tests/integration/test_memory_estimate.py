"""The estimate of ``--dry-run`` against the most memory that a rank really held, each in a process of its own."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import byte_tokenizer
from peak_of_a_rank import measured

from core.config import TrialConfig, parse_trial
from core.estimate import PROCESS_BYTES, rank_memory

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

WITHIN = 0.25

LLAMA = {
    "vocab_size": 8000,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
SHAPES: dict[str, tuple[type[transformers.PretrainedConfig], dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, LLAMA),
    "gpt2": (
        transformers.GPT2Config,
        {"vocab_size": 4000, "n_embd": 256, "n_layer": 6, "n_head": 8, "n_positions": 512},
    ),
    "large-vocabulary": (
        transformers.LlamaConfig,
        LLAMA | {"vocab_size": 60_000, "hidden_size": 128, "num_hidden_layers": 2},
    ),
    "qwen2": (transformers.Qwen2Config, LLAMA | {"num_hidden_layers": 4}),
    "0.4B": (
        transformers.LlamaConfig,
        LLAMA
        | {
            "vocab_size": 32_000,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
        },
    ),
}


def random_model(folder: Path, shape: str) -> str:
    """A model of a shape with random weights, and a tokenizer of bytes."""
    kind, values = SHAPES[shape]
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(kind(**values))
    network.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    return str(folder / "model")


def trial_of(
    folder: Path, model: str, *, tokens: int, rows: int, loss: str = "ihl", **adapter: Any
) -> TrialConfig:
    """A trial of two steps whose rows are all cut to ``tokens``."""
    data: dict[str, Any] = {"probe_rows": 4, "report_rows": 4}
    for seed, role in enumerate(("forget", "retain", "approximate", "general")):
        words = random.Random(seed)
        path = folder / f"{role}.jsonl"
        n_texts = 16 if role == "forget" else 40  # a probe reads 16 rows at a time
        texts = (" ".join(words.choices("abcdefgh", k=2 * tokens)) for _ in range(n_texts))
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
        data[role] = {"source": str(path), "max_tokens": tokens}
    values = {
        "model": {"source": model},
        "data": data,
        "method": {"forget_loss": loss, "retain_loss": "nll"},
        "optimizer": {"learning_rate": 1e-3},
        "adapter": {"rank": 8} | adapter,
        "batch": {"global_batch_size": rows},
        "selection": {"max_steps": 2, "constraints": []},
        "engine": {"dtype": "fp32", "device": "cpu"},
    }
    return parse_trial(values, where="test")


def check(folder: Path, trial: TrialConfig) -> None:
    """The estimate beside the process itself lies within a quarter of what was held beside it."""
    estimated = rank_memory(trial).on_cpu - PROCESS_BYTES
    found = measured(folder, trial.model_dump(mode="json"))
    held = found["peak"] - found["before"]
    assert held > 150 * 2**20  # else it would say nothing
    print(f"estimated {estimated / 2**20:.0f} MiB, held {held / 2**20:.0f} MiB")  # noqa: T201
    assert abs(estimated / held - 1.0) <= WITHIN, (estimated, held)


@pytest.mark.parametrize(
    ("shape", "tokens", "rows", "loss", "adapter"),
    [
        pytest.param("llama", 128, 16, "ihl", {}, id="llama"),
        pytest.param("gpt2", 128, 16, "npo", {}, id="gpt2"),
        pytest.param("large-vocabulary", 64, 8, "undial", {}, id="large-vocabulary"),
        pytest.param("qwen2", 128, 8, "ga", {"kind": "full"}, id="qwen2-all-weights-trained"),
        pytest.param("0.4B", 64, 4, "ihl", {}, id="0.4B", marks=pytest.mark.matrix),
    ],
)
def test_the_estimate_is_what_a_random_model_held(
    tmp_path: Path, shape: str, tokens: int, rows: int, loss: str, adapter: dict[str, Any]
) -> None:
    model = random_model(tmp_path, shape)
    check(tmp_path, trial_of(tmp_path, model, tokens=tokens, rows=rows, loss=loss, **adapter))


@pytest.mark.matrix
@pytest.mark.parametrize(("tokens", "rows"), [(64, 8), (128, 2)])
def test_the_estimate_is_what_smollm2_held(tmp_path: Path, tokens: int, rows: int) -> None:
    check(tmp_path, trial_of(tmp_path, "package:smollm2", tokens=tokens, rows=rows))
