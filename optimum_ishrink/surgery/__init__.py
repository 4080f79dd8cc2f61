"""Surgery: tensors in, smaller tensors out, and the checkpoint that holds them."""

from .checkpoint import verify_checkpoint, write_checkpoint
from .compensation import compensate
from .slicing import masked_state, slice_tensor

__all__ = ["compensate", "masked_state", "slice_tensor", "verify_checkpoint", "write_checkpoint"]
