"""Reading the environment of a measurement from this machine."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil
import torch

from ..core.device import cpu_capabilities, dtype_name
from ..report.environment import Environment

_PACKAGES = ("optimum-ishrink", "torch", "transformers", "optimum", "lm-eval", "safetensors")


def environment(device: torch.device, dtype: torch.dtype) -> Environment:
    """Return hardware, threads and versions: what a reader needs to judge or repeat a measurement.

    Args:
        device: The device that the models ran on.
        dtype: The dtype that they computed in.
    """
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return Environment(
        device=device.type,
        accelerator=accelerator,
        cpu=_cpu_name(),
        cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count(),
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        governor=_governor(),
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        dtype=dtype_name(dtype),
        os=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        # torch reports its build, such as 2.13.0+cu130; its package metadata do not always.
        versions={name: metadata.version(name) for name in _PACKAGES} | {"torch": str(torch.__version__)},
    )


def _governor(folder: Path = Path("/sys/devices/system/cpu")) -> str | None:
    """Return what sets the clock of the CPUs on Linux, such as `performance`; None where it cannot be read."""
    try:
        found = {file.read_text(encoding="ascii").strip() for file in folder.glob("cpu*/cpufreq/scaling_governor")}
    except OSError:
        return None
    return ", ".join(sorted(found)) or None


def _cpu_name() -> str:
    name = cpu_capabilities().get("cpu_name")
    return str(name) if name else platform.processor() or platform.machine()
