"""Settings for every test, and a tiny model that has really memorised a few texts."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
import random
import string
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import postgres as server
import pytest
from hypothesis import HealthCheck, settings

from core.config import TrialConfig, parse_trial


def pytest_configure(config: pytest.Config) -> None:
    """No property depends on how busy the machine is: examples take as long as they take."""
    settings.register_profile(
        "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--parity``: end with a table of what the golden cases found."""
    parser.addoption("--parity", action="store_true", help="print the table of golden cases")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table that ``make parity`` is about."""
    if config.getoption("--parity"):
        from golden_cases import parity_table

        terminalreporter.section("parity with published code")
        for line in parity_table():
            terminalreporter.write_line(line)


_WORDS = """
river stone lamp green quiet harbour seven window paper cloud orchard copper letter garden
winter bridge silver morning kettle forest engine yellow market sailor thunder blanket
""".split()  # noqa: SIM905


@pytest.fixture(scope="session", autouse=True)
def artifact_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the session's own: no test reads what an earlier session made."""
    shared = os.environ.get("UNLEARN_TUNE_CACHE")
    path = Path(shared) if shared else tmp_path_factory.mktemp("cache")
    os.environ["UNLEARN_TUNE_CACHE"] = str(path)
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[server.Postgres]:
    """A PostgreSQL server of the session's own."""
    if server.binaries() is None:
        pytest.skip("PostgreSQL is not installed here (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="the extra postgres is not installed")
    with server.serving() as started:
        yield started


def sentences(seed: int, count: int) -> list[str]:
    """Sequences of 3 to 9 words out of a small vocabulary: text that a tiny model learns to predict."""
    rng = random.Random(seed)
    return [f"{' '.join(rng.choices(_WORDS, k=rng.randint(3, 9)))} {i}" for i in range(count)]


def gibberish(seed: int, count: int) -> list[str]:
    """Sequences of 2 to 10 random letter groups: predictable only for who has memorised them."""
    rng = random.Random(seed)
    return [
        " ".join(
            "".join(rng.choices(string.ascii_lowercase, k=4)) for _ in range(rng.randint(2, 10))
        )
        for _ in range(count)
    ]


def write_rows(path: Path, texts: list[str]) -> Path:
    """Write texts as JSON Lines."""
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of the four roles; rows of unequal length."""
    folder = tmp_path_factory.mktemp("data")
    texts = {
        "forget": gibberish(1, 8),
        "approximate": gibberish(2, 16),
        "retain": sentences(3, 40),
        "general": sentences(4, 24),
    }
    return {role: write_rows(folder / f"{role}.jsonl", rows) for role, rows in texts.items()}


def byte_tokenizer() -> Any:
    """A tokenizer with one token a byte, and an end of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0} | {c: i for i, c in enumerate(alphabet, start=1)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_data: Mapping[str, Path]) -> Path:
    """Folder of a two-layer Llama that was trained on the forget and retain texts until it knew them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=True,
        )
    )
    texts = [
        json.loads(line)["text"]
        for role in ("forget", "forget", "retain")
        for line in tiny_data[role].read_text(encoding="utf-8").splitlines()
    ]
    tokenizer.pad_token = "<eos>"
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for _ in range(120):
        loss = network(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("tiny-llama")
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TrialMaker = Callable[..., TrialConfig]


@pytest.fixture(scope="session")
def trial_values(tiny_model: Path, tiny_data: Mapping[str, Path]) -> dict[str, Any]:
    """Plain values of a small, complete trial; tests change what they are about."""
    return {
        "model": {"source": str(tiny_model)},
        "data": {role: {"source": str(path), "max_tokens": 64} for role, path in tiny_data.items()}
        | {"probe_rows": 6, "report_rows": 6},
        "method": {"forget_loss": "ihl", "retain_loss": "nll", "adapter_init": "lora"},
        "optimizer": {"learning_rate": 3e-3},
        "adapter": {"rank": 4},
        "batch": {"global_batch_size": 4},
        "selection": {
            "max_steps": 4,
            "rows_per_probe": "all",
            "skip_probes": False,
            "constraints": [
                {"metric": "retain_drop", "at_most": 0.10},
                {"metric": "general_drop", "at_most": 0.10},
            ],
        },
        "engine": {"dtype": "fp32", "device": "cpu", "zero_stage": 1},
    }


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with dotted paths replaced."""
    result: dict[str, Any] = json.loads(json.dumps(values))
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return result


@pytest.fixture(scope="session")
def make_trial(trial_values: Mapping[str, Any]) -> TrialMaker:
    """Build a trial with some dotted fields changed: ``make_trial({"adapter.rank": 8})``."""

    def make(changes: Mapping[str, Any] | None = None) -> TrialConfig:
        return parse_trial(merged(trial_values, changes or {}), where="test")

    return make
