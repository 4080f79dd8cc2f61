"""Closed-form repair: the projections that read what was cut are re-fit by ridge regression, layer by layer.

What is retained of a layer's neurons (or heads) is fitted to produce what the whole layer produced. That is linear
least squares in the weights of the projection, so forward passes are enough. Each layer is fitted on the output of the
already cut and repaired layers below it, and half of its target is the base model's own residual stream: so it makes
up for the errors of the layers below as well as for its own.

The cut layers are run as the base's own layers with the removed channels left unread, which is the same computation:
no second model is in memory. Only merged KV heads and experts, which are not the base's with something left out, need
the cut model itself.

This file walks through the layers; `sites` names the projections, `cut_layer` runs a layer, `projection_refit` re-fits
a projection, and `least_squares` and `few_tokens` hold the mathematics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ..architectures.axes import layer_module
from ..architectures.binding import Binding
from ..architectures.description import EXPERTS, NEURONS, TOP_K
from ..core.paging import kept, present
from ..core.processes import process_count, process_share
from ..core.progress import progress_bar
from ..core.spool import States
from ..errors import DataError
from ..modeling.base import layers_of
from ..modeling.experts import fused_experts
from ..modeling.layerwise import enter_layers, run_span
from ..report.compensation import ProjectionRepair
from ..report.plan import Plan
from .cut_layer import CutLayer
from .expert_refit import repair_experts, stored_weights
from .folds import check_windows, make_folds
from .projection_refit import ProjectionRefit
from .repair_progress import Finished, RepairProgress
from .sites import make_site, sites_to_refit
from .units import retained_units


def needs_cut_model(binding: Binding, plan: Plan) -> bool:
    """Whether the cut layers are something else than the base's with channels left unread.

    Args:
        binding: The base's binding.
        plan: The plan.
    """
    return plan.merges is not None or _changes_experts(binding, plan)


def _changes_experts(binding: Binding, plan: Plan) -> bool:
    """Whether layers route to fewer experts, or to narrower ones."""
    routed = any(plan.new_shape.get(key) != plan.shape.get(key) for key in (EXPERTS, TOP_K))
    return routed or (NEURONS in plan.units and binding.mlps > 1)


@torch.no_grad()
def compensate(
    base: Any,
    binding: Binding,
    plan: Plan,
    windows: torch.Tensor,
    write: Callable[[str, torch.Tensor], None],
    *,
    kinds: torch.Tensor | None = None,
    cut_model: Any = None,
    batch_size: int = 4,
    rank: int | None = None,
    experts: bool = True,
    progress: RepairProgress | None = None,
    shared: bool = False,
) -> list[ProjectionRepair]:
    """Repair a cut checkpoint, from the first layer to the last.

    In memory at once: the base, the hidden states of all windows for base and cut model, what enters one projection,
    and that projection's sums.

    Args:
        base: The base model.
        binding: The base's binding.
        plan: The plan that was cut by.
        windows: Calibration windows, token ids, shape (windows, length).
        write: Takes each new weight, by its name in the new checkpoint: float64, in the file's layout.
        kinds: For each window the number of its source, shape (windows,). Each kind of text is held out in turn to
            choose the ridge, so that what fits one kind at the expense of another is not chosen. With one kind alone,
            every fourth window is.
        cut_model: The cut model, on the base's device and in its dtype, where `needs_cut_model` says so.
        batch_size: Windows run at once.
        rank: Maximum rank of a weight's change; None sets no limit.
        experts: Whether experts are re-fitted, too, where they are fewer or narrower.
        progress: Where finished layers are stored; None stores none.
        shared: Whether all processes call this, and share the windows.

    Returns:
        What became of each projection.

    Raises:
        DataError: There are too few windows to hold any out, or activations that are not finite; the message names
            the layer.
    """
    processes = process_count() if shared else 1
    check_windows(len(windows), least=processes)
    batch_size = min(batch_size, len(windows) // processes)  # so that each process has a batch
    folds = make_folds(len(windows), kinds)
    batches = [
        (fold, windows[rows][start : start + batch_size])
        for fold, rows in enumerate(folds)
        for start in range(0, len(rows), batch_size)
    ]
    if shared:
        batches = list(process_share(batches))
    refit = ProjectionRefit(base, [fold for fold, _ in batches], len(folds), windows.numel(), write, rank, shared)
    reference, calls = enter_layers(base, binding, [ids for _, ids in batches])
    changed = experts and cut_model is not None and _changes_experts(binding, plan)
    fused = (fused_experts(base, binding), fused_experts(cut_model, binding)) if changed else ({}, {})
    layers = layers_of(base, binding)

    def through(states: States, span: Sequence[int]) -> States:
        return run_span(base, [layers[index] for index in span], [calls[index] for index in span], states)

    ends = [*plan.layers[1:], len(layers)]
    finished = None if progress is None else progress.read()
    if finished is None:
        reference = through(reference, range(plan.layers[0]))
        finished = Finished(0, reference, reference, [], {})
    first, reference, current, repairs, memory = finished
    refit.recall(memory)
    del finished
    with progress_bar("compensation", len(plan.layers)) as advance:
        advance(first)
        for position, layer in list(enumerate(plan.layers))[first:]:
            dropped = range(layer + 1, ends[position])
            after = through(reference, [layer])
            beyond = through(after, dropped) if dropped else after
            place = layer_module(binding, layer, position)
            cut = None if cut_model is None else present(cut_model.get_submodule(place))
            retained = retained_units(binding, plan, position)
            sites = [
                make_site(present(layers[layer]), cut, bound, binding, retained, absorbs=absorbs)
                for bound, absorbs in sites_to_refit(binding, plan, layer, dropped=bool(dropped))
            ]
            cut_layer = CutLayer(layers[layer], cut, calls[layer])
            entering = current
            if not sites and not (changed and layer in fused[0]):
                same = current is reference
                current = after if same else kept(base, (cut_layer.run(hidden) for hidden in current))
            reference = beyond  # what entered the base's layer is not needed again, and is as large as the rest
            for number, site in enumerate(sites):
                last = number == len(sites) - 1
                name = site.bound.in_layer(position)
                goal = beyond if site.absorbs else after
                span = partial(through, span=dropped if site.absorbs else ())
                try:
                    repair, outputs = refit(cut_layer, site, name, current, goal, span, last=last)
                except DataError as error:
                    raise type(error)(f"layer {layer}, {site.name}: {error}") from None
                repairs.append(repair)
                if last:
                    current = outputs
            if changed and layer in fused[0]:
                found, current = repair_experts(
                    cut_layer,
                    (base, cut_model),
                    (layer_module(binding, layer), layer_module(binding, layer, position)),
                    (fused[0][layer], fused[1][position]),
                    entering,
                    refit.experts,
                )
                weights, more = stored_weights(binding, layer, position, retained, fused[1][position], found)
                for name, weight in weights.items():
                    write(name, weight)
                repairs += more
            if progress is not None:
                progress.write(Finished(position + 1, reference, current, repairs, refit.memory()))
            advance(1)
    return repairs
