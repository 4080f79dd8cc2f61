"""The plan: which shape, which layers, which units, and what that does to the config."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from ..architectures.spec import DIMENSIONS, Binding, check_shape
from ..errors import ShapeError
from ..report.plan import Plan
from .config_edit import changed_keys, edit_config
from .selection import choose_heads, choose_layers, choose_units, default_protection, group_similar
from .target import check_multiple, damage, multiples_to_try, parse_target, solve

TARGET_DIMENSIONS = tuple(key for key in DIMENSIONS if key != "num_attention_heads")
"""What a target can move. Query heads follow their KV groups."""


_WORTH = 1.25
"""How much more a shape that the runtime likes best may be expected to hurt than one that it likes second best.

The better multiple saves the projection down a fifth of its bytes, a twentieth of the file: not worth a KV group.
"""


@dataclass(frozen=True)
class ShapeRequest:
    """What was asked for, before it is resolved.

    Args:
        shape: Dimensions that were asked for, by config key.
        target: Such as `"params=-15%"`; it moves the dimensions that `shape` does not name.
        intermediate_multiple: What MLP widths are kept to; None chooses it by the width.
        keep_first_layers: Layers at the beginning that always stay; None takes the default for the depth.
        keep_last_layers: Layers at the end that always stay; None takes the default for the depth.
        merge_key_value_heads: Merge KV heads into means instead of removing them; all query heads stay.
        allow_class_change: Shapes that the own class refuses may be written as another class that computes the same.
        prune: Dimensions that the target moves, each of them; None for those of all that `shape` does not name which
            hurt least.
        for_runtime: Runtime whose quantisations the MLP widths shall fit, one of `RUNTIMES`; None for no one's.
    """

    shape: Mapping[str, int]
    target: str | None = None
    intermediate_multiple: int | None = None
    keep_first_layers: int | None = None
    keep_last_layers: int | None = None
    merge_key_value_heads: bool = False
    allow_class_change: bool = False
    prune: tuple[str, ...] | None = None
    for_runtime: str | None = None

    def protection(self, num_layers: int) -> tuple[int, int]:
        """Return how many first and last layers always stay."""
        first, last = default_protection(num_layers)
        return (
            first if self.keep_first_layers is None else self.keep_first_layers,
            last if self.keep_last_layers is None else self.keep_last_layers,
        )


def resolve_shape(binding: Binding, request: ShapeRequest) -> dict[str, int]:
    """Return the complete new shape. Needs no weights.

    Args:
        binding: The model.
        request: What was asked for.

    Raises:
        ShapeError: The shape cannot be expressed, the target cannot be met, or nothing was asked for.
    """
    if not request.shape and not request.target:
        raise ShapeError(f"say what to shrink: one of {', '.join(binding.shape)}, or a target such as 'params=-15%'")
    if request.prune is not None and not request.target:
        raise ShapeError("prune says what a target may move, and there is none; add one, such as target='params=-15%'")
    wanted = dict(request.shape)
    if request.merge_key_value_heads:
        _check_merge(binding, request)
        wanted.setdefault("num_attention_heads", binding.shape["num_attention_heads"])
    check_shape(binding, wanted, allow_class_change=request.allow_class_change)
    width = binding.shape["intermediate_size"]
    multiples = multiples_to_try(width, request.intermediate_multiple, request.for_runtime)
    # A width that was asked for may be one that only the plainer quantisations fit; the plan's table has the cost.
    check_multiple(wanted, width, multiples[-1])
    first, last = request.protection(binding.shape["num_hidden_layers"])
    total = binding.shape["num_hidden_layers"]
    if first + last > total:
        raise ShapeError(
            f"keep_first_layers={first} and keep_last_layers={last} are more than the model's {total} layers"
        )
    if request.prune == ("num_hidden_layers",) and first + last == total:
        raise ShapeError(
            f"keep_first_layers={first} and keep_last_layers={last} leave none of {total} layers that may go; lower "
            "one of them, or let prune name another dimension"
        )
    if wanted.get("num_hidden_layers", total) < min(total, first + last):
        raise ShapeError(
            f"num_hidden_layers={wanted['num_hidden_layers']} is fewer than the {first} first and {last} last layers "
            "that are kept; lower keep_first_layers or keep_last_layers"
        )
    if request.target:
        target = parse_target(request.target, binding.num_parameters())
        if request.prune is not None:
            held = [key for key in TARGET_DIMENSIONS if key in binding.shape and key not in request.prune]
            wanted = {**{key: binding.shape[key] for key in held}, **wanted}
        least = first + last
        shapes = [solve(binding, target, wanted, multiples[-1], least, moved=request.prune or ())]
        for multiple in multiples[:-1]:
            with suppress(ShapeError):
                shapes.insert(0, solve(binding, target, wanted, multiple, least, moved=request.prune or ()))
        limit = _WORTH * min(damage(shape, binding.shape) for shape in shapes)
        return next(shape for shape in shapes if damage(shape, binding.shape) <= limit)
    shape = complete_shape(binding, wanted)
    group = binding.shape["num_attention_heads"] // binding.shape["num_key_value_heads"]
    if not request.merge_key_value_heads and shape["num_attention_heads"] > shape["num_key_value_heads"] * group:
        raise ShapeError(
            f"num_attention_heads={shape['num_attention_heads']} is more than the {group} query heads of each of the "
            f"{shape['num_key_value_heads']} KV groups that stay; merge_key_value_heads keeps all query heads"
        )
    if shape == binding.shape:
        raise ShapeError("the shape asked for is the model's own; nothing would change")
    return shape


def complete_shape(binding: Binding, shape: Mapping[str, int]) -> dict[str, int]:
    """Return a shape with every dimension in it; query heads follow their KV groups unless they are named."""
    sizes = binding.resized(shape)
    return {key: sizes[DIMENSIONS[key]] for key in binding.shape}


def _check_merge(binding: Binding, request: ShapeRequest) -> None:
    before, after = binding.shape["num_key_value_heads"], request.shape.get("num_key_value_heads")
    if after is None:
        raise ShapeError("merge_key_value_heads needs num_key_value_heads: how many heads the merged ones shall be")
    if after < before and before % after:
        near = [value for value in range(1, before) if before % value == 0]
        raise ShapeError(
            f"{before} KV heads cannot be merged into {after} evenly; "
            f"num_key_value_heads can be {' or '.join(map(str, near))}"
        )


def make_plan(
    *,
    model: str,
    revision: str | None,
    raw_config: Mapping[str, Any],
    config: Any,
    binding: Binding,
    shape: Mapping[str, int],
    request: ShapeRequest,
    scores: Mapping[str, torch.Tensor],
    settings: Mapping[str, Any],
    layers: tuple[int, ...] | None = None,
) -> Plan:
    """Choose what stays and write down what that changes.

    Args:
        model: Name or path of the source.
        revision: The source's commit, if it has one.
        raw_config: The source's config.json.
        config: The same, parsed by its class.
        binding: The model.
        shape: The complete new shape, from `resolve_shape`.
        request: What was asked for; its protected layers are kept.
        scores: Config key to importance: shape (layers,) for `num_hidden_layers`, (layers, units) for the others; and
            `key_value_similarity`, shape (layers, heads, heads), to merge by. Only what changes is needed.
        settings: How the scores were made; kept with the plan.
        layers: The layers that stay, where a removal was measured to choose them; None takes the highest scored.

    Raises:
        ShapeError: Too many layers are protected, or the config class refuses the result.
    """
    total = binding.shape["num_hidden_layers"]
    if shape["num_hidden_layers"] == total:
        layers = tuple(range(total))
    elif layers is None:
        first, last = request.protection(total)
        layers = choose_layers(scores["num_hidden_layers"], shape["num_hidden_layers"], first, last)
    units: dict[str, tuple[tuple[int, ...], ...]] = {}
    if shape["intermediate_size"] < binding.shape["intermediate_size"]:
        experts = binding.sizes.get("experts", 1)
        width = shape["intermediate_size"]
        units["intermediate_size"] = choose_units(scores["intermediate_size"], layers, width, experts=experts)
    merges = None
    if request.merge_key_value_heads:
        similarity = scores["key_value_similarity"]
        merges = tuple(group_similar(similarity[layer], shape["num_key_value_heads"]) for layer in layers)
    units.update(_choose_attention(binding, shape, layers, scores, merges))
    counts = binding.layer_parameters(binding.resized(shape))
    return Plan(
        model=model,
        revision=revision,
        model_type=binding.description.model_type,
        shape=dict(binding.shape),
        new_shape=dict(shape),
        layers=layers,
        units=units,
        config_changes=changed_keys(raw_config, edit_config(raw_config, config, binding, shape, layers)),
        num_parameters=binding.num_parameters(),
        new_num_parameters=binding.outer_parameters(binding.resized(shape)) + sum(counts[layer] for layer in layers),
        settings=dict(settings),
        merges=merges,
        inexact=tuple(binding.inexact(shape)),
    )


def _choose_attention(
    binding: Binding,
    shape: Mapping[str, int],
    layers: tuple[int, ...],
    scores: Mapping[str, torch.Tensor],
    merges: tuple[tuple[tuple[int, ...], ...], ...] | None,
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return the KV heads and the query heads that stay in each layer."""
    before = binding.shape
    if all(shape[key] == before[key] for key in ("num_key_value_heads", "num_attention_heads")) and merges is None:
        return {}
    if merges is not None:
        sources = merges
        kv = tuple(tuple(heads[0] for heads in layer) for layer in merges)
    else:
        kv = tuple(tuple(range(before["num_key_value_heads"])) for _ in layers)
        if shape["num_key_value_heads"] < before["num_key_value_heads"]:
            kv = choose_units(scores["num_key_value_heads"], layers, shape["num_key_value_heads"])
        sources = tuple(tuple((head,) for head in layer) for layer in kv)
    # Query head i reads KV head i // group: the order in which transformers repeats keys and values.
    group = before["num_attention_heads"] // before["num_key_value_heads"]
    readers = [[[h * group + i for h in heads for i in range(group)] for heads in layer] for layer in sources]
    count = shape["num_attention_heads"] // shape["num_key_value_heads"]
    heads = choose_heads(scores.get("num_attention_heads"), readers, layers, count)
    return {"num_key_value_heads": kv, "num_attention_heads": heads}
