"""The quantisations of a PyTorch checkpoint, and the library that writes and reads each."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from packaging.version import Version

from ..errors import RequestError, unknown_name
from .gguf_quantizations import GGUF_QUANTIZATIONS
from .llama_server import INSTALL
from .options import GROUP_SIZES


@dataclass(frozen=True)
class Library:
    """A library that transformers reads quantised weights with.

    Args:
        name: Its name for pip.
        module: Its name for `import`.
        minimum: The oldest version that was tested.
    """

    name: str
    module: str
    minimum: str


TORCHAO = Library("torchao", "torchao", "0.18")
COMPRESSED_TENSORS = Library("compressed-tensors", "compressed_tensors", "0.20")


@dataclass(frozen=True)
class TorchQuantization:
    """A quantisation of the linear layers of a checkpoint.

    Args:
        name: Its name, as people type it.
        bits: Bits of a weight.
        library: The library that writes it; readers need it in addition to transformers.
        has_groups: Whether a scale belongs to a group of weights; otherwise to a whole row.
        meaning: What is quantised, for the table of an export.
    """

    name: str
    bits: int
    library: Library
    has_groups: bool
    meaning: str


TORCH_QUANTIZATIONS: Mapping[str, TorchQuantization] = {
    entry.name: entry
    for entry in (
        TorchQuantization("int8", 8, TORCHAO, False, "weights in int8, a scale for each row"),
        TorchQuantization(
            "int8-dynamic", 8, TORCHAO, False, "weights and activations in int8, a scale for each row and token"
        ),
        TorchQuantization("int4", 4, COMPRESSED_TENSORS, True, "weights in int4, a scale for each group"),
    )
}


def parse_torch_quantization(name: str) -> TorchQuantization:
    """Return a quantisation of safetensors by its name, in any case.

    Raises:
        RequestError: There is none of this name; the message lists those that exist, or says that GGUF has it.
    """
    if name.lower() in TORCH_QUANTIZATIONS:
        return TORCH_QUANTIZATIONS[name.lower()]
    if name.lower() in GGUF_QUANTIZATIONS:
        names = ", ".join(sorted(TORCH_QUANTIZATIONS))
        raise RequestError(f"{name.lower()} is a quantization of GGUF: pass --format gguf, or choose {names}")
    raise RequestError(unknown_name("quantization", name, TORCH_QUANTIZATIONS))


def check_library(quantization: TorchQuantization) -> None:
    """Check that the library of a quantisation is installed, before any long work.

    Raises:
        RequestError: It is missing or too old; the message has the command that installs it.
    """
    library = quantization.library
    if importlib.util.find_spec(library.module) is None:
        raise RequestError(f"{quantization.name} is written with {library.name}, which is not installed: {INSTALL}")
    if Version(version(library.name)) < Version(library.minimum):
        raise RequestError(
            f"{quantization.name} needs {library.name} {library.minimum} or newer, not {version(library.name)}: "
            f"pip install --upgrade {library.name}"
        )


def resolve_group_size(quantization: TorchQuantization, group_size: int | None) -> int | None:
    """Return how many weights share a scale: the given number or the default; None for a whole row.

    Args:
        quantization: The quantisation.
        group_size: The given number, one of `GROUP_SIZES`, or None.

    Raises:
        RequestError: The quantisation has no groups, and a number was given.
    """
    if not quantization.has_groups:
        if group_size is not None:
            raise RequestError(f"{quantization.name} has a scale for each row; --group-size is for int4")
        return None
    return GROUP_SIZES[0] if group_size is None else group_size
