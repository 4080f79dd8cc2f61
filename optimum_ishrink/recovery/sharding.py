"""Fully sharded training, where accelerate's own configuration switches it on."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import RequestError


def wants_sharding() -> bool:
    """Whether accelerate's configuration asks for fully sharded training."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true", "yes", "on", "t", "y")


def shard_on_cpus(accelerator: Accelerator) -> bool:
    """Let several processes on CPUs share a model's weights: accelerate reads its own switch on GPUs alone.

    Args:
        accelerator: accelerate's state of this process; it is changed.

    Returns:
        Whether it was switched on here.
    """
    if accelerator.distributed_type != DistributedType.MULTI_CPU or not wants_sharding():
        return False
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    return True


def check_sharding() -> None:
    """Check what accelerate's configuration asks for.

    Raises:
        RequestError: It is the first version of fully sharded training, whose parameters have no names of their own.
    """
    if wants_sharding() and os.environ.get("FSDP_VERSION", "1") != "2":
        raise RequestError("recovery is sharded by FSDP2 alone; set fsdp_version: 2 in accelerate's configuration")


def whole_tensors(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return parameters that may be spread over processes; all of these have to call it.

    Args:
        parameters: The parameters, by name.
    """
    found = {name: parameter.detach() for name, parameter in parameters.items()}
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in found.items()}


@torch.no_grad()
def set_tensors(parameters: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Set parameters that may be spread over processes; all of these have to call it.

    Args:
        parameters: The parameters, by name.
        values: Their new values, whole.
    """
    for name, parameter in parameters.items():
        value = values[name].to(parameter.device)
        if isinstance(parameter, DTensor):
            value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
        parameter.copy_(value)
