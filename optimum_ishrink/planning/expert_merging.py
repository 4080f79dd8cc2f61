"""Which dropped experts are merged into which retained ones, and with which weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..report.plan import ExpertMerge

INEXACT = "dropped experts are merged into retained ones, which are weighted means now"
"""Why a model with merged experts is not the original without the dropped ones."""


def merge_dropped(
    retained: Sequence[int], similarity: torch.Tensor, frequency: torch.Tensor
) -> tuple[ExpertMerge, ...]:
    """Return what each retained expert of a layer is made of.

    Every dropped expert goes to the retained one that is most like it, with both weighted by how often the router
    picks them (M-SMoE, Li et al. 2023, arXiv:2310.01334). So any number of experts can meet in one, and an expert that
    nothing is like stays as it is.

    Args:
        retained: The retained experts, ascending; none in a layer that has no experts.
        similarity: Shape (experts, experts); higher is more alike.
        frequency: How often the router picks each expert, shape (experts,). Where it picks none of a group, the group
            is its retained expert alone.

    Returns:
        One entry for each retained expert, in order.
    """
    groups: dict[int, list[int]] = {expert: [] for expert in retained}
    for expert in range(len(similarity)) if groups else ():
        if expert not in groups:
            # `max` takes the first of equals, which makes the plan reproducible.
            groups[max(retained, key=lambda other: float(similarity[other, expert]))].append(expert)
    merges = []
    for expert, others in groups.items():
        counts = frequency[[expert, *others]].double()
        if not counts.any():
            counts[0] = 1
        merges.append(ExpertMerge((expert, *others), tuple((counts / counts.sum()).tolist())))
    return tuple(merges)
