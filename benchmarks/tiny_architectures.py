"""Tiny configurations of every architecture that transformers has for causal language models.

Each starts from the architecture's own defaults. Sizes are made small by the name of their field, in whatever part of
the configuration they stand; what the defaults then contradict is given for that architecture.
"""

from collections.abc import Mapping
from typing import Any

import transformers

VOCABULARY = 260
POSITIONS = 65

_NAMES: Mapping[int, str] = {
    VOCABULARY: """
        vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size
    """,
    POSITIONS: """
        max_position_embeddings n_positions n_ctx max_seq_len context_length
        max_target_positions model_max_length max_source_positions
        original_max_position_embeddings rel_extent position_bias_max_distance
    """,
    4: """
        num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers
        num_blocks num_attention_heads n_head n_heads num_heads decoder_attention_heads
        attention_heads num_decoder_attention_heads swa_num_attention_heads linear_num_heads
        num_experts n_routed_experts num_local_experts moe_num_experts index_n_heads
        linear_num_value_heads num_query_groups swa_num_key_value_heads zero_expert_num
    """,
    2: """
        num_key_value_heads kv_n_heads num_kv_heads num_experts_per_tok moe_topk moe_top_k
        num_experts_per_token moe_k linear_num_key_heads encoder_layers num_encoder_layers
        depth num_kv_shared_layers mamba_n_groups n_groups mamba_ngroups
        num_encoder_attention_heads encoder_attention_heads num_global_layers
        conf_num_hidden_layers conf_num_attention_heads heads_per_ngram hc_count hc_mult
    """,
    1: """
        n_group topk_group first_k_dense_replace num_expert_group moe_layer_start_index
        num_dense_layers
    """,
    32: """
        hidden_size d_model n_embd emb_dim embedding_size embedding_dim word_embed_proj_dim
        lru_width attention_hidden_size input_embedding_size output_embedding_size
        hidden_size_global dim_model_base backbone_hidden_size out_hidden_size ple_embed_dim
    """,
    48: """
        intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim moe_intermediate_size dff
        dim_ff shared_expert_intermediate_size shared_intermediate_size ffn_hidden_size
        expert_ffn_hidden_size intermediate_size_mlp d_inner feed_forward_size
        dense_intermediate_size shared_experts_intermediate_size
        moe_shared_expert_intermediate_size mlp_dim
    """,
    8: """
        head_dim d_head kv_channels dim_head attention_head_size swa_head_dim
        linear_key_head_dim linear_value_head_dim linear_head_dim v_head_dim
        qk_nope_head_dim qk_rope_head_dim global_head_dim rotary_dim mamba_n_heads
        mamba_num_heads mamba_d_head mamba_head_dim state_size ssm_state_size mamba_d_state
        hidden_size_per_layer_input laurel_rank adapter_rank router_hidden_size
        mamba_dt_rank time_step_rank n_mamba_heads mamba_headdim chunk_size mamba_chunk_size
        sliding_window sliding_window_size local_attention window_size attention_window_size
        attention_chunk_size index_head_dim index_topk gated_norm_rank o_lora_rank
        hc_lowrank keep_window_size d_rel
    """,
    16: """
        kv_lora_rank q_lora_rank qk_head_dim attention_head_dim mm_tokens_per_image
    """,
}
_SIZES = {name: size for size, names in _NAMES.items() for name in names.split()}

_WINDOWED = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_NO_SHARING = _WINDOWED | {"num_kv_shared_layers": 0}
_GEMMA_4 = _NO_SHARING | {"per_layer_config": {}}
_GEMMA_4_TEXT = _GEMMA_4 | {"hidden_size_per_layer_input": 8}
_WIDE_HEADS = {"attention_hidden_size": 64, "attention_head_dim": 16, "num_key_value_heads": 4}
_MIXERS = ["linear_attention", "linear_attention", "hybrid"]
_DOTS_3 = {
    "num_key_value_heads": 4,
    "head_dim": 16,
    "per_layer_config": {},
    "layer_types": ["indexed_attention", "sliding_attention"] * 2,
}
_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_FOUR_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2}
_DECODERS = """
    bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert reformer rembert
    roberta roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod
"""
_LATENT = """
    axk1 axk2 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa kimi_linear
    longcat_flash minicpm3 youtu
"""

_GIVEN: Mapping[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": _WINDOWED
    | {"rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE}},
    "deepseek_v2": _FOUR_EXPERTS,
    "dots1": _FOUR_EXPERTS | {"n_shared_experts": 1},
    "dots3_note_text": _DOTS_3,
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": _NO_SHARING
    | {"intermediate_size": 48, "activation_sparsity_pattern": [0.0] * 4},
    "gemma4": {"text_config": _GEMMA_4_TEXT},
    "gemma4_text": _GEMMA_4_TEXT,
    "gemma4_unified": {"text_config": _GEMMA_4},
    "gemma4_unified_text": _GEMMA_4,
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "reformer": {
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [8, 8],
        "max_position_embeddings": 64,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 32,
        "pronunciation_vocab_size": 64,
        "shape_embed_dim": 32,
        "shape_vocab_size": 64,
    },
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": _WIDE_HEADS | {"layers_block_type": [*_MIXERS, "hybrid"]},
    "zamba2": _WIDE_HEADS | {"layers_block_type": [*_MIXERS, "linear_attention"]},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(kind: str) -> Any:
    """A small configuration of an architecture.

    Args:
        kind: ``model_type`` of transformers.
    """
    default = transformers.AutoConfig.for_model(kind)
    values = _small(default.to_dict())
    if kind in _DECODERS.split():
        values["is_decoder"] = True
    if kind in _LATENT.split():
        values["num_key_value_heads"] = 4
    for name, value in _GIVEN.get(kind, {}).items():
        within = values.get(name) if isinstance(value, dict) and name.endswith("_config") else None
        values[name] = {**within, **value} if isinstance(within, dict) else value
    return type(default)(**values)


def _small(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and name.endswith("_config") and name != "quantization_config":
            found |= {name: part} if (part := _small(value)) else {}
        elif name in _SIZES and isinstance(value, int) and not isinstance(value, bool):
            found[name] = _SIZES[name]
        elif name.endswith(("token_id", "_index", "lang_id")):  # all within the vocabulary
            is_far = isinstance(value, list) or (isinstance(value, int) and value >= VOCABULARY)
            found |= {name: 3} if is_far else {}
    return found
