"""Models in memory whose checkpoints older versions of transformers have to read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.helpers.tiny import CASES_IN_FULL, tiny_config, tiny_tokenizer

ROTARY: dict[str, dict[str, Any]] = {
    "default": {"rope_theta": 30_000.0},
    "linear": {"rope_theta": 30_000.0, "factor": 2.0},
    "llama3": {
        "rope_theta": 50_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_theta": 30_000.0, "factor": 4.0, "original_max_position_embeddings": 32},
}
"""Rotary parameters by type."""

UNKNOWN_BEFORE_5 = {
    (model_type, kind)
    for model_type, kinds in {
        "nemotron": ("linear", "llama3", "yarn"),  # its older class rotates unscaled
        "olmo": ("llama3", "yarn"),
        "olmo2": ("llama3", "yarn"),
        "phi3": ("linear", "llama3", "yarn"),  # no version takes these
    }.items()
    for kind in kinds
}
"""Types of rotary scaling that an architecture does not have in version 4.57."""

_WIDER: dict[str, dict[str, Any]] = {
    "stablelm": {"hidden_size": 128},
    "qwen2_moe": {"head_dim": None},
    "phi3": {"hidden_size": 128},
}
"""A rotated quarter of a head has to be an even number; the older class refuses heads of another size."""


def memory_config(model_type: str, variant: int = 0, kind: str = "", **changes: Any) -> Any:
    """Return the config of a tiny model.

    Args:
        model_type: The architecture.
        variant: Which of `VARIANTS`.
        kind: Type of its rotary scaling; empty for the architecture's default.
        changes: More values.
    """
    changes = {**_WIDER.get(model_type, {}), **changes}
    plain = tiny_config(model_type, variant, **changes)
    if not kind:
        return plain
    rotary = {"rope_type": kind, **ROTARY[kind]}
    if "full_attention" in plain.rope_parameters:
        near = rotary["rope_theta"] if model_type == "olmo3" else 15_000.0
        sliding = {"rope_type": "default", "rope_theta": near}
        return tiny_config(
            model_type,
            variant,
            rope_parameters={"full_attention": rotary, "sliding_attention": sliding},
            **changes,
        )
    part = plain.rope_parameters.get("partial_rotary_factor")
    return tiny_config(
        model_type,
        variant,
        rope_parameters={**rotary, **({} if part is None else {"partial_rotary_factor": part})},
        **changes,
    )


def memory_configs() -> Iterator[tuple[str, Any]]:
    """Yield the name and config of every architecture with every type of rotary scaling that 4.57 computes."""
    for model_type, variant in CASES_IN_FULL:
        yield f"{model_type}-{variant}", memory_config(model_type, variant)
        if not getattr(memory_config(model_type, variant), "rope_parameters", None):
            continue
        for kind in ROTARY:
            if (model_type, kind) not in UNKNOWN_BEFORE_5:
                yield f"{model_type}-{variant}-{kind}", memory_config(model_type, variant, kind)


def tokenizer_with_extra_tokens() -> Any:
    """Return a tokenizer with a special token that has no role of its own."""
    from copy import deepcopy

    tokenizer = deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|call|>"]})
    return tokenizer
