"""Options that every run has: device, dtype, seed, batch size and the name of the base model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import RequestError, unknown_name
from .base import Options
from .option import option

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

    batch_size: int = option(4, metavar="N", help="windows or requests in a batch")
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
