"""Config values of tiny decoders whose layouts repeat those of others, on top of `SMALL` of tiny.py."""

from __future__ import annotations

from typing import Any

DECODERS: dict[str, list[dict[str, Any]]] = {
    "apertus1p5_text": [{}, {"tie_word_embeddings": True, "attention_bias": True}],
    "aria_text": [{"moe_num_experts": 3}],
    "biogpt": [{"head_dim": None}],
    "bitnet": [{"head_dim": None}, {"head_dim": None, "attention_bias": True}],
    "bloom": [{"head_dim": None}, {"head_dim": None, "apply_residual_connection_post_layernorm": True}],
    "codegen": [{"head_dim": None, "n_inner": 24, "rotary_dim": 2}],
    "cohere_compass_text": [
        {
            "head_dim": None,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 0]},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0, "mrope_section": [1, 1, 0]},
            },
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "sliding_window": 3,
        }
    ],
    "ctrl": [{"head_dim": None, "dff": 24}],
    "cwm": [{"sliding_window": 3}],
    "diffllama": [{"head_dim": None}, {"attention_bias": True}],
    "doge": [{"head_dim": None}, {"attention_bias": True, "mlp_bias": True, "keep_window_size": 4}],
    "exaone": [{"head_dim": None}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}],
    "falcon": [
        {"head_dim": None, "ffn_hidden_size": 24, "pad_token_id": 0},
        {"head_dim": None, "ffn_hidden_size": 24, "new_decoder_architecture": True, "num_kv_heads": 4, "bias": True},
        {"head_dim": None, "ffn_hidden_size": 24, "multi_query": False, "alibi": True, "parallel_attn": False},
        {
            "head_dim": None,
            "ffn_hidden_size": 24,
            "new_decoder_architecture": True,
            "num_kv_heads": 4,
            "num_ln_in_parallel_attn": 1,
        },
    ],
    "flint": [
        {
            "num_experts": 3,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 10,
            "sliding_window": 3,
            "mlp_only_layers": [1],
        }
    ],
    "gemma3n_text": [
        {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": 300,
            "sliding_window": 3,
            "laurel_rank": 6,
            "altup_num_inputs": 3,
            "num_kv_shared_layers": 2,
        },
        {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": 90,
            "sliding_window": 3,
            "laurel_rank": 6,
            "altup_num_inputs": 3,
            "num_kv_shared_layers": 0,
            "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
            "intermediate_size": [24, 24, 24, 24],
            "attention_bias": True,
        },
    ],
    "gemma4_text": [
        {
            "global_head_dim": 16,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "full_attention"],
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": 300,
            "sliding_window": 3,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
        },
        {
            "global_head_dim": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 300,
            "sliding_window": 3,
            "attention_bias": True,
        },
        {
            "global_head_dim": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 90,
            "sliding_window": 3,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 2,
        },
        {
            "global_head_dim": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": 300,
            "sliding_window": 3,
            "enable_moe_block": True,
            "num_experts": 3,
            "top_k_experts": 2,
            "moe_intermediate_size": 8,
        },
    ],
    "gpt_bigcode": [{"head_dim": None, "n_inner": 24}, {"head_dim": None, "n_inner": 24, "multi_query": False}],
    "gpt_neo": [{"head_dim": None, "attention_types": [[["global", "local"], 2]], "window_size": 3}],
    "gpt_neox_japanese": [{"head_dim": None, "intermediate_multiple_size": 2}],
    "gptj": [{"head_dim": None, "n_inner": 24, "rotary_dim": 2}],
    "granite_swa": [
        {
            "sliding_window": 3,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "layer_rope_theta": [5000.0, 0, 5000.0, 20000.0],
        },
        {"attention_bias": True, "mlp_bias": True, "head_dim": None},
    ],
    "hunyuan_v1_dense": [
        {"eod_token_id": 2},
        {"eod_token_id": 2, "attention_bias": True, "tie_word_embeddings": True, "head_dim": 8},
    ],
    "hyperclovax": [
        {"attention_multiplier": 0.3, "residual_multiplier": 0.5, "logits_scaling": 2.0},
        {"attention_bias": True, "mlp_bias": True},
    ],
    "internlm3": [{}, {"attention_bias": True, "mlp_bias": True}],
    "iquestcoder": [{"head_dim": None}, {"attention_bias": True, "mlp_bias": True}],
    "jais2": [{"head_dim": None}, {"attention_bias": False, "mlp_bias": False}],
    "kolibri1": [
        {
            "num_experts": 3,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 10,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        }
    ],
    "llama4_text": [
        {
            "num_local_experts": 3,
            "moe_layers": [1, 3],
            "intermediate_size_mlp": 20,
            "no_rope_layers": [1, 1, 0, 1],
            "attention_chunk_size": 4,
            "layer_types": ["chunked_attention", "full_attention", "full_attention", "chunked_attention"],
        },
        {"num_local_experts": 3, "interleave_moe_layer_step": 2, "use_qk_norm": False, "attention_bias": True},
    ],
    "mellum": [
        {
            "num_experts": 3,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        }
    ],
    "ministral3": [{"sliding_window": 3}],
    "modernbert-decoder": [
        {
            "head_dim": None,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "local_attention": 6,
            "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
        },
        {
            "head_dim": None,
            "cls_token_id": 1,
            "sep_token_id": 2,
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "decoder_bias": False,
            "tie_word_embeddings": False,
        },
    ],
    "mpt": [{"head_dim": None, "attn_config": {"clip_qkv": 0.5}}, {"head_dim": None, "attn_config": {"alibi": False}}],
    "nanochat": [{"head_dim": None}, {"attention_bias": True}],
    "openai-gpt": [{"head_dim": None}],
    "opt": [
        {"head_dim": None, "ffn_dim": 24},
        {"head_dim": None, "ffn_dim": 24, "do_layer_norm_before": False, "word_embed_proj_dim": 16},
        {"head_dim": None, "ffn_dim": 24, "enable_bias": False, "layer_norm_elementwise_affine": False},
    ],
    "persimmon": [{"head_dim": None}, {"head_dim": None, "qk_layernorm": False}],
    "vaultgemma": [
        {"query_pre_attn_scalar": 8, "sliding_window": 3},
        {"query_pre_attn_scalar": 8, "attention_bias": True},
    ],
    "xglm": [{"head_dim": None, "ffn_dim": 24}],
}
