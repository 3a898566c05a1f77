"""Models as the hub has them: image encoders, gates, tables of positions, no tokenizer, missing weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from conftest import byte_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5ForCausalLM

from core.config import EngineConfig, ModelConfig, SourceConfig
from core.errors import DataError, ModelError
from core.model.layers import linear_shape, n_blocks, n_positions, resolve_targets
from core.model.loading import load_model, local_tokenizer, model_shape
from core.suites import EvaluationData, EvaluationRows
from core.training.adapter import DifferenceAdapter, InitialFactors, load_adapter, save_adapter
from core.training.trained import float32_on_cpu

ENGINE = EngineConfig(dtype="fp32", device="cpu")
V = 257  # of the tokenizer with one token a byte
TEXT: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS: dict[str, Any] = TEXT | {
    "moe_intermediate_size": 24,
    "num_experts_per_tok": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


def gemma3() -> Any:
    """Its image encoder has more blocks than its decoder."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5}
    config = transformers.Gemma3Config(
        text_config=TEXT | {"head_dim": 8},
        vision_config=vision | {"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def mistral3() -> Any:
    """It is listed among models of images and text only."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    config = transformers.Mistral3Config(
        text_config=TEXT | {"model_type": "mistral", "head_dim": 8},
        vision_config=vision | {"model_type": "pixtral", "num_attention_heads": 2, "head_dim": 16},
    )
    return transformers.AutoModelForImageTextToText.from_config(config)


def qwen2_moe() -> Any:
    """A gate with one output beside its shared expert."""
    config = transformers.Qwen2MoeConfig(
        **EXPERTS, num_experts=4, shared_expert_intermediate_size=24
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def glm4_moe() -> Any:
    """Shared experts and a dense block whose layers are named as parts of fused experts once were."""
    config = transformers.Glm4MoeConfig(**EXPERTS, n_routed_experts=4, first_k_dense_replace=1)
    return transformers.AutoModelForCausalLM.from_config(config)


def qwen3_5() -> Any:
    config = transformers.Qwen3_5TextConfig(
        **(TEXT | {"num_hidden_layers": 4}),
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
    )
    return Qwen3_5ForCausalLM(config)


def falcon() -> Any:
    """It writes into what a layer gave."""
    config = transformers.FalconConfig(
        vocab_size=V, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    return transformers.FalconForCausalLM(config)


def frozen(network: Any) -> Any:
    torch.manual_seed(0)
    for parameter in network.eval().requires_grad_(False).parameters():
        parameter.normal_(0.0, 0.2)
    return network


def written(network: Any, folder: Path, *, with_tokenizer: bool = True) -> ModelConfig:
    network.save_pretrained(folder)
    if with_tokenizer:
        byte_tokenizer().save_pretrained(folder)
    return ModelConfig(source=str(folder))


def last_names(names: list[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


# Adapters


@pytest.mark.parametrize("make", [gemma3, mistral3])
def test_adapters_and_blocks_are_those_of_the_text(make: Any) -> None:
    network = make()
    names = resolve_targets(network, "all", rank=1)
    assert len(names) == 2 * 7
    assert all("language_model.layers." in name for name in names)
    assert n_blocks(network) == 2
    assert len(resolve_targets(network, "all", rank=1, layers=[1])) == 7


def test_a_gate_with_one_output_carries_no_adapter_and_bounds_no_rank() -> None:
    names = resolve_targets(qwen2_moe(), "all", rank=8)
    assert "shared_expert_gate" not in last_names(names)
    assert any("shared_expert.up_proj" in name for name in names)


def test_recurrent_mixers_belong_to_attention() -> None:
    network = qwen3_5()
    names = resolve_targets(network, "attention", rank=8)
    assert {"in_proj_qkv", "in_proj_z", "out_proj"} <= last_names(names)
    assert min(min(linear_shape(network.get_submodule(name))) for name in names) >= 8


def test_a_mixer_whose_weights_are_read_past_the_layer_carries_no_adapter() -> None:
    config = transformers.MambaConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2)
    names = resolve_targets(transformers.MambaForCausalLM(config), "all", rank=1)
    assert last_names(names) == {"in_proj", "x_proj"}


@torch.no_grad()
def logits_of(network: Any) -> Tensor:
    ids = torch.arange(3, 14).unsqueeze(0)
    logits: Tensor = network(input_ids=ids, use_cache=False).logits
    return logits


@pytest.mark.parametrize("make", [gemma3, qwen2_moe, glm4_moe, qwen3_5, falcon])
def test_stock_peft_finds_every_layer_again(make: Any, tmp_path: Path) -> None:
    network = frozen(make())
    before = logits_of(network)
    names = resolve_targets(network, "all", rank=2)
    shapes = {name: linear_shape(network.get_submodule(name)) for name in names}
    factors = {
        name: InitialFactors(a=0.1 * torch.randn(2, inputs), b=0.1 * torch.randn(outputs, 2))
        for name, (outputs, inputs) in shapes.items()
    }
    adapter = DifferenceAdapter(network, factors, rank=2, scaling=2.0, dtype=torch.float32)
    assert {name for name, *_ in adapter.increments()} == set(names)
    torch.testing.assert_close(logits_of(adapter.model), before, rtol=0, atol=0)
    adapter.model(input_ids=torch.arange(3, 14).unsqueeze(0)).logits.logsumexp(-1).sum().backward()
    for _, *pair in adapter.increments():
        assert any(p.grad is not None and bool(p.grad.any()) for p in pair)
        for increment in pair:
            increment.data.normal_(0.0, 0.1)
    trained = logits_of(adapter.model)
    save_adapter(tmp_path, adapter.exported(float32_on_cpu), scaling=2.0, base="original")
    adapter.detach()
    stock: Any = load_adapter(network, tmp_path)
    assert isinstance(stock, peft.PeftModel)
    torch.testing.assert_close(logits_of(stock), trained, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(logits_of(stock.merge_and_unload()), trained, rtol=1e-3, atol=1e-3)


# Positions


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        pytest.param(
            transformers.GPT2LMHeadModel(
                transformers.GPT2Config(vocab_size=V, n_positions=20, n_embd=8, n_layer=1, n_head=2)
            ),
            20,
            id="gpt2",
        ),
        pytest.param(
            transformers.OPTForCausalLM(
                transformers.OPTConfig(
                    vocab_size=V,
                    max_position_embeddings=20,
                    hidden_size=8,
                    word_embed_proj_dim=8,
                    ffn_dim=8,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                )
            ),
            20,
            id="opt-begins-at-the-second-row",
        ),
        pytest.param(
            transformers.RobertaForCausalLM(
                transformers.RobertaConfig(
                    vocab_size=V,
                    max_position_embeddings=22,
                    pad_token_id=1,
                    hidden_size=8,
                    intermediate_size=8,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    is_decoder=True,
                )
            ),
            20,
            id="roberta-begins-after-padding",
        ),
        pytest.param(
            transformers.LlamaForCausalLM(
                transformers.LlamaConfig(**TEXT, max_position_embeddings=20)
            ),
            None,
            id="llama-computes-them",
        ),
    ],
)
def test_positions_end_where_the_model_does(network: Any, expected: int | None) -> None:
    network.eval()
    assert n_positions(network) == expected
    assert logits_of_length(network, 20).isfinite().all()
    if expected is not None:
        with pytest.raises((IndexError, RuntimeError)):
            logits_of_length(network, 21)


@torch.no_grad()
def logits_of_length(network: Any, length: int) -> Tensor:
    ids = torch.full((1, length), 5)
    logits: Tensor = network(input_ids=ids, use_cache=False).logits
    return logits


def test_a_row_past_the_positions_is_refused_before_the_model_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("short\n\n" + "x" * 30, encoding="utf-8")
    data = EvaluationData(retain=SourceConfig(source=str(path)))
    rows = EvaluationRows(data, byte_tokenizer(), vocabulary=V, positions=20)
    with pytest.raises(
        DataError,
        match=r"data\.retain: .*long\.txt row 2 has 30 tokens after cutting, and the model has 20 positions; "
        r"lower data\.retain\.max_tokens to 20",
    ):
        rows.examples("retain")
    cut = EvaluationData(retain=SourceConfig(source=str(path), max_tokens=20))
    kept = EvaluationRows(cut, byte_tokenizer(), vocabulary=V, positions=20).examples("retain")
    assert [len(example.tokens.ids) for example in kept] == [5, 20]


def test_a_dry_run_knows_the_positions(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=V, n_positions=20, n_embd=8, n_layer=1, n_head=2)
    model = written(transformers.GPT2LMHeadModel(config), tmp_path)
    assert model_shape(model)["positions"] == 20


# Loading


def test_a_model_of_images_and_text_is_loaded_to_read_text(tmp_path: Path) -> None:
    network = mistral3()
    loaded = load_model(written(network, tmp_path), ENGINE)
    torch.testing.assert_close(logits_of(loaded.network), logits_of(network.eval()))


def test_a_model_without_a_tokenizer_takes_another_source_s(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**TEXT)
    model = written(transformers.LlamaForCausalLM(config), tmp_path / "m", with_tokenizer=False)
    with pytest.raises(
        ModelError,
        match=r"model\.source: '.*/m' holds no tokenizer .* as model\.tokenizer",
    ):
        load_model(model, ENGINE)
    byte_tokenizer().save_pretrained(tmp_path / "t")
    named = model.model_copy(update={"tokenizer": str(tmp_path / "t")})
    assert (
        load_model(named, ENGINE).tokenizer("ab")["input_ids"]
        == byte_tokenizer()("ab")["input_ids"]
    )
    assert len(local_tokenizer(named)) == V


def test_a_tokenizer_folder_without_one_is_refused(tmp_path: Path) -> None:
    model = ModelConfig(source="package:smollm2", tokenizer=str(tmp_path))
    with pytest.raises(
        ModelError, match=r"model\.tokenizer: folder .* holds no tokenizer; give one"
    ):
        local_tokenizer(model)


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=20,
    )
    model = written(frozen(transformers.BertLMHeadModel(config)), tmp_path)
    with pytest.raises(
        ModelError,
        match=r"in BertLMHeadModel a token sees those that follow it; .* is_decoder: true",
    ):
        load_model(model, ENGINE)
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(values | {"is_decoder": True}), "utf-8")
    assert load_model(model, ENGINE).identity


def test_weights_that_the_files_lack_are_refused_not_drawn_at_random(tmp_path: Path) -> None:
    model = written(transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)), tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(
        ModelError,
        match=r"lacks 1 weights of LlamaForCausalLM \(model\.layers\.1\.mlp\.up_proj\.weight\)",
    ):
        load_model(model, ENGINE)
    shutil.rmtree(tmp_path)
