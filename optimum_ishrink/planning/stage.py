"""The stage that plans: from scores and a shape to what is retained, and what that changes in the config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..architectures.axes import holds_units
from ..architectures.binding import Binding
from ..architectures.composite import PART_KEYS, text_config
from ..architectures.config_edit import changed_keys, check_edited, edit_config
from ..architectures.description import EXPERTS, LAYERS, NEURONS, ROWS
from ..architectures.layer_kinds import mixes_kinds
from ..architectures.layer_patterns import check_pattern, examples
from ..architectures.model_class import parse_config
from ..checkpoint.source import Source
from ..report.plan import Choice, Plan
from .expert_merging import INEXACT, merge_dropped
from .options import ShapeOptions
from .protection import first_reason, removable_layers
from .row_choices import RowChoices
from .runtime_check import RuntimeCheck
from .selection import choose_heads, choose_layers, choose_units, group_similar
from .shape import resolve_shape

UnitsByLayer = tuple[tuple[int, ...], ...]
"""For each retained layer, the indices of its retained units."""


def check_shape(
    source: Source,
    options: ShapeOptions,
    rows: RowChoices | None = None,
    removed: int = 0,
    *,
    may_stay: bool = False,
) -> dict[str, int]:
    """Return the complete new shape, once it is known that the config class accepts it. Needs no weights.

    Args:
        source: The model.
        options: The requested shape or target.
        rows: The sizes that the vocabulary can have; None where a target is not to change it.
        removed: Parameters that the model has lost already; a target counts them, too.
        may_stay: Whether the model's own shape is a request as well.

    Raises:
        ShapeError: The shape cannot be expressed, or the target cannot be met.
    """
    shape = resolve_shape(source.binding, options, rows, removed, may_stay=may_stay)
    # The config class can refuse more than the rules do: ask it before the long work, with any layers.
    count = shape[LAYERS]
    raw = without_ids_beyond(source.raw_config, shape[ROWS])
    removable = layers_to_remove(source, options, shape)
    check_pattern(source.binding, count, removable)
    first, *others = examples(source.binding, count, removable)
    edited = edit_config(raw, source.config, source.binding, shape, first)
    check_edited(edited, source.binding, shape, first)
    if mixes_kinds(source.binding):  # other layers may be of another kind
        for layers in others:
            edit_config(raw, source.config, source.binding, shape, layers)
    return shape


def without_ids_beyond(raw: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return a config whose ids are those of tokens that a smaller vocabulary can have.

    Tokens get their new ids once it is known which of them stay; config classes refuse ids that are out of range, and
    some refuse none.

    Args:
        raw: The config.
        rows: Rows of the smaller vocabulary.
    """

    def inside(value: Any) -> Any:
        if isinstance(value, list):
            return [inside(number) for number in value]
        return min(value, rows - 1) if isinstance(value, int) else value

    def within(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: within(value)
            if key in PART_KEYS and isinstance(value, Mapping)
            else inside(value)
            if key.endswith("_token_id")
            else value
            for key, value in values.items()
        }

    return within(raw)


def layers_to_remove(source: Source, options: ShapeOptions, shape: Mapping[str, int]) -> range:
    """Return the layers that can be removed.

    Args:
        source: The model.
        options: Which layers are protected.
        shape: The complete new shape.

    Raises:
        ShapeError: Too many layers are protected.
    """
    total = source.binding.shape[LAYERS]
    if shape[LAYERS] == total:
        return range(0)
    first, last = options.protection(total, source.binding.first_layers)
    return removable_layers(total, shape[LAYERS], first, last, first_reason(source.binding, first))


def plan(
    source: Source,
    options: ShapeOptions,
    shape: Mapping[str, int],
    scores: Mapping[str, torch.Tensor],
    choice: Choice,
    *,
    layers: tuple[int, ...] | None = None,
    name: str | None = None,
) -> Plan:
    """Choose what is retained, and record what that changes.

    Args:
        source: The model.
        options: The requested shape or target, and which layers are protected.
        shape: The complete new shape, from `check_shape`.
        scores: Config key to importance: shape (layers,) for `num_hidden_layers`, (layers, units) for the others; and
            `key_value_similarity`, shape (layers, heads, heads), or `expert_similarity`, shape (layers, experts,
            experts), and `expert_frequency`, shape (layers, experts), to merge by. Only dimensions that change are
            needed.
        choice: How the scores were computed; the plan records it.
        layers: The retained layers, where removals were measured to choose them; None retains the highest scored.
        name: What the plan calls the model; None takes the source's own name.

    Raises:
        ShapeError: Too many layers are protected, the config class refuses the result, or the runtime that it is for
            would run its layers otherwise.
    """
    binding = source.binding
    total = binding.shape[LAYERS]
    runtime = RuntimeCheck(binding, options.for_runtime)
    if shape[LAYERS] == total:
        layers = tuple(range(total))
    elif layers is None:
        protected = options.protection(total, binding.first_layers)
        layers = choose_layers(scores[LAYERS], shape[LAYERS], *protected, runtime.order(shape))
    merges = None
    if options.merge_key_value_heads:
        similarity = shared_scores(binding, layers, scores["key_value_similarity"])
        merges = tuple(group_similar(similarity[layer], shape["num_key_value_heads"]) for layer in layers)
    counts = binding.layer_parameters(binding.resized(shape))
    edited = edit_config(source.raw_config, source.config, binding, shape, layers)
    experts = _choose_experts(binding, shape, layers, scores)
    merged = None
    if options.merge_experts:
        alike, picked = scores["expert_similarity"], scores["expert_frequency"]
        merged = tuple(
            merge_dropped(row, alike[layer], picked[layer])
            for layer, row in zip(layers, experts[EXPERTS], strict=True)
        )
    runtime.check_layers(shape, layers, text_config(parse_config(edited)))
    return Plan(
        model=source.display_name if name is None else name,
        revision=source.revision,
        model_type=binding.description.model_type,
        shape=dict(binding.shape),
        new_shape=dict(shape),
        layers=layers,
        units={
            **experts,
            **_choose_neurons(binding, shape, layers, scores, experts.get(EXPERTS)),
            **_choose_attention(binding, shape, layers, scores, merges),
        },
        config_changes=changed_keys(source.raw_config, edited),
        num_parameters=binding.num_parameters(),
        new_num_parameters=binding.outer_parameters(binding.resized(shape)) + sum(counts[layer] for layer in layers),
        choice=choice,
        merges=merges,
        inexact=(*binding.inexact(shape), *([] if merged is None else [INEXACT])),
        expert_merges=merged,
    )


