"""What accelerate knows of this process and of those that share the run with it."""

from __future__ import annotations

import torch
from accelerate import PartialState


def process_state(device: torch.device) -> PartialState:
    """Return what accelerate knows of this process and the others; it is made for a device on the first call."""
    return PartialState(cpu=device.type == "cpu")
