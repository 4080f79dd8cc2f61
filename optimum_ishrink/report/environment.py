"""The record of the machine and the libraries that numbers were measured with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core.json_codec import rare_entry


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Hardware, threads and versions: what a reader needs to judge or repeat a measurement.

    Args:
        device: Where the models ran: `cpu`, `cuda`, ...
        accelerator: Name of the GPU, or None.
        cpu: Name of the processor; of the device, where a browser ran the models, which does not tell its processor.
        cores: Physical cores; None where the system does not report it.
        logical_cores: Logical cores; None where the system does not report it.
        usable_cores: Cores that this process may use; None where the system does not report it.
        governor: What sets the clock of the CPUs on Linux, such as `performance`; None where it cannot be read.
        threads: Threads used for the computation.
        memory_bytes: Memory of the machine, in bytes; None where the system does not report it.
        dtype: The dtype that the models computed in; for another runtime, the quantization of the weights.
        os: Operating system and architecture.
        python: Version of Python; None where a browser ran the models.
        versions: Package to version.
        runtime: Build of the runtime, such as llama.cpp's, where it is not PyTorch; else None.
        browser: The browser that ran the models, or None.
    """

    device: str
    accelerator: str | None = None
    cpu: str
    cores: int | None = None
    logical_cores: int | None = None
    usable_cores: int | None = None
    governor: str | None = None
    threads: int
    memory_bytes: int | None = None
    dtype: str
    os: str
    python: str | None
    versions: Mapping[str, str]
    runtime: str | None = None
    browser: str | None = rare_entry()
