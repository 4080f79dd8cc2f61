"""Re-fitting the experts of a layer: each on the tokens that the router sends to it, one after another.

The layer's routed output is a sum over the chosen experts, each scaled by its gate. So every expert in turn is a least
squares problem of its own: what it gives on the tokens that it reads, and what the layer still lacks there, is the
target of its projection. That makes up for narrower experts, and for dropped ones, whose tokens others read now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..architectures.axes import down_projection
from ..architectures.binding import Binding, BoundTensor
from ..architectures.slicing import Keep, new_name
from ..core.paging import kept, present
from ..core.processes import summed_count
from ..core.spool import States
from ..modeling.experts import FusedExperts, expert_inputs, gather_arguments, one_by_one
from ..report.compensation import ProjectionRepair
from .cut_layer import CutLayer
from .few_tokens import choose_weight, empty_folds


@dataclass(frozen=True)
class Routed:
    """What the experts of the cut layer read in one batch.

    Args:
        hidden: What enters them, shape (tokens, hidden).
        chosen: The chosen experts of each token, shape (tokens, top k).
        gates: Their weights, the same shape.
        missing: What the base's experts give and these do not, float32, shape (tokens, hidden).
    """

    hidden: torch.Tensor
    chosen: torch.Tensor
    gates: torch.Tensor
    missing: torch.Tensor


def block_of(layer: Any, experts: FusedExperts, layer_name: str) -> Any:
    """Return the module of a layer that holds router and experts.

    Args:
        layer: The layer.
        experts: Its experts.
        layer_name: The layer's name in the model.
    """
    inner = experts.name.removeprefix(f"{layer_name}.")
    return layer.get_submodule(inner.rpartition(".")[0])


def observe_routing(
    layer: CutLayer, hidden: torch.Tensor, blocks: tuple[Any, Any], experts: tuple[FusedExperts, FusedExperts]
) -> Routed:
    """Run a cut layer, and return what its experts read, and what the base's would add to what they give.

    Args:
        layer: The layer, attention and shared experts re-fitted.
        hidden: What enters it.
        blocks: The base's module of router and experts, and the cut model's.
        experts: The base's experts, and the cut model's.
    """
    with _calls(blocks[1]) as block, _calls(experts[1].module) as cut:
        layer.run(hidden)
    args, kwargs, _ = block[0]
    with _calls(experts[0].module) as base:
        blocks[0](*args, **kwargs)  # the same tokens through the base's router and experts
    args, kwargs, output = cut[0]
    entering, chosen, gates = (values.reshape(-1, values.shape[-1]) for values in gather_arguments(args, kwargs))
    missing = base[0][2].float() - output.float()
    return Routed(entering, chosen, gates, missing.reshape(-1, missing.shape[-1]))


@contextmanager
def _calls(module: Any) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any], Any]]]:
    """Record the arguments and the output of each call of a module."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
    handle = module.register_forward_hook(lambda _, *call: seen.append(call), with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def refit_experts(
    experts: FusedExperts,
    batches: Sequence[Routed],
    folds: Sequence[int],
    number_of_folds: int,
    rank: int | None,
    *,
    shared: bool = False,
) -> dict[int, tuple[torch.Tensor, ProjectionRepair]]:
    """Re-fit the projections of a layer's experts in turn, in place.

    Args:
        experts: The cut model's experts; their weights are replaced.
        batches: What they read; what is missing becomes less.
        folds: The fold of each batch.
        number_of_folds: Number of folds.
        rank: Maximum rank of a weight's change; None sets no limit.
        shared: Whether each process has a part of the batches.

    Returns:
        For each expert its new weight, float64, shape (out, in), and what became of it, without a name.
    """
    found: dict[int, tuple[torch.Tensor, ProjectionRepair]] = {}
    start: float | None = None
    for expert in range(len(experts.weight)):
        weight = experts.matrix(expert).clone()
        tokens = sum(int((batch.chosen == expert).sum()) for batch in batches)
        if shared:
            tokens = summed_count(tokens, weight.device)
        if not tokens:
            continue  # no text says anything about an expert that none of it is routed to
        text = empty_folds(weight, number_of_folds, tokens, rank, shared=shared)
        reads: list[tuple[torch.Tensor, torch.Tensor]] = []
        for fold, batch in zip(folds, batches, strict=True):
            token, place = torch.where(batch.chosen == expert)
            inputs = expert_inputs(experts, expert, batch.hidden[token]) if len(token) else weight.new_zeros(0, 1)
            scaled = inputs.float() * batch.gates[token, place].float()[:, None]
            reads.append((token, scaled))
            if len(token):
                text[fold].add(scaled, scaled @ weight.float().T + batch.missing[token])
        solved, ridge, error, new_error = choose_weight(text, weight, start, rank, shared=shared)
        start = start if ridge is None else ridge
        found[expert] = (solved, ProjectionRepair("", ridge, error, new_error))
        if ridge is None:
            continue
        used = solved.to(weight.dtype)
        target = experts.weight.detach()[expert]
        target.copy_(used.T if experts.transposed else used)
        change = (used.float() - weight.float()).T
        for batch, (token, scaled) in zip(batches, reads, strict=True):
            if len(token):
                batch.missing[token] -= scaled @ change
    return found


def stored_weights(
    binding: Binding,
    layer: int,
    position: int,
    retained: Keep,
    experts: FusedExperts,
    refitted: Mapping[int, tuple[torch.Tensor, ProjectionRepair]],
) -> tuple[dict[str, torch.Tensor], list[ProjectionRepair]]:
    """Return the new weights by their names in the checkpoint, in its layout, and what became of each expert.

    Args:
        binding: The base's binding.
        layer: Index of the layer in the base.
        position: Its index in the cut model.
        retained: What is retained in the layer.
        experts: The cut model's experts, with the new weights.
        refitted: What `refit_experts` returned.
    """
    kept = list(retained.get("experts", range(binding.sizes["experts"])))
    own = [bound for bound in binding.layer_tensors(layer) if bound.counts("ffn") and not bound.counts("shared")]
    alone = {bound.expert: bound for bound in own if bound.expert is not None and _goes_down(bound)}
    weights: dict[str, torch.Tensor] = {}
    repairs: list[ProjectionRepair] = []
    if alone:
        for expert, (weight, repair) in refitted.items():
            name = new_name(alone[kept[expert]], position, retained)
            repairs.append(ProjectionRepair(name, repair.ridge, repair.error, repair.new_error))
            if repair.ridge is not None:
                weights[name] = weight
        return weights, repairs
    bound, transposed = down_projection([each for each in own if len(each.axes) == 3])
    name = bound.in_layer(position)
    whole = experts.weight.detach().double().clone()
    for expert, (weight, repair) in refitted.items():
        repairs.append(ProjectionRepair(f"{name}[{expert}]", repair.ridge, repair.error, repair.new_error))
        if repair.ridge is not None:
            whole[expert] = weight.T if experts.transposed else weight
    if any(repair.ridge is not None for repair in repairs):
        weights[name] = whole if transposed == experts.transposed else whole.transpose(1, 2)
    return weights, repairs


def _goes_down(bound: BoundTensor) -> bool:
    """Whether the matrix of one expert goes from its neurons to the hidden size."""
    return len(bound.axes) == 2 and any("ffn" in section.factors for section in bound.axes[1])


def repair_experts(
    layer: CutLayer,
    models: tuple[Any, Any],
    names: tuple[str, str],
    experts: tuple[FusedExperts, FusedExperts],
    current: States,
    refit: Callable[[FusedExperts, Sequence[Routed]], dict[int, tuple[torch.Tensor, ProjectionRepair]]],
) -> tuple[dict[int, tuple[torch.Tensor, ProjectionRepair]], States]:
    """Re-fit the experts of one layer, and return what became of them and what the repaired layer gives.

    Args:
        layer: The layer, with all other projections re-fitted.
        models: The base, and the cut model.
        names: The layer's name in both.
        experts: Its experts in both.
        current: What enters the cut layer, one tensor per batch.
        refit: Re-fits them on what they read.
    """
    blocks = block_of(layer.base, experts[0], names[0]), block_of(layer.cut, experts[1], names[1])
    with one_by_one(models[1]):
        batches = [observe_routing(layer, hidden, blocks, experts) for hidden in current]
        present(layer.cut)
        found = refit(experts[1], batches)
        return found, kept(models[0], (layer.run(hidden) for hidden in current))