def _choose_experts(
    binding: Binding, shape: Mapping[str, int], layers: tuple[int, ...], scores: Mapping[str, torch.Tensor]
) -> dict[str, UnitsByLayer]:
    """Return the retained experts of each layer, none for a layer without experts; empty when all are retained."""
    if shape.get(EXPERTS) == binding.shape.get(EXPERTS):
        return {}
    # A router that chooses among groups first has the same number of experts in each of them.
    groups = binding.expert_groups
    chosen = choose_units(scores[EXPERTS], layers, shape[EXPERTS] // groups, groups=groups)
    mixed = {bound.layer for bound in binding.tensors.values() if holds_units(bound, EXPERTS)}
    return {EXPERTS: tuple(kept if layer in mixed else () for layer, kept in zip(layers, chosen, strict=True))}


def _choose_neurons(
    binding: Binding,
    shape: Mapping[str, int],
    layers: tuple[int, ...],
    scores: Mapping[str, torch.Tensor],
    experts: UnitsByLayer | None,
) -> dict[str, UnitsByLayer]:
    """Return the retained MLP neurons of each layer, those of retained experts; empty when all are retained."""
    width = binding.shape[NEURONS]
    if shape[NEURONS] == width:
        return {}
    chosen = choose_units(scores[NEURONS], layers, shape[NEURONS], groups=binding.mlps)
    if experts is not None:
        shared = range(binding.sizes["experts"], binding.mlps)
        # A layer without experts retains none of them, and may have neurons all the same.
        kept = [{*row, *shared} if row else range(binding.mlps) for row in experts]
        chosen = tuple(
            tuple(unit for unit in units if unit // width in kept[place]) for place, units in enumerate(chosen)
        )
    return {NEURONS: chosen}


def shared_scores(binding: Binding, layers: Sequence[int], scores: torch.Tensor) -> torch.Tensor:
    """Return scores of KV heads, summed over a layer and the layers that read its keys and values.

    These layers retain the same heads.

    Args:
        binding: The model.
        layers: The retained layers.
        scores: Shape (layers, heads), or any with the layers first.
    """
    if not binding.kv_sources:
        return scores
    summed = scores.clone()
    for source in set(binding.kv_sources.values()):
        readers = [layer for layer in layers if binding.kv_sources.get(layer, layer) == source]
        summed[readers] = scores[readers].sum(dim=0)
    return summed


def _choose_attention(
    binding: Binding,
    shape: Mapping[str, int],
    layers: tuple[int, ...],
    scores: Mapping[str, torch.Tensor],
    merges: tuple[UnitsByLayer, ...] | None,
) -> dict[str, UnitsByLayer]:
    """Return the retained KV heads and query heads of each layer; empty when all are retained."""
    before = binding.shape
    if all(shape[key] == before[key] for key in ("num_key_value_heads", "num_attention_heads")) and merges is None:
        return {}
    if merges is not None:
        sources = merges
        kv = tuple(tuple(heads[0] for heads in layer) for layer in merges)
    else:
        kv = tuple(tuple(range(before["num_key_value_heads"])) for _ in layers)
        if shape["num_key_value_heads"] < before["num_key_value_heads"]:
            shared = shared_scores(binding, layers, scores["num_key_value_heads"])
            kv = choose_units(shared, layers, shape["num_key_value_heads"])
        sources = tuple(tuple((head,) for head in layer) for layer in kv)
    # Query head i reads KV head i // group: the order in which transformers repeats keys and values.
    group = before["num_attention_heads"] // before["num_key_value_heads"]
    readers = [[[h * group + i for h in heads for i in range(group)] for heads in layer] for layer in sources]
    count = shape["num_attention_heads"] // shape["num_key_value_heads"]
    heads = choose_heads(scores.get("num_attention_heads"), readers, layers, count)
    return {"num_key_value_heads": kv, "num_attention_heads": heads}
