"""Tiny models with their binding, and random scores of their units."""

from __future__ import annotations

from typing import Any

import torch

from optimum_ishrink.architectures.model_class import bind_config
from tests.helpers.tiny import VOCAB, tiny_config, tiny_model

KEYS = ("num_hidden_layers", "num_key_value_heads", "intermediate_size")
WINDOWS = torch.randint(3, VOCAB, (6, 10), generator=torch.Generator().manual_seed(0))


def bound_model(model_type: str = "llama", variant: int = 0) -> tuple[Any, Any]:
    """A tiny model and its binding."""
    model = tiny_model(tiny_config(model_type, variant))
    return model, bind_config({**model.config.to_dict(), "model_type": model_type})[1]


def random_scores(binding: Any, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    layers = binding.sizes["layers"]
    neurons = binding.sizes["ffn"] * binding.mlps
    sizes = dict(zip(KEYS, ((layers,), (layers, binding.sizes["kv"]), (layers, neurons)), strict=True))
    return {key: torch.rand(size, generator=generator) for key, size in sizes.items()}
