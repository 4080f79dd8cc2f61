"""The tables of a plan: in the terminal and, from the same rows, in the card."""

from __future__ import annotations

from collections.abc import Iterable

from ..core.table import Row
from .plan import Plan
from .tied_head import HeadRecord


def spans(indices: Iterable[int]) -> str:
    """Return indices as ranges: `1-3, 7`."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


def shape_rows(plan: Plan) -> list[Row]:
    """Return (dimension, before, after, removed) for every dimension, and for the parameters."""
    rows: list[Row] = []
    for key, before in plan.shape.items():
        after = plan.new_shape[key]
        if before == after:
            what = "nothing"
        elif key == "num_hidden_layers":
            what = f"layer{'s' if before - after > 1 else ''} {spans(set(range(before)) - set(plan.layers))}"
        elif key == "num_key_value_heads":
            what = f"{before - after} KV groups of each layer, with their query heads"
            if plan.merges is not None:
                what = f"merged {before // after} to 1 in each layer; all query heads are retained"
        elif key == "num_attention_heads":
            what = f"{before - after} query heads of each layer"
        elif key == "num_experts":
            some = f"{before - after} expert{'s' if before - after > 1 else ''}"
            what = f"{some} of each layer that has any ({1 - after / before:.1%})"
            if plan.expert_merges is not None:
                what += ", merged into those that stay"
        elif key == "num_experts_per_tok":
            what = f"every token is routed to {before - after} fewer"
        elif key == "vocab_size":
            what = f"{before - after:,} rows ({1 - after / before:.1%})"
        else:
            what = f"{before - after} neurons of each layer ({1 - after / before:.1%})"
        rows.append((key, f"{before:,}", f"{after:,}", what))
    if plan.tied_head is not None and plan.tied_head.tied:
        rows.append(("head", "its own", "the embedding", f"{plan.tied_head.num_parameters:,} parameters"))
    rows.append(
        ("parameters", f"{plan.num_parameters:,}", f"{plan.new_num_parameters:,}", f"{plan.removed_share:.2%} of all")
    )
    return rows


SHAPE_HEADER: Row = ("dimension", "before", "after", "removed")


def layer_rows(plan: Plan) -> list[Row]:
    """Return (layer, KV groups, query heads, experts where there are any, neurons removed) for every base layer."""
    rows: list[Row] = []
    position = {layer: i for i, layer in enumerate(plan.layers)}
    for layer in range(plan.shape["num_hidden_layers"]):
        if layer not in position:
            rows.append((str(layer), "whole layer", *("",) * (len(layer_header(plan)) - 2)))
            continue
        neurons = plan.shape["intermediate_size"] - plan.new_shape["intermediate_size"]
        groups = spans(_removed(plan, "num_key_value_heads", position[layer]))
        if plan.merges is not None:
            groups = "merged " + ", ".join("+".join(map(str, heads)) for heads in plan.merges[position[layer]])
        heads = spans(_removed(plan, "num_attention_heads", position[layer]))
        experts = (_removed_experts(plan, position[layer]),) if "num_experts" in plan.shape else ()
        rows.append((str(layer), groups or "none", heads or "none", *experts, f"{neurons:,}" if neurons else "none"))
    return rows


def _removed_experts(plan: Plan, position: int) -> str:
    if "num_experts" in plan.units and not plan.units["num_experts"][position]:
        return "has none"
    if plan.expert_merges is not None:
        groups = [merge.experts for merge in plan.expert_merges[position] if len(merge.experts) > 1]
        return "merged " + ", ".join("+".join(map(str, experts)) for experts in groups)
    return spans(_removed(plan, "num_experts", position)) or "none"


def _removed(plan: Plan, key: str, position: int) -> set[int]:
    return set(range(plan.shape[key])) - set(plan.units[key][position]) if key in plan.units else set()


def layer_header(plan: Plan) -> Row:
    """Return the header of `layer_rows`.

    Args:
        plan: The plan.
    """
    experts = ("experts removed",) if "num_experts" in plan.shape else ()
    return ("layer", "KV groups removed", "query heads removed", *experts, "neurons removed")


def config_rows(plan: Plan) -> list[Row]:
    """Return (config key, before, after) for every key of config.json that changes."""
    return [
        (key, "absent" if before is None else str(before), str(after))
        for key, (before, after) in plan.config_changes.items()
    ]


def head_line(head: HeadRecord) -> str:
    """Return how far a head is from the embedding, and what was made of it, as a sentence.

    Args:
        head: How far it is.
    """
    found = f"{head.head} and {head.embedding} are {head.describe()}"
    if not head.tied:
        return f"{found}. --tie-embeddings would remove {head.num_parameters:,} parameters."
    if head.same:
        return f"{found}. The head is tied to the embedding."
    levels = f"{head.embedding_levels:.1f} in the embedding and {head.head_levels:.1f} in the head"
    return (
        f"{found}. Both are {head.retained} now: of 16 consecutive weights, {levels} are different on average, and "
        "the less coarsely quantised one stays; where they are alike, the embedding does."
    )


CONFIG_HEADER: Row = ("config.json", "before", "after")
