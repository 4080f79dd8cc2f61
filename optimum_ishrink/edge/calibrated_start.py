"""Where a recovery for a GGUF type starts: weights rounded for what matrices compute on the training text."""

from __future__ import annotations

from typing import Any

import torch

from ..checkpoint.source import Source
from ..core.progress import note, progress_bar
from ..modeling.error_carry import error_carry
from ..recovery.exported_weights import ExportedValues
from .input_moments import input_moments
from .kept_rounding import kept_values
from .recovery_values import BlockValues


def calibrated_start(
    source: Source, exported: ExportedValues, model: Any, windows: torch.Tensor, *, trained: bool
) -> dict[str, torch.Tensor]:
    """Return the matrices of a checkpoint, rounded to an export's types for what they compute.

    Nearest rounding keeps these values, so that an export finds them. What multiplies nothing, such as an embedding
    that is not the head, is left out.

    Args:
        source: The checkpoint.
        exported: What its export holds, in types of GGUF.
        model: The checkpoint's model, with the weights to round.
        windows: Token ids, int64, shape (windows, length).
        trained: Whether they are trained after that (see `kept_values`).

    Returns:
        Weights by their names in the checkpoint, in its dtypes.

    Raises:
        NotFiniteError: What a matrix reads is not finite.
    """
    values = {name: each for name, each in exported.values.items() if isinstance(each, BlockValues)}
    averaged = [name for name, each in values.items() if ".attn_v." in each.matrix]
    stored_as = {tensor.parameter: tensor.name for tensor in source.binding.tensors.values()}
    found: dict[str, torch.Tensor] = {}
    with progress_bar("rounding for what is computed", len(values)) as advance:
        for moments in input_moments(model, windows, {name: name for name in values}, averaged=averaged):
            last = None
            for name, moment in moments.items():
                if moment is not last:  # gates and up projections share theirs
                    last, carry = moment, error_carry(moment)
                each, dtype = values[name], exported.dtypes[name]
                weight = model.get_parameter(name).detach()
                rows = weight.T if each.transposed else weight
                kept = kept_values(rows, carry, each.type_name, each.through or dtype, trained=trained).to(dtype)
                found[stored_as[name]] = kept.T.contiguous() if each.transposed else kept
                advance(1)
        advance(len(values) - len(found))
    if len(found) < len(values):
        left = len(values) - len(found)
        note(f"the nearest values are kept in {left} of {len(values)} matrices, which multiply nothing")
    return found
