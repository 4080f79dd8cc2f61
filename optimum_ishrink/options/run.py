"""Options that every run has: device, dtype, seed, batch size and the name of the base model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import RequestError, unknown_name
from .base import Options
from .option import option

BATCH_SIZE = 4
"""Windows in a batch where nobody named a number: more of them at once are no faster on a CPU."""

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "bfloat16", "float32")
MAX_SEED = 2**32 - 1
"""The largest seed that numpy takes; torch takes larger ones."""


def _check_device(name: str) -> None:
    if name not in DEVICES and re.fullmatch(r"cuda:\d+", name) is None:
        raise RequestError(unknown_name("device", name, DEVICES))


@dataclass(frozen=True, kw_only=True, repr=False)
class RunOptions(Options):
    """Options of every run."""

    batch_size: int | None = option(
        None,
        metavar="N",
        help="windows or requests in a batch",
        doc="Windows or requests that run at once. By default 4 on a CPU; on a GPU scoring, sampling, recovery and "
        "evaluation begin with a few and then take as many as fit into its free memory. Where memory runs out, the "
        "batch is run again with half as many. `taylor` and other criteria of gradients take one gradient per batch, "
        "so their batches have 4 windows everywhere unless this says otherwise.",
        default_help="4 on a CPU, what fits into memory on a GPU",
    )
    base_model: str | None = option(
        None,
        metavar="ID",
        help="name of the base in the card, if it was read from a folder",
        doc="Name of the base in cards, such as its Hub id, if it was read from a folder.",
        default_help="the Hub id or the folder's name",
    )
    seed: int = option(0, ge=0, le=MAX_SEED, metavar="N", help="seed of everything random")
    dtype: str = option(
        "auto",
        choices=DTYPES,
        help="compute dtype: auto, bfloat16 or float32",
        doc="Compute dtype: `auto` (bfloat16 where the hardware supports it), `bfloat16` or `float32`. The dtype of "
        "the files does not change.",
    )
    device: str = option(
        "auto",
        check=_check_device,
        help="auto, cpu or cuda",
        doc="Where to compute: `auto` (CUDA if available), `cpu`, `cuda`, or one CUDA device such as `cuda:1`.",
    )

    @property
    def batch_windows(self) -> int:
        """Windows in a batch before any memory is measured: `batch_size`, or 4 where it was not named."""
        return BATCH_SIZE if self.batch_size is None else self.batch_size
