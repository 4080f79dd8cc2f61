"""A loaded model with its matrices as a quantised file holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..edge.gguf_quantizations import TENSOR_TYPES, stored_as


def as_stored(weight: torch.Tensor, type_name: str) -> torch.Tensor:
    """Return weights as a GGUF file gives them back: quantised and dequantised by the `gguf` package's own code.

    Args:
        weight: A matrix, its rows last, as the file has them.
        type_name: Name of the requested type; rows that do not fit it are stored as its fallback.
    """
    found = stored_as(weight.shape[-1], TENSOR_TYPES[type_name])
    if found.block == 1:
        return weight.clone()
    import gguf

    kind = gguf.GGMLQuantizationType[found.name.upper()]
    values = weight.detach().to("cpu", torch.float32).contiguous().numpy()
    stored = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
    return torch.from_numpy(stored).to(weight.device, weight.dtype)


class StoredWeights:
    """A loaded model whose matrices can be replaced by what a file holds.

    Args:
        model: The model.
        names: The parameter of each matrix, by the matrix's name in the file.
        transposed: Parameters that the checkpoint stores with rows and columns exchanged.
    """

    def __init__(self, model: Any, names: Mapping[str, str], transposed: Sequence[str] = ()) -> None:
        self.model = model
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
        return float((as_stored(rows, type_name).float() - rows.float()).square().sum())

    def store(self, types: Mapping[str, str]) -> None:
        """Replace matrices by what a file holds, for good.

        Args:
            types: Names of types, by the matrix's name in the file.
        """
        for name, each in types.items():
            rows = self._rows(name)
            rows.copy_(as_stored(rows, each))

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
