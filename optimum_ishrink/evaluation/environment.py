"""Where the numbers were measured."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import psutil
import torch

from ..compute import cpu_capabilities, dtype_name

_PACKAGES = ("optimum-ishrink", "torch", "transformers", "optimum", "lm-eval", "safetensors")


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return hardware, threads and versions: what a reader needs to judge or repeat a measurement.

    Args:
        device: Where the models ran.
        dtype: In which dtype they computed.
    """
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "accelerator": accelerator,
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "dtype": dtype_name(dtype),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }


def _cpu_name() -> str:
    name = cpu_capabilities().get("cpu_name")
    return str(name) if name else platform.processor() or platform.machine()
