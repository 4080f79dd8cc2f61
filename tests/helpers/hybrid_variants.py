"""Config values of tiny hybrids and of tiny models with latent attention."""

from __future__ import annotations

from typing import Any

FULL, STATE = "full_attention", "linear_attention"
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 5,
    "mamba_d_conv": 3,
    "mamba_chunk_size": 4,
}
JAMBA = {
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_state": 5,
    "mamba_d_conv": 3,
    "mamba_dt_rank": 7,
    "head_dim": None,
}
NEMOTRON = {
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "ssm_state_size": 5,
    "conv_kernel": 3,
    "chunk_size": 4,
    "moe_shared_expert_intermediate_size": 18,
    "num_hidden_layers": 4,
}
DELTA_NET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 10,
    "linear_conv_kernel_dim": 3,
}
LATENT = {
    "num_key_value_heads": 8,
    "q_lora_rank": 11,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 10,
    "head_dim": None,
}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
DEEPSEEK = {
    **LATENT,
    **MOE,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}

KIMI = {"linear_head_dim": 6, "linear_num_heads": 3, "linear_conv_kernel_dim": 3}
KDA = {
    "full_attn_layers": [2, 4],
    "kda_layers": [1, 3],
    "head_dim": 6,
    "num_heads": 3,
    "short_conv_kernel_size": 3,
}
GROUPED = {
    "n_routed_experts": 8,
    "num_local_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "attention_bias": True,
}

HYBRIDS: dict[str, list[dict[str, Any]]] = {
    "bamba": [{**MAMBA, "attn_layer_indices": [1, 3], "head_dim": None}],
    "deepseek_v2": [{**DEEPSEEK}],
    "deepseek_v3": [{**DEEPSEEK}, {**DEEPSEEK, **GROUPED, "q_lora_rank": None}],
    # Fewer heads of the indexer give equal scores, of which the shape of a batch decides which are chosen.
    "deepseek_v32": [{**DEEPSEEK, "index_n_heads": 64, "index_head_dim": 12, "index_topk": 5}],
    "falcon_h1": [{**MAMBA, "mamba_d_ssm": 64, "head_dim": None}],
    "glm4_moe_lite": [{**DEEPSEEK}],
    "granitemoehybrid": [
        {**MAMBA, **MOE, "layer_types": [STATE, FULL, STATE, FULL], "shared_intermediate_size": 18, "head_dim": None},
        {
            **MAMBA,
            "num_local_experts": 0,
            "layers_block_type": ["mamba", "attention", "mamba", "attention"],
            "shared_intermediate_size": 24,
            "tie_word_embeddings": True,
            "head_dim": None,
        },
    ],
    "jamba": [
        {**MOE, **JAMBA, "attn_layer_period": 2, "attn_layer_offset": 1},
        {**JAMBA, "num_experts": 1, "attn_layer_period": 3, "attn_layer_offset": 0},
    ],
    "kimi_linear": [
        {
            **DEEPSEEK,
            "q_lora_rank": None,
            "layer_types": [STATE, FULL, STATE, FULL],
            "mlp_layer_types": ["dense", "sparse", "sparse", "dense"],
            **KIMI,
        },
        {**DEEPSEEK, **KIMI, "linear_attn_config": KDA},
    ],
    "lfm2": [
        {"layer_types": ["conv", FULL, "conv", FULL], "block_auto_adjust_ff_dim": False, "head_dim": None},
        {
            "full_attn_idxs": [0, 3],
            "block_ff_dim": 32,
            "block_multiple_of": 8,
            "tie_word_embeddings": False,
            "head_dim": None,
        },
    ],
    "lfm2_moe": [{**MOE, "layer_types": ["conv", FULL, FULL, "conv"], "num_dense_layers": 1}],
    "minicpm3": [{**LATENT}, {**LATENT, "scale_depth": None, "tie_word_embeddings": False}],
    "nemotron_h": [
        {**MOE, **NEMOTRON, "layers_block_type": [STATE, FULL, "mlp", "moe"], "n_routed_experts": 4},
        {**NEMOTRON, "hybrid_override_pattern": "M*-M", "mlp_bias": True, "attention_bias": True},
        {
            **MOE,
            **NEMOTRON,
            "layers_block_type": ["moe", FULL, STATE, "moe"],
            "moe_latent_size": 16,
            "n_routed_experts": 4,
        },
    ],
    "olmo_hybrid": [
        {**DELTA_NET, "layer_types": [STATE, FULL, STATE, FULL], "linear_num_key_heads": 6, "head_dim": None}
    ],
    "qwen3_5_moe_text": [
        {**MOE, **DELTA_NET, "layer_types": [STATE, FULL, STATE, FULL], "shared_expert_intermediate_size": 18}
    ],
    "qwen3_5_text": [{**DELTA_NET, "layer_types": [STATE, FULL, STATE, FULL]}],
    "qwen3_next": [
        {
            **MOE,
            **DELTA_NET,
            "layer_types": [STATE, FULL, STATE, FULL],
            "shared_expert_intermediate_size": 18,
            "mlp_only_layers": [1],
        }
    ],
    "sarvam_mla": [{**DEEPSEEK}],
    "youtu": [{**LATENT, "pad_token_id": None}],  # transformers zeroes a padding row on loading
}
