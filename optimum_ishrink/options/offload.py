"""Options of models that are larger than memory: whether layers are read from disk, and where states are kept."""

from __future__ import annotations

from dataclasses import dataclass

from .option import option
from .run import RunOptions

OFFLOADS = ("auto", "never", "always")


@dataclass(frozen=True, kw_only=True, repr=False)
class OffloadOptions(RunOptions):
    """Whether a model is read from disk layer by layer."""

    offload: str = option(
        "auto",
        choices=OFFLOADS,
        help="read the layers from disk one by one: auto, never or always",
        doc="Whether a model's layers are read from disk when their turn comes, two of them in memory at a time, with "
        "the hidden states in a file: `auto` (where the weights would take more than half of the free memory), "
        "`never` or `always`. The result is the same. It takes given text: a model that samples its own text is in "
        "memory.",
    )
    offload_folder: str | None = option(
        None,
        metavar="DIR",
        path="folder",
        help="where hidden states are kept when layers are read from disk",
        doc="Where hidden states are kept when layers are read from disk. By default a hidden folder beside the "
        "output, and without an output the system's folder for temporary files.",
        default_help="beside the output",
    )
