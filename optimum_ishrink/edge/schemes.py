"""The quantisations of a PyTorch checkpoint, and the library that writes and reads each. Arithmetic only."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from packaging.version import Version

from ..errors import RequestError, unknown_name
from .quantization import QUANTIZATIONS
from .runtime import INSTALL

GROUP_SIZES = (32, 64, 128)
"""Weights that may share a scale in int4: what the readers of the format have kernels for."""


@dataclass(frozen=True)
class Library:
    """A library that transformers reads quantised weights with.

    Args:
        name: What pip calls it.
        module: What Python calls it.
        minimum: The oldest version that this package was tried with.
    """

    name: str
    module: str
    minimum: str


TORCHAO = Library("torchao", "torchao", "0.18")
COMPRESSED_TENSORS = Library("compressed-tensors", "compressed_tensors", "0.20")


@dataclass(frozen=True)
class Scheme:
    """A quantisation of the linear layers of a checkpoint.

    Args:
        name: Its name, as people type it.
        bits: Bits of a weight.
        library: What writes it, and what a reader needs beside transformers.
        has_groups: Whether a scale belongs to a group of weights; otherwise to a whole row.
        meaning: What is quantised, in words.
    """

    name: str
    bits: int
    library: Library
    has_groups: bool
    meaning: str


SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8", 8, TORCHAO, False, "weights in int8, a scale for each row"),
        Scheme("int8-dynamic", 8, TORCHAO, False, "weights and activations in int8, a scale for each row and token"),
        Scheme("int4", 4, COMPRESSED_TENSORS, True, "weights in int4, a scale for each group"),
    )
}


def parse_scheme(name: str) -> Scheme:
    """Return a quantisation of safetensors by its name, whatever its case.

    Raises:
        RequestError: There is none of this name; the message says which there are, or that GGUF has it.
    """
    if name.lower() in SCHEMES:
        return SCHEMES[name.lower()]
    if name.lower() in QUANTIZATIONS:
        raise RequestError(
            f"{name.lower()} is a quantization of GGUF: pass --format gguf, or choose {', '.join(sorted(SCHEMES))}"
        )
    raise RequestError(unknown_name("quantization", name, SCHEMES))


def check_library(scheme: Scheme) -> None:
    """Check that the library of a quantisation is there, before any long work.

    Raises:
        RequestError: It is missing or too old; the message is the line that installs it.
    """
    library = scheme.library
    if importlib.util.find_spec(library.module) is None:
        raise RequestError(f"{scheme.name} is written with {library.name}, which is not installed: {INSTALL}")
    if Version(version(library.name)) < Version(library.minimum):
        raise RequestError(
            f"{scheme.name} needs {library.name} {library.minimum} or newer, not {version(library.name)}: "
            f"pip install --upgrade {library.name}"
        )


def check_group_size(scheme: Scheme, group_size: int | None) -> int | None:
    """Return the weights that share a scale: what was asked for, or the smallest; None for a whole row.

    Small groups cost half a bit a weight more than large ones and lose far less; and every width that a 16-bit
    checkpoint usually has is a multiple of 32.

    Args:
        scheme: The quantisation.
        group_size: What was asked for.

    Raises:
        RequestError: There are no such groups.
    """
    if not scheme.has_groups:
        if group_size is not None:
            raise RequestError(f"{scheme.name} has a scale for each row; --group-size is for int4")
        return None
    if group_size is None:
        return GROUP_SIZES[0]
    if group_size not in GROUP_SIZES:
        raise RequestError(f"--group-size must be one of {', '.join(map(str, GROUP_SIZES))}, not {group_size}")
    return group_size
