"""The share of a device's peak that a training reached: the operations of its tokens over those of plain products."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from ..architectures.operations import active_parameters, attention_operations
from ..checkpoint.source import Source
from ..core.matmul_rate import matmul_rate
from ..core.micro_batch import ran_out
from ..core.progress import note
from ..report.recovery import RecoveryRecord
from .options import RecoveryOptions

_WORTH_MEASURING = 10.0
"""Seconds that a training has to take before its device is measured: of a shorter one most is the start."""


def training_operations(
    options: RecoveryOptions,
    student: Source,
    teachers: Sequence[Source],
    trained: Collection[str],
    layers: Collection[str],
    trained_parameters: int,
) -> float:
    """Return the floating-point operations that training takes for one token.

    With every weight of a product that a token passes come 2 operations forward, 2 more where a gradient flows on to
    what is below, and 2 more where the weight itself is trained: 6 in all with `full`, the usual count, and with each
    weight of an adapter. Attention takes its own, and twice as many backward. A teacher that runs on every batch takes
    those of its forward pass. What is computed a second time to save memory is not counted.

    Args:
        options: The recovery's options.
        student: The checkpoint that is trained.
        teachers: The teachers that run on every batch.
        trained: Names of the trained parameters.
        layers: Names of the modules of the student's layers, in order.
        trained_parameters: How many numbers these are.
    """
    binding, length = student.binding, options.recovery_length
    forward = 2 * active_parameters(binding, binding.shape)
    attention = attention_operations(binding, length)
    head = 2.0 * binding.sizes["hidden"] * binding.sizes["vocab"]
    # Gradients flow down to the lowest layer that has anything to train.
    places = [place for place, layer in enumerate(layers) if any(f".{layer}." in f".{name}" for name in trained)]
    lowest = 0 if "embeddings" in options.parts else min(places, default=len(layers))
    reached = (len(layers) - lowest) / len(layers)
    back = head + reached * (forward - head) if reached else 0.0
    weights = forward if options.recovery_train == "full" else (6.0 if options.uses_lora else 2.0) * trained_parameters
    total = forward + back + weights + attention * (1 + 2 * reached)
    for teacher in teachers:
        total += 2 * active_parameters(teacher.binding, teacher.binding.shape)
        total += attention_operations(teacher.binding, length)
    return total


def with_device_use(
    record: RecoveryRecord, operations: float, device: torch.device, dtype: torch.dtype
) -> RecoveryRecord:
    """Return a record with the share of the devices' peak that the training reached.

    The peak is measured now, as the speed of a plain product of large matrices in the dtype that was computed in. The
    time is all of the training's, with its evaluations and checkpoints.

    Args:
        record: The record.
        operations: What `training_operations` returned.
        device: The device of this process.
        dtype: The dtype that was computed in.
    """
    if record.seconds < _WORTH_MEASURING:
        return record
    try:
        peak = matmul_rate(device, dtype)
    except RuntimeError as error:
        if not ran_out(error):
            raise
        note("recovery: no memory was left to measure the peak of this device, so no share of it is reported")
        return record
    share = operations * record.tokens_per_second / (peak * record.processes)
    return replace(record, operations_per_token=operations, device_peak=peak, peak_share=round(share, 4))
