"""Whether a run reads its model from disk layer by layer: what was asked for, what fits, and what is possible."""

from __future__ import annotations

from typing import Any

import torch

from ..architectures.binding import Binding
from ..core.memory import free_memory
from ..core.processes import process_count
from ..core.progress import note
from ..core.sizes import size_in_words
from ..errors import RequestError
from .source import Source

SHARE = 0.5
"""Share of the free memory that weights may take. The rest is for hidden states, sums over them and a second model."""


SAMPLES_ITSELF = (
    "a model samples its own text token by token, which would read all layers for each; give other text, such as "
    "--calibration FILE.txt"
)
"""Why a run on a model's own text needs the whole model in memory."""


def refusal(
    binding: Binding, device: torch.device, options: Any, needs_whole: str | None, *, in_memory: bool = False
) -> str | None:
    """Return why a model cannot be read from disk layer by layer; None where it can.

    Args:
        binding: The model.
        device: Where it is computed.
        options: The request; of its options those count that it has.
        needs_whole: Why the run needs the whole model in memory; None where it does not.
        in_memory: Whether it was given as an object.
    """
    if in_memory:
        return "the model was given as an object, which is in memory; save it and give its folder"
    if binding.joined is not None:
        return f"the layers of {binding.description.model_type} cannot be run one by one: {binding.joined}"
    if device.type != "cpu":
        return f"layers are read from disk for the CPU alone, not for {device.type}; pass device cpu"
    if process_count() > 1:
        return "layers are read from disk in one process alone; run the command without torchrun"
    if getattr(options, "sparsity_reads_text", False):
        return "what becomes zero by its inputs is chosen in the whole model; pass sparsity_criterion magnitude"
    if getattr(options, "compensation_for", None) is not None:
        return "rounding after the repair runs the whole model; leave compensation_for out, and round in the export"
    if getattr(options, "recovers", False):
        return "recovery trains a whole model; pass recovery none, and recover the result on a larger machine"
    return needs_whole


def outgrows(weights: float, free: float) -> bool:
    """Return whether weights take so much of the free memory that layers are read from disk by themselves.

    Args:
        weights: Bytes of the weights.
        free: Bytes of memory that are free.
    """
    return weights > SHARE * free


def chooses_offload(
    source: Source, dtype: torch.dtype, device: torch.device, options: Any, needs_whole: str | None
) -> bool:
    """Return whether a model is read from disk layer by layer, and say so in one line where memory decides.

    Args:
        source: The model.
        dtype: Compute dtype.
        device: Where it is computed.
        options: The request.
        needs_whole: Why the run needs the whole model in memory; None where it does not.

    Raises:
        RequestError: That was asked for, and cannot be.
    """
    asked = getattr(options, "offload", "never")
    if asked == "never":
        return False
    reason = refusal(source.binding, device, options, needs_whole, in_memory=source.in_memory)
    if asked == "always":
        if reason is not None:
            raise RequestError(f"offload='always': {reason}; or leave offload out")
        note(f"offload: the layers of {source.display_name} are read from disk one by one")
        return True
    if device.type != "cpu":
        return False  # what a CUDA device holds is not what this measures
    weights, free = source.binding.num_parameters() * dtype.itemsize, free_memory()
    if not outgrows(weights, free):
        return False
    sizes = f"{size_in_words(weights)} of weights, {size_in_words(free)} of free memory"
    if reason is not None:
        note(f"offload: {source.display_name} stays in memory ({sizes}), because {reason}")
        return False
    note(f"offload: the layers of {source.display_name} are read from disk one by one ({sizes})")
    return True
