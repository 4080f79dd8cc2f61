"""How alike the experts of a layer are, and how often each is picked: what experts are merged by."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch

from ..architectures.binding import Binding
from ..core.finite import ADVICE
from ..core.processes import summed
from ..core.progress import progress_bar
from ..modeling.base import base_of
from ..modeling.experts import expert_modules, fused_experts, gather_arguments
from .batches import Batch, Batches
from .units import check_finite

SIMILARITY, FREQUENCY = "expert_similarity", "expert_frequency"
"""What `compare_experts` calls its two results."""


@torch.no_grad()
def compare_experts(
    model: Any, binding: Binding, windows: torch.Tensor, *, batch_size: int = 4
) -> dict[str, torch.Tensor]:
    """Compare the experts of each layer by what they make of the same tokens.

    Experts that were trained apart have their neurons in any order, so their weights say little about how alike they
    are; their outputs do. Every expert reads every token here, routed to it or not, because means over different
    tokens differ already where two experts are the same (HC-SMoE, Chen et al. 2024, arXiv:2410.08589). That takes as
    many times the work of a layer's experts as the model has experts for each that a token is routed to.

    Args:
        model: The loaded model.
        binding: Its binding.
        windows: Token ids, shape (windows, length).
        batch_size: Windows run at once.

    Returns:
        `expert_similarity`, shape (layers, experts, experts): minus the distance of the experts' mean outputs.
        `expert_frequency`, shape (layers, experts): the number of tokens that are routed to each. Both float32 on the
        CPU, and zero in a layer without experts.

    Raises:
        DataError: An output is not finite; the message names the layer.
    """
    layers, experts = binding.sizes["layers"], binding.sizes["experts"]
    sums = {
        layer: torch.zeros(experts, fused.matrix(0).shape[0], device=model.device)
        for layer, fused in fused_experts(model, binding).items()
    }
    routed = torch.zeros(layers, experts, device=model.device)
    counted = torch.zeros(1, device=model.device)
    inside = False

    def observe(batch: Batch, layer: int, module: Any, *arguments: torch.Tensor) -> None:
        nonlocal inside
        if inside:  # called by this function
            return
        inside = True
        hidden, chosen, _ = arguments
        text = batch.mask.flatten().bool()
        hidden, chosen = hidden.reshape(len(text), -1)[text], chosen.reshape(len(text), -1)[text]
        routed[layer] += torch.bincount(chosen.flatten(), minlength=experts).to(routed)
        alone = hidden.new_ones(len(hidden), 1)
        for expert in range(experts):
            output = module(hidden, torch.full_like(chosen[:, :1], expert), alone)
            sums[layer][expert] += output.float().sum(dim=0)
        inside = False

    batches = Batches(windows, None, batch_size, model.device)
    with ExitStack() as stack:
        current: list[Batch] = []
        for layer, module in expert_modules(model, binding).items():

            def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int = layer) -> None:
                observe(current[0], layer, module, *gather_arguments(args, kwargs))

            handle = module.register_forward_pre_hook(before, with_kwargs=True)
            stack.callback(handle.remove)
        advance = stack.enter_context(progress_bar("similarity of experts", len(batches)))
        for batch in batches:
            current[:] = [batch]
            base_of(model)(input_ids=batch.input_ids, attention_mask=batch.mask, use_cache=False)
            counted += batch.tokens
            advance(len(batch.input_ids))
    tokens = summed(counted).clamp_min(1)
    similarity = torch.zeros(layers, experts, experts)
    for layer, total in sums.items():
        # Not by a matrix product, which would lose the distance of two that are nearly the same.
        means = summed(total) / tokens
        similarity[layer] = -torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist").cpu()
    check_finite({"experts to merge": similarity}, f"; {ADVICE}")
    return {SIMILARITY: similarity, FREQUENCY: summed(routed).cpu()}
