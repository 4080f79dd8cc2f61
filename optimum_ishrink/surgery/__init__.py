"""Surgery: tensors in, smaller tensors out, and the checkpoint that holds them."""

from .checkpoint import verify_checkpoint, write_checkpoint
from .compensation import check_windows, compensate, needs_cut_model
from .slicing import masked_state, slice_tensor

__all__ = [
    "check_windows",
    "compensate",
    "masked_state",
    "needs_cut_model",
    "slice_tensor",
    "verify_checkpoint",
    "write_checkpoint",
]
