"""Device and dtype to compute in, chosen from the hardware and never changed behind the user's back."""

from __future__ import annotations

import re
from typing import Any

import torch

from ..errors import RequestError

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "bfloat16", "float32")


def is_device_name(name: object) -> bool:
    """Whether a name is one of `DEVICES`, or one CUDA device such as `cuda:1`."""
    return isinstance(name, str) and (name in DEVICES or re.fullmatch(r"cuda:\d+", name) is not None)


def resolve_device(name: str) -> torch.device:
    """Return the device: with `auto`, CUDA where there is one, else the CPU.

    Raises:
        RequestError: The name is unknown, or CUDA was asked for and there is none.
    """
    if not is_device_name(name):
        raise RequestError(f"device must be one of {', '.join(DEVICES)}, not {name!r}")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RequestError(f"device={name!r} was asked for, but torch sees no CUDA device; use 'cpu' or 'auto'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def cpu_capabilities() -> dict[str, Any]:
    """Return what torch knows of the CPU: its name and instruction sets; empty where torch is too old to say."""
    read = getattr(torch.cpu, "get_capabilities", None)
    return {} if read is None else dict(read())


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware. Emulated, it would be slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if torch.cpu._is_avx512_bf16_supported():
        return True  # older releases of torch have this and not the other
    return any(cpu_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the compute dtype: with `auto`, bfloat16 where the device multiplies it in hardware, else float32.

    Raises:
        RequestError: The name is unknown.
    """
    if name not in DTYPES:
        raise RequestError(f"dtype must be one of {', '.join(DTYPES)}, not {name!r}")
    if name == "auto":
        name = "bfloat16" if has_fast_bfloat16(device) else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """Return `"bfloat16"` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")
