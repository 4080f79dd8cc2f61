"""From the request to the complete new shape. Arithmetic over a config: it needs no weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..architectures.binding import Binding
from ..architectures.description import DIMENSIONS, EXPERTS, ROWS
from ..architectures.shape_check import check_shape
from ..core.limits import check_lengths
from ..errors import ShapeError
from .device_times import read_times
from .memory import Memory, kv_cache_bytes, stored_bytes
from .multiples import check_multiple, multiples_to_try
from .options import TARGET_DIMENSIONS, ShapeOptions
from .protection import first_reason
from .row_choices import RowChoices
from .runtime_check import RuntimeCheck
from .solving import damage, solve
from .target import Cost, Target, parse_target

_ACCEPTED_DAMAGE = 1.25
"""How much more expected damage a shape with the runtime's best multiple can have than one with its second best.

The better multiple saves a fifth of the bytes of the down projections, a twentieth of the file: not worth a KV group.
"""


def resolve_shape(
    binding: Binding,
    options: ShapeOptions,
    rows: RowChoices | None = None,
    removed: int = 0,
    *,
    may_stay: bool = False,
) -> dict[str, int]:
    """Return the complete new shape. Needs no weights.

    Args:
        binding: The model.
        options: The requested shape or target.
        rows: The sizes that the vocabulary can have; None where a target is not to change it.
        removed: Parameters that the model has lost already; a target counts them, too.
        may_stay: Whether the model's own shape is a request as well: where something else than the shape changes.

    Raises:
        ShapeError: The shape cannot be expressed, the runtime that it is for cannot run it, the target cannot be met,
            or nothing was requested.
    """
    if not options.shape and not options.target and not removed and not may_stay:
        raise ShapeError(f"say what to shrink: one of {', '.join(binding.shape)}, or a target such as 'params=-15%'")
    if options.prune is not None and not options.target:
        raise ShapeError(
            "prune names what a target changes, and there is no target; add one, such as target='params=-15%'"
        )
    requested = options.shape
    if options.prune is not None and (absent := [key for key in options.prune if key not in binding.shape]):
        raise ShapeError(
            f"prune names {absent[0]}, which cannot change for {binding.description.model_type}: "
            f"{binding.description.dimensions[absent[0]].fixed or 'the model has no such dimension'}"
        )
    if options.merge_key_value_heads:
        _check_merge(binding, options)
        requested.setdefault("num_attention_heads", binding.shape["num_attention_heads"])
    if options.merge_experts and EXPERTS not in binding.shape:
        raise ShapeError(f"merge_experts is for mixtures of experts, and {binding.description.model_type} has none")
    check_shape(binding, requested, allow_class_change=options.allow_class_change)
    if ROWS in requested and rows is not None:
        rows.check(requested[ROWS])
    width = binding.shape["intermediate_size"]
    multiples = multiples_to_try(width, options.intermediate_multiple, options.for_runtime)
    # A requested width is accepted when it fits the plain quantisations alone; the plan's table shows the cost.
    check_multiple(requested, width, multiples[-1])
    first, last = options.protection(binding.shape["num_hidden_layers"], binding.first_layers)
    total = binding.shape["num_hidden_layers"]
    if first + last > total:
        raise ShapeError(
            f"keep_first_layers={first} and keep_last_layers={last} protect more than the model's {total} layers"
            f"{first_reason(binding, first)}"
        )
    if tuple(options.prune or ()) == ("num_hidden_layers",) and first + last == total:
        raise ShapeError(
            f"keep_first_layers={first} and keep_last_layers={last} leave none of {total} layers to remove; lower "
            f"one of them, or let prune name another dimension{first_reason(binding, first)}"
        )
    if requested.get("num_hidden_layers", total) < min(total, first + last):
        raise ShapeError(
            f"num_hidden_layers={requested['num_hidden_layers']} is fewer than the {first} first and {last} last "
            f"layers that are protected; lower keep_first_layers or keep_last_layers{first_reason(binding, first)}"
        )
    runtime = RuntimeCheck(binding, options.for_runtime, (first, last))
    if options.target:
        target = target_of(binding, options, removed)
        if options.prune is not None:
            fixed = [key for key in TARGET_DIMENSIONS if key in binding.shape and key not in options.prune]
            requested = {**{key: binding.shape[key] for key in fixed}, **requested}
        how: dict[str, Any] = {
            "protected": first + last,
            "pruned": options.prune or (),
            "runtime": runtime,
            "rows": rows,
        }
        shapes = [solve(binding, target, requested, multiples[-1], **how)]
        for multiple in multiples[:-1]:
            with suppress(ShapeError):
                shapes.insert(0, solve(binding, target, requested, multiple, **how))
        limit = _ACCEPTED_DAMAGE * min(damage(shape, binding.shape, rows) for shape in shapes)
        found = next(shape for shape in shapes if damage(shape, binding.shape, rows) <= limit)
        _check_experts_dropped(binding, options, found)
        return found
    shape = complete_shape(binding, requested)
    group = binding.shape["num_attention_heads"] // binding.shape["num_key_value_heads"]
    if not options.merge_key_value_heads and shape["num_attention_heads"] > shape["num_key_value_heads"] * group:
        raise ShapeError(
            f"num_attention_heads={shape['num_attention_heads']} is more than the {group} query heads of each of the "
            f"{shape['num_key_value_heads']} retained KV groups; merge_key_value_heads retains all query heads"
        )
    if shape == binding.shape and not removed and not may_stay:
        raise ShapeError("the requested shape is the model's own; nothing would change")
    _check_experts_dropped(binding, options, shape)
    runtime.check(shape)
    return shape


def target_of(binding: Binding, options: ShapeOptions, removed: int = 0) -> Target:
    """Return the target of a request that has one.

    Args:
        binding: The model.
        options: The request.
        removed: Parameters that the model has lost already.

    Raises:
        ShapeError: It has another form, is not smaller than the model, or has to be measured.
        SourceError: The profile is damaged.
        RequestError: The profile is of another model or runtime, or the model cannot read as many tokens as a target
            on memory has room for.
    """
    assert options.target is not None
    memory, profile = Memory(stored_bytes(binding), options.context), options.profile

    def times(metric: str) -> tuple[Cost, float]:
        assert profile is not None
        found = read_times(Path(profile).expanduser(), binding, metric)
        return found, found.of(binding, binding.shape, 0)

    target = parse_target(
        options.target,
        binding.num_parameters() + removed,
        memory,
        kv_cache_bytes(binding, {}, memory.context, memory.parameter_bytes),
        None if profile is None else times,
    )
    if isinstance(target.cost, Memory):
        check_lengths(binding.config, "the model", context=options.context)
    return target


def complete_shape(binding: Binding, shape: Mapping[str, int]) -> dict[str, int]:
    """Return a shape with all dimensions; query heads follow their KV groups unless they are given."""
    sizes = binding.resized(shape)
    return {key: sizes[DIMENSIONS[key]] for key in binding.shape}


def _check_experts_dropped(binding: Binding, options: ShapeOptions, shape: Mapping[str, int]) -> None:
    if options.merge_experts and shape[EXPERTS] == binding.shape[EXPERTS]:
        raise ShapeError(
            f"merge_experts merges the experts that are dropped, and this shape retains all {shape[EXPERTS]}; request "
            f"fewer with {EXPERTS}, or with a target prune={EXPERTS}"
        )


def _check_merge(binding: Binding, options: ShapeOptions) -> None:
    before, after = binding.shape["num_key_value_heads"], options.shape.get("num_key_value_heads")
    if after is None:
        raise ShapeError("merge_key_value_heads needs num_key_value_heads: how many heads to merge into")
    if after < before and before % after:
        near = [value for value in range(1, before) if before % value == 0]
        raise ShapeError(
            f"{before} KV heads cannot be merged into {after} evenly; "
            f"num_key_value_heads can be {' or '.join(map(str, near))}"
        )
