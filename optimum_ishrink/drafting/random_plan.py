"""A plan by random scores: what it retains says nothing about the weights, so that a proof cannot hold by chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..architectures.description import EXPERTS, GROUPS, LAYERS, NEURONS
from ..checkpoint.source import Source
from ..planning.options import ShapeOptions
from ..planning.shape import complete_shape
from ..planning.stage import plan
from ..report.plan import Choice, Plan


def random_plan(source: Source, shape: Mapping[str, int], seed: int, *, merge: bool = False) -> Plan:
    """Choose at random what stays, by the functions that choose it in any cut.

    Args:
        source: The model; only its config is read.
        shape: The new shape; dimensions that are not named do not change.
        seed: Seed of the scores.
        merge: Whether KV heads are merged rather than removed.

    Raises:
        ShapeError: The config cannot hold the shape.
    """
    binding = source.binding
    generator = torch.Generator().manual_seed(seed)
    layers, kv, heads = (binding.sizes[size] for size in ("layers", "kv", "heads"))
    scores = {
        LAYERS: torch.rand(layers, generator=generator),
        GROUPS: torch.rand(layers, kv, generator=generator),
        "num_attention_heads": torch.rand(layers, heads, generator=generator),
        NEURONS: torch.rand(layers, binding.sizes["ffn"] * binding.mlps, generator=generator),
        "key_value_similarity": torch.rand(layers, kv, kv, generator=generator),
        EXPERTS: torch.rand(layers, binding.sizes.get("experts") or 1, generator=generator),
    }
    options = ShapeOptions(
        **dict[str, Any](shape),
        intermediate_multiple=1,
        keep_first_layers=0,
        keep_last_layers=0,
        merge_key_value_heads=merge,
    )
    return plan(source, options, complete_shape(binding, shape), scores, Choice())
