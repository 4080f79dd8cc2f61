"""Runs of `ishrink` in several processes."""

from __future__ import annotations

import socket
import sys


def torchrun(processes: int = 2) -> list[str]:
    """The words before a verb that run it in several processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(processes),
        "--master_port",
        port,
    ]
    return [*launcher, "-m", "optimum_ishrink"]
