"""What a decoder layer returns: a tensor, or a tuple or list that begins with it, as its class has it."""

from __future__ import annotations

from typing import Any

import torch


def hidden_of(output: Any) -> torch.Tensor:
    """Return the hidden states in a layer's output.

    Args:
        output: What the layer returned.
    """
    found: torch.Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return found


def parts_of(output: Any) -> int:
    """Return the length of the tuple or list that a layer returns; 0 where it returns a tensor.

    Args:
        output: What the layer returned.
    """
    return len(output) if isinstance(output, (tuple, list)) else 0


def as_output(hidden: torch.Tensor, parts: int) -> Any:
    """Return hidden states as a layer returns them, with nothing else.

    Args:
        hidden: The hidden states.
        parts: What `parts_of` gives for the layer's own output.
    """
    return (hidden, *(None,) * (parts - 1)) if parts else hidden
