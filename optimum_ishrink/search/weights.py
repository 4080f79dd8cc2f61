"""A loaded model with its matrices as a quantised file holds them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..edge.gguf_quantizations import PROGRAM_TYPES, TENSOR_TYPES, stored_as
from ..edge.program_types import ProgramMatrix, Rows, quantized_by_program, read_by_program, write_by_program


def as_stored(weight: torch.Tensor, type_name: str) -> torch.Tensor:
    """Return weights as a GGUF file gives them back: quantised and dequantised by the `gguf` package's own code.

    Args:
        weight: A matrix, its rows last, as the file has them.
        type_name: Name of the requested type, one that the package writes; rows that do not fit it are stored as its
            fallback.
    """
    found = stored_as(weight.shape[-1], TENSOR_TYPES[type_name])
    if found.block == 1:
        return weight.clone()
    import gguf

    kind = gguf.GGMLQuantizationType[found.name.upper()]
    values = weight.detach().to("cpu", torch.float32).contiguous().numpy()
    stored = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
    return torch.from_numpy(stored).to(weight.device, weight.dtype)


def _given_back(rows: torch.Tensor, type_name: str, written: ProgramMatrix | None) -> torch.Tensor:
    """Return weights as a file gives them back: by what the program wrote, or else by the package's own code."""
    if written is None:
        return as_stored(rows, type_name)
    return torch.from_numpy(written.values()).to(rows.device, rows.dtype)


class StoredWeights:
    """A loaded model whose matrices can be replaced by what a file holds.

    Args:
        model: The model.
        names: The parameter of each matrix, by the matrix's name in the file.
        transposed: Parameters that the checkpoint stores with rows and columns exchanged.
        folder: Where all matrices in a type that `llama-quantize` alone writes are stored, so that it runs once for
            each such type; None where it runs for the matrices that are asked for.
    """

    def __init__(
        self, model: Any, names: Mapping[str, str], transposed: Sequence[str] = (), folder: Path | None = None
    ) -> None:
        self.model = model
        self._folder = folder
        self._parameters = {name: model.get_parameter(parameter) for name, parameter in names.items()}
        self._transposed = {name for name, parameter in names.items() if parameter in transposed}

    def _rows(self, name: str) -> torch.Tensor:
        """Return a matrix as the file has it."""
        weight: torch.Tensor = self._parameters[name].data
        return weight.T if name in self._transposed else weight

    def error(self, name: str, type_name: str) -> float:
        """Return the squared error that a type makes in a matrix, summed over its weights.

        Args:
            name: The matrix's name in the file.
            type_name: Name of the type.
        """
        rows = self._rows(name)
        with self._by_program({name: type_name}) as written:
            return float((_given_back(rows, type_name, written.get(name)).float() - rows.float()).square().sum())

    def store(self, types: Mapping[str, str]) -> None:
        """Replace matrices by what a file holds, for good.

        Args:
            types: Names of types, by the matrix's name in the file.
        """
        with self._by_program(types) as written:
            for name, each in types.items():
                rows = self._rows(name)
                rows.copy_(_given_back(rows, each, written.get(name)))

    def _is_stored_as(self, name: str, type_name: str) -> bool:
        """Whether a matrix' rows fit a type."""
        return self._rows(name).shape[-1] % TENSOR_TYPES[type_name].block == 0

    def _as_file(self, name: str) -> Rows:
        """Return a matrix as a file of its own bits has it."""
        import gguf

        rows = self._rows(name).detach().to("cpu").contiguous()
        if rows.dtype == torch.bfloat16:
            return rows.view(torch.int16).numpy().view("uint8"), gguf.GGMLQuantizationType.BF16
        if rows.dtype == torch.float16:
            return rows.numpy(), gguf.GGMLQuantizationType.F16
        return rows.to(torch.float32).numpy(), gguf.GGMLQuantizationType.F32

    @contextmanager
    def _by_program(self, types: Mapping[str, str]) -> Iterator[Mapping[str, ProgramMatrix]]:
        """Yield the matrices whose types the program alone writes."""
        asked = {
            name: each for name, each in types.items() if each in PROGRAM_TYPES and self._is_stored_as(name, each)
        }
        if self._folder is None:
            with (
                tempfile.TemporaryDirectory(prefix="ishrink-weights-") as folder,
                quantized_by_program(asked, self._as_file, Path(folder)) as written,
            ):
                yield written
            return
        found: dict[str, ProgramMatrix] = {}
        for each in dict.fromkeys(asked.values()):
            names = sorted(name for name in self._parameters if self._is_stored_as(name, each))
            path = self._folder / f"{each}.gguf"
            if not path.is_file():  # the model's matrices are as they were loaded: nothing is replaced yet
                self._folder.mkdir(parents=True, exist_ok=True)
                write_by_program(names, each, self._as_file, path)
            whole = read_by_program(names, path)
            found |= {name: whole[name] for name, of in asked.items() if of == each}
        yield found

    @contextmanager
    def stored(self, types: Mapping[str, str]) -> Iterator[Any]:
        """Yield the model with matrices replaced by what a file holds; afterwards they are as before.

        Args:
            types: Names of types, by the matrix's name in the file.
        """
        before = {name: self._rows(name).clone() for name in types}
        try:
            self.store(types)
            yield self.model
        finally:
            for name, weight in before.items():
                self._rows(name).copy_(weight)
