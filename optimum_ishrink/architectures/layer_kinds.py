"""Which layers of a mixture of experts are dense: kept as they are when layers between them are removed.

Config classes derive it from the index of a layer: every n-th layer has experts, or all but the first ones. Once a
layer is removed, those behind it have other indices, so the keys have to say it in another way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ShapeError
from .binding import Binding
from .description import INDEX
from .model_class import expected_tensors

_FIRST_DENSE = ("first_k_dense_replace", "num_dense_layers")
"""Keys that hold how many of the first layers are dense."""

_KEYS = (
    "decoder_sparse_step",
    "mlp_only_layers",
    *_FIRST_DENSE,
    "moe_layer_freq",
    "moe_layer_start_index",
    "moe_layer_end_index",
    "moe_layer_interval",
    "mlp_layer_types",
    "interleave_moe_layer_step",
    "moe_layers",
    "expert_layer_period",
    "expert_layer_offset",
)
"""Keys by which config classes say which layers have experts."""


def dense_layer_changes(config: Any, layers: Sequence[int]) -> dict[str, Any]:
    """Return the config keys that say which of the retained layers are dense, where they have to change.

    Args:
        config: The source's config, parsed by its class.
        layers: Indices of the retained layers.
    """
    changes: dict[str, Any] = {}
    for key in _FIRST_DENSE:
        first = getattr(config, key, None)
        if isinstance(first, int) and not isinstance(first, bool):
            count = sum(layer < first for layer in layers)
            if count != min(first, config.num_hidden_layers):
                changes[key] = count
    start, end = getattr(config, "moe_layer_start_index", None), getattr(config, "moe_layer_end_index", None)
    if isinstance(start, int) and isinstance(end, int) and getattr(config, "moe_layer_interval", 1) == 1:
        sparse = [new for new, old in enumerate(layers) if start <= old <= end]
        if sparse and sparse != [new for new in range(len(layers)) if start <= new <= end]:
            changes |= {"moe_layer_start_index": sparse[0], "moe_layer_end_index": sparse[-1]}
    step, named = getattr(config, "decoder_sparse_step", None), getattr(config, "mlp_only_layers", None)
    if isinstance(step, int) and step > 0 and isinstance(named, (list, tuple)):
        wanted = [new for new, old in enumerate(layers) if old in named or (old + 1) % step]
        kept = [new for new, old in enumerate(layers) if old in named]
        if wanted != [new for new in range(len(layers)) if new in kept or (new + 1) % step]:
            # With a step of 1 the list alone decides.
            changes |= {"decoder_sparse_step": 1, "mlp_only_layers": wanted}
    return changes


def mixes_kinds(binding: Binding) -> bool:
    """Return whether a model's layers hold different tensors, as dense layers and layers with experts do."""
    return len({_pattern(binding, layer) for layer in range(binding.sizes["layers"])}) > 1


def check_layer_kinds(binding: Binding, config: Any, layers: Sequence[int]) -> None:
    """Check that every retained layer is of the kind that it was, where a model has layers of several kinds.

    Args:
        binding: The source's binding.
        config: The new config, parsed by its class.
        layers: Indices of the retained layers.

    Raises:
        ShapeError: A layer would be of another kind; the message names the keys that decide it.
    """
    if len(layers) == binding.sizes["layers"] or not mixes_kinds(binding):
        return
    # Of tensors that there is one of for every expert, the first stands for all: their number may change, too.
    outer = {bound.name for bound in binding.tensors.values() if bound.layer is None}
    wanted = set(outer)
    for position, layer in enumerate(layers):
        wanted |= {bound.in_layer(position) for bound in binding.layer_tensors(layer) if not bound.expert}
    found = {name for name in expected_tensors(config) if name in outer or not _of_later_expert(binding, name)}
    different = sorted(wanted ^ found)
    if different:
        keys = [key for key in _KEYS if getattr(config, key, None) is not None]
        by = ", ".join(keys) or "the index of a layer"
        raise ShapeError(
            f"num_hidden_layers={len(layers)} cannot be written for {binding.description.model_type}: {by} would give "
            f"a layer another kind of MLP than it had (such as {different[0]}); keep num_hidden_layers at "
            f"{binding.sizes['layers']} and shrink another dimension"
        )


def _of_later_expert(binding: Binding, name: str) -> bool:
    indices = INDEX.findall(name)
    return bool(binding.sizes.get("experts")) and len(indices) > 1 and int(indices[1]) > 0


def _pattern(binding: Binding, layer: int) -> frozenset[str]:
    return frozenset(bound.in_layer(0) for bound in binding.layer_tensors(layer))
