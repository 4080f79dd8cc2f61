"""Which rows of a fused projection belong to which head, shown by a running model.

Where heads cannot change, no cut can prove it. But with all rows of one head at zero, the output projection reads
something else in the channels of that head, and in no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..architectures.expressions import parse_axes
from ..architectures.slicing import axis_index
from .structure import changed_parameters, input_of
from .tiny_class import token_ids


def shows_heads(model: Any, parts: Mapping[str, tuple[int, str]], output: str, sizes: Mapping[str, int]) -> bool:
    """Return whether zeroing one KV group's rows changes only what the output projection reads of this group.

    Args:
        model: A random model.
        parts: Name of a fused parameter to the axis that counts heads, and the layout of this axis to try.
        output: Name of attention's output projection in the same layer.
        sizes: The value of every size.
    """
    parameters, ids = dict(model.named_parameters()), token_ids(model)
    others = {"heads": range(sizes["heads"] // sizes["kv"], sizes["heads"]), "kv": range(1, sizes["kv"])}
    edits: dict[str, torch.Tensor] = {}
    for name, (axis, text) in parts.items():
        retained = axis_index(parse_axes(text)[0], sizes, others)
        if retained is None:
            return False
        edits[name] = torch.zeros_like(parameters[name])
        whole = parameters[name].detach()
        edits[name].index_copy_(axis, retained, whole.index_select(axis, retained))
    before = input_of(model, output, ids)
    with changed_parameters(model, edits):
        changed = (input_of(model, output, ids) != before).any(dim=0).any(dim=0)
    group = before.shape[-1] // sizes["kv"]
    return bool(changed[:group].any()) and not bool(changed[group:].any())
