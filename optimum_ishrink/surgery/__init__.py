"""Surgery: tensors in, smaller tensors out, and the checkpoint that holds them."""

from ..architectures.slicing import slice_tensor
from ..checkpoint.writing import verify_checkpoint
from .compensation import check_windows, compensate, needs_cut_model
from .cut import write_checkpoint
from .units import masked_state

__all__ = [
    "check_windows",
    "compensate",
    "masked_state",
    "needs_cut_model",
    "slice_tensor",
    "verify_checkpoint",
    "write_checkpoint",
]
