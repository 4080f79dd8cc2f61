"""The plan: which shape, which layers, which units, and what that does to the config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..architectures import Binding, check_shape
from ..artifacts import Plan
from ..errors import ShapeError
from .config_edit import changed_keys, edit_config
from .selection import choose_layers, choose_units, default_protection
from .target import check_multiple, default_multiple, parse_target, solve


@dataclass(frozen=True)
class ShapeRequest:
    """What was asked for, before it is resolved.

    Args:
        shape: Dimensions that were asked for, by config key.
        target: Such as `"params=-15%"`; it moves the dimensions that `shape` does not name.
        intermediate_multiple: What MLP widths are kept to; None chooses it by the width.
        keep_first_layers: Layers at the beginning that always stay; None takes the default for the depth.
        keep_last_layers: Layers at the end that always stay; None takes the default for the depth.
    """

    shape: Mapping[str, int]
    target: str | None = None
    intermediate_multiple: int | None = None
    keep_first_layers: int | None = None
    keep_last_layers: int | None = None

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
    check_shape(binding, request.shape)
    width = binding.shape["intermediate_size"]
    multiple = request.intermediate_multiple or default_multiple(width)
    check_multiple(request.shape, width, multiple)
    first, last = request.protection(binding.shape["num_hidden_layers"])
    if request.target:
        target = parse_target(request.target, binding.num_parameters())
        return solve(binding, target, request.shape, multiple, first + last)
    shape = {**binding.shape, **request.shape}
    if shape == binding.shape:
        raise ShapeError("the shape asked for is the model's own; nothing would change")
    gone, free = binding.shape["num_hidden_layers"] - shape["num_hidden_layers"], shape["num_hidden_layers"]
    if gone and free < first + last:
        raise ShapeError(
            f"num_hidden_layers={free} is fewer than the {first} first and {last} last layers that are kept; "
            "lower keep_first_layers or keep_last_layers"
        )
    return shape


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
        scores: Config key to importance: shape (layers,) for `num_hidden_layers`, (layers, units) for the others. Only
            the dimensions that change are needed.
        settings: How the scores were made; kept with the plan.

    Raises:
        ShapeError: Too many layers are protected, or the config class refuses the result.
    """
    total = binding.shape["num_hidden_layers"]
    layers = tuple(range(total))
    if shape["num_hidden_layers"] < total:
        first, last = request.protection(total)
        layers = choose_layers(scores["num_hidden_layers"], shape["num_hidden_layers"], first, last)
    units = {}
    for key in ("num_key_value_heads", "intermediate_size"):
        if key not in shape:
            continue
        if shape[key] < binding.shape[key]:
            units[key] = choose_units(scores[key], layers, shape[key])
        else:
            units[key] = tuple(tuple(range(shape[key])) for _ in layers)
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
        new_num_parameters=binding.num_parameters(shape),
        settings=dict(settings),
    )
