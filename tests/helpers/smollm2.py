"""The shape of SmolLM2-135M, without its weights."""

from __future__ import annotations

from optimum_ishrink.architectures.model_class import bind_config

SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_, BINDING = bind_config(SMOLLM2)
