"""Fully sharded training, where accelerate's own configuration switches it on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, fsdp2_prepare_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..core.processes import process_count
from ..errors import RequestError
from .options import RecoveryOptions


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


def check_sharding(options: RecoveryOptions, *, sparse: bool) -> None:
    """Check that a recovery can be sharded, where accelerate's configuration asks for it.

    Args:
        options: The recovery's options.
        sparse: Whether zeros of the student have to stay.

    Raises:
        RequestError: It is the first version of fully sharded training, whose parameters have no names of their own,
            or the recovery needs whole weights in every process.
    """
    if not wants_sharding():
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise RequestError("recovery is sharded by FSDP2 alone; set fsdp_version: 2 in accelerate's configuration")
    if options.recovery_for is not None:
        raise RequestError(
            "recovery_for quantises whole weights, and FSDP spreads them over processes; run it under torchrun "
            "without FSDP, or in one process"
        )
    if options.recovery_on_policy:
        raise RequestError(
            "recovery_on_policy samples from the student in each process, and FSDP spreads its weights over all; run "
            "it under torchrun without FSDP, or in one process"
        )
    if sparse or options.recovery_ema is not None or options.recovery_layer_decay < 1:
        raise RequestError(
            "fully sharded training holds parts of the weights, and has neither zeros of a sparse model, nor "
            "recovery_ema, nor recovery_layer_decay; train in one process, or in several that hold all weights each"
        )


def shares_weights() -> bool:
    """Whether the processes of this run share the weights of what they train."""
    return wants_sharding() and process_count() > 1


def loading_device(device: torch.device) -> torch.device:
    """Return where a model is loaded that is trained: what is shared later need not fit a device before.

    On the CPU the weights stay in the checkpoint's mapped file, which the processes of a machine read together, until
    each takes its share of a layer to its device.

    Args:
        device: Where to compute.
    """
    return torch.device("cpu") if shares_weights() else device


def share_layers(model: Any, layers: Sequence[str], device: torch.device) -> Any:
    """Spread the weights of a model's layers over all processes: each layer is gathered when it runs, and let go.

    What is outside of the layers is whole on each process' device: the loss calls the head in chunks, on its own. From
    then on all processes have to run the model in step.

    Args:
        model: A model that is not trained, on any device.
        layers: Names of the modules of its layers.
        device: Where to compute.

    Returns:
        The model.
    """
    model.requires_grad_(False)  # what is trained has to be of one dtype in each layer, and a router may be in float32
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for name in layers:
        fully_shard(
            model.get_submodule(name), mesh=mesh, reshard_after_forward=True
        )  # one layer on the device at once
    return model.to(device)


def share_student(accelerator: Accelerator, student: Any) -> Any:
    """Spread what is trained over the processes, as accelerate does when a training begins.

    The losses before the first step need it on the device already, and it may not fit one device whole.

    Args:
        accelerator: accelerate's state of this process.
        student: The student.

    Returns:
        The student, of another class.
    """
    return fsdp2_prepare_model(accelerator, student)


def gather_no_more(student: Any) -> None:
    """Let go of weights that are gathered still: without a backward pass the outermost ones stay.

    Args:
        student: A student that processes share.
    """
    for module in student.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


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
