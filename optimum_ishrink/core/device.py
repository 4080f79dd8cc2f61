"""Device and dtype to compute in, chosen from the hardware and never changed silently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import RequestError

if TYPE_CHECKING:
    import torch


def resolve_device(name: str) -> torch.device:
    """Return the device: with `auto`, CUDA if there is a CUDA device, else the CPU.

    Raises:
        RequestError: The name is unknown, or CUDA was requested and there is no CUDA device.
    """
    import torch

    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RequestError(f"device={name!r} was requested, but torch finds no CUDA device; use 'cpu' or 'auto'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError:
        raise RequestError(f"device must be auto, cpu or cuda, not {name!r}") from None


def synchronize(device: torch.device) -> None:
    """Wait until a device has computed what it was given, so that a clock can be read.

    Args:
        device: The device; the CPU computes at once.
    """
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def cpu_capabilities() -> dict[str, Any]:
    """Return what torch knows about the CPU: its name and instruction sets; empty for versions of torch without it."""
    import torch

    read = getattr(torch.cpu, "get_capabilities", None)
    return {} if read is None else dict(read())


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware. Emulated, it would be slower than float32."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if torch.cpu._is_avx512_bf16_supported():
        return True  # older releases of torch have only this function
    return any(cpu_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the compute dtype: with `auto`, bfloat16 where the device multiplies it in hardware, else float32.

    Raises:
        RequestError: The name is unknown.
    """
    import torch

    if name == "auto":
        name = "bfloat16" if has_fast_bfloat16(device) else "float32"
    dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if name not in dtypes:
        raise RequestError(f"dtype must be auto, {' or '.join(dtypes)}, not {name!r}")
    return dtypes[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Return `"bfloat16"` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the CPU on a device; a GPU copies it while this program goes on.

    Args:
        tensor: A tensor on the CPU, which must not be changed after this.
        device: The device.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
