"""The loss of one batch from its last hidden states, and the gradient there."""

from __future__ import annotations

from typing import Any

import torch

from ..core.device import to_device
from ..modeling.head import Head, chunked_sum
from .batches import Batch
from .changes import sampled_loss


def backward_from(model: Any, batch: Batch, output: Any, *, seed: int | None) -> float:
    """Run one batch backward from its last hidden states, and return its loss.

    At most one chunk of logits is in memory at once.

    Args:
        model: The model; the weights of its head take no gradient.
        batch: The batch.
        output: What the model's base gave for it.
        seed: None for the mean cross-entropy of the text's next tokens, without padding, and of a part of a batch its
            share of that; a number for the sum of the cross-entropy of next tokens drawn from the model, from the same
            random numbers on any device and with any number of processes.
    """
    head = Head(model)
    labels = torch.zeros_like(batch.input_ids)
    labels[:, :-1] = batch.input_ids[:, 1:].clamp(min=0)  # of a part of an image no loss is counted
    counted = batch.drawn.clone() if seed is not None else torch.zeros_like(batch.mask)
    level, share = torch.empty(0), torch.ones((), device=counted.device)
    if seed is None:
        counted[:, :-1] = batch.predicted
        tokens = counted.sum() if batch.counted is None else torch.tensor(batch.counted, device=counted.device)
        share = tokens.clamp_min(1).double().reciprocal().float()
    else:
        level = to_device(batch.levels(seed), batch.input_ids.device)
    labels, weights = labels.flatten(), counted.flatten().float() * share

    def of_chunk(logits: torch.Tensor, part: slice) -> torch.Tensor:
        if seed is not None:
            losses = sampled_loss(logits, level[part])
        else:
            losses = torch.nn.functional.cross_entropy(logits.float(), labels[part], reduction="none")
        return (losses * weights[part]).sum()[None]

    hidden = output.last_hidden_state.flatten(0, 1)
    sums = chunked_sum(hidden, lambda states: head(states, type(output)), of_chunk, rows=head.rows, head_trains=False)
    loss = sums[0]
    if loss.isfinite():
        loss.backward()  # type: ignore[no-untyped-call]
    return loss.item()
