"""Matrices in types that the `gguf` package reads but does not write: `llama-quantize` writes them.

The program reads a model's file, and quantises every matrix in it row by row, whatever the model is. So the matrices
of one type are written into a file with the settings of a model of one layer, which the program stores in that type
(`--pure`). Their bytes are those that it would store in any other file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.progress import note
from ..errors import SourceError
from .gguf_quantizations import PROGRAM, PROGRAM_TYPES
from .llama_server import default_threads
from .programs import run_program

Rows = tuple[np.ndarray[Any, Any], Any]
"""A matrix as a GGUF file holds it, and its type there, a `gguf.GGMLQuantizationType`."""


@dataclass(frozen=True)
class ProgramMatrix:
    """A matrix that the program wrote.

    Args:
        data: Its bytes, uint8, shape (rows, bytes of a row).
        kind: Its type, a `gguf.GGMLQuantizationType`.
    """

    data: np.ndarray[Any, Any]
    kind: Any

    def values(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return its weights as the file gives them back, float32, shape (rows, columns)."""
        import gguf

        found: np.ndarray[Any, np.dtype[np.float32]] = gguf.quants.dequantize(self.data, self.kind)
        return found


def write_by_program(names: Sequence[str], type_name: str, read: Callable[[str], Rows], path: Path) -> None:
    """Let the program write matrices in one type.

    Args:
        names: Their names.
        type_name: Name of the type; the length of every row is a multiple of its block. The program takes a single row
            for no matrix, and leaves it as it is.
        read: Returns a matrix of 16 or 32 bits by its name.
        path: The file. Its folder has room for a second one, of the matrices as they are.

    Raises:
        SourceError: The program failed, or stored a matrix in another type.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        before, after = Path(folder) / "before.gguf", Path(folder) / "after.gguf"
        _write_matrices(names, read, before)
        command = [PROGRAM, "--pure", str(before), str(after), PROGRAM_TYPES[type_name], str(default_threads())]
        run_program(command, f"{PROGRAM} failed")
        for name, found in read_by_program(names, after).items():
            if found.kind.name.lower() != type_name:
                raise SourceError(
                    f"{PROGRAM} stored {name} as {found.kind.name.lower()} where {type_name} was asked for; leave out "
                    f"{type_name}, or install another version of llama.cpp"
                )
        after.replace(path)


def read_by_program(names: Sequence[str], path: Path) -> dict[str, ProgramMatrix]:
    """Return the matrices of a file of `write_by_program`. Their bytes are read where they are used.

    Args:
        names: Their names, as they were written.
        path: The file.
    """
    import gguf

    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    chosen = [found[_numbered(number)] for number in range(len(names))]
    return {name: ProgramMatrix(tensor.data, tensor.tensor_type) for name, tensor in zip(names, chosen, strict=True)}


@contextmanager
def quantized_by_program(
    types: Mapping[str, str], read: Callable[[str], Rows], folder: Path
) -> Iterator[dict[str, ProgramMatrix]]:
    """Yield matrices that the program wrote, each in a type of its own. Their files are removed afterwards.

    Args:
        types: Names of types, by the matrix's name; without any, nothing is run.
        read: Returns a matrix of 16 or 32 bits by its name.
        folder: Where the files lie meanwhile.

    Raises:
        SourceError: The program failed, or stored a matrix in another type.
    """
    with tempfile.TemporaryDirectory(prefix="ishrink-types-", dir=folder) as place:
        found: dict[str, ProgramMatrix] = {}
        for each in dict.fromkeys(types.values()):
            names, path = [name for name, of in types.items() if of == each], Path(place) / f"{each}.gguf"
            note(f"quantising {len(names)} matrices to {each} with {PROGRAM}")
            write_by_program(names, each, read, path)
            found |= read_by_program(names, path)
        yield found


def _numbered(number: int) -> str:
    """Return what a matrix is called for the program, which knows some names and has types of its own for these."""
    return f"matrix.{number}.weight"


def _write_matrices(names: Sequence[str], read: Callable[[str], Rows], path: Path) -> None:
    """Write matrices into a file that the program takes for a model of one layer."""
    import gguf

    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for add in (
        writer.add_context_length,
        writer.add_embedding_length,
        writer.add_feed_forward_length,
        writer.add_rope_dimension_count,
    ):
        add(256)
    for add in (writer.add_block_count, writer.add_head_count, writer.add_head_count_kv):
        add(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for number, name in enumerate(names):
        data, kind = read(name)
        writer.add_tensor_info(_numbered(number), data.shape, data.dtype, data.nbytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in names:
        writer.write_tensor_data(read(name)[0])
    writer.close()
