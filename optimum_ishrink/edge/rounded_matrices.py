"""Matrices of a 16-bit GGUF file, rounded to types for what they compute on calibration text, and stored on disk."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.durable import load_tensors, save_tensors
from ..core.progress import progress_bar
from ..modeling.error_carry import error_carry
from ..options.gguf_types import PLAIN_TYPES
from .calibrated_rounding import calibrated_blocks
from .gguf_quantizations import TENSOR_TYPES, stored_as
from .input_moments import input_moments

if TYPE_CHECKING:
    import numpy as np

_BLOCKS = "blocks"

_CHANGED = "whose values in the file are not those of the loaded model"
_UNREAD = "that no linear layer multiplies, such as an embedding that is not the head"
"""Why matrices have the nearest values."""


class RoundedMatrices:
    """The rounded matrices of one model. What is in the folder is not rounded again.

    Args:
        exact: The model as a GGUF file of 16 bits.
        folder: Where they are stored; it is made when the first is.
        parameters: The model's parameter for each matrix, by the matrix's name in the file.
        transposed: Parameters that the checkpoint stores with rows and columns exchanged.
    """

    def __init__(
        self, exact: Path, folder: Path, parameters: Mapping[str, str], transposed: Collection[str] = ()
    ) -> None:
        import gguf

        self._tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(exact).tensors}
        self._folder = folder
        self.parameters = parameters
        """The model's parameter for each matrix."""
        self._transposed = transposed
        self._orders: dict[str, np.ndarray[Any, Any] | None] = {}
        self.left: dict[str, str] = {}
        """Matrices that `round` cannot round, which have the nearest values: why, by their names in the file."""

    def round(self, model: Any, windows: torch.Tensor, types: Mapping[str, Collection[str]]) -> None:
        """Round matrices that are not rounded yet. Types of another kind than `PLAIN_TYPES` are left out.

        Matrices that cannot be rounded are in `left` afterwards.

        Args:
            model: The loaded model.
            windows: Token ids, int64, shape (windows, length).
            types: Names of types, by the matrix's name in the file.

        Raises:
            NotFiniteError: The model gives values that are not finite.
        """
        for name in self.missing(types):
            if self.order(name, model) is None:
                self.left[name] = _CHANGED
        wanted = self.missing(types)
        names = {name: self.parameters[name] for name in wanted}
        if not names:
            return
        unread = set(names)
        with progress_bar("rounding for what is computed", len(names)) as advance:
            for moments in input_moments(model, windows, names, averaged=_values(names)):
                unread -= moments.keys()
                last = None
                for name, moment in moments.items():
                    if moment is not last:  # gates and up projections share theirs
                        last, carry = moment, error_carry(moment)
                    exact = self._exact(name)
                    for each in wanted[name]:
                        blocks = torch.from_numpy(calibrated_blocks(exact, carry, each))
                        save_tensors(self._path(name, each), {_BLOCKS: blocks})
                    advance(1)
            advance(len(unread))
        self.left |= dict.fromkeys(unread, _UNREAD)

    def missing(self, types: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
        """Return what has to be rounded yet, as `round` takes it, without what cannot be.

        Args:
            types: Names of types, by the matrix's name in the file.
        """
        found = {
            name: [each for each in of if self._takes(name, each) and not self._path(name, each).is_file()]
            for name, of in types.items()
            if name in self.parameters and name not in self.left
        }
        return {name: of for name, of in found.items() if of}

    def _takes(self, name: str, type_name: str) -> bool:
        if type_name not in PLAIN_TYPES or name not in self._tensors:
            return False
        columns = int(self._tensors[name].shape[0])
        return stored_as(columns, TENSOR_TYPES[type_name]).name == type_name and len(self._tensors[name].shape) == 2

    def _path(self, name: str, type_name: str) -> Path:
        return self._folder / type_name / f"{name}.safetensors"

    def _exact(self, name: str) -> torch.Tensor:
        import gguf

        tensor = self._tensors[name]
        return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))

    def blocks(self, name: str, type_name: str) -> np.ndarray[Any, Any] | None:
        """Return a matrix as a file of the type stores it, uint8, shape (rows, bytes); None if it is not rounded.

        Args:
            name: Its name in the file.
            type_name: Name of the type.
        """
        path = self._path(name, type_name)
        return load_tensors(path)[_BLOCKS].numpy() if path.is_file() else None

    def values(self, name: str, type_name: str, model: Any) -> torch.Tensor | None:
        """Return a rounded matrix in the order of the model's rows, float32; None if it is not rounded.

        Args:
            name: Its name in the file.
            type_name: Name of the type.
            model: The loaded model.
        """
        blocks = self.blocks(name, type_name)
        order = None if blocks is None else self.order(name, model)
        if blocks is None or order is None:
            return None
        import gguf

        found = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[type_name.upper()])
        return torch.from_numpy(found[order])

    def order(self, name: str, model: Any) -> np.ndarray[Any, Any] | None:
        """Return the place in the file of each of the model's rows: files have some matrices' rows in another order.

        Args:
            name: The matrix's name in the file.
            model: The loaded model, with the weights that the file was made from, in any dtype; it is read once.

        Returns:
            Indices, or None where a row of the model is not in the file.
        """
        if name not in self._orders:
            self._orders[name] = self._find_order(name, model)
        return self._orders[name]

    def _find_order(self, name: str, model: Any) -> np.ndarray[Any, Any] | None:
        import gguf

        weight = model.get_parameter(self.parameters[name]).detach()
        if self.parameters[name] in self._transposed:
            weight = weight.T
        half = torch.float16 if self._tensors[name].tensor_type == gguf.GGMLQuantizationType.F16 else torch.bfloat16
        there, wanted = self._exact(name), weight.cpu()
        # What one of the two has rounded away, the other loses here as well.
        for each in dict.fromkeys((half, wanted.dtype)):
            if each.itemsize == half.itemsize:
                found = find_rows(there.to(each), wanted.to(each))
                if found is not None:
                    return found
        return None


def _values(names: Collection[str]) -> list[str]:
    """Return the matrices that give attention its values, by their names in a file."""
    return [name for name in names if ".attn_v." in name]


def find_rows(there: torch.Tensor, wanted: torch.Tensor) -> np.ndarray[Any, Any] | None:
    """Return the place of each row of a matrix in another one with the same rows in another order.

    Args:
        there: Where they are sought, shape (rows, columns), 16 bits each.
        wanted: The rows, of the same shape and dtype.

    Returns:
        Indices, shape (rows,), or None where one is missing. Of equal rows each has its own place.
    """
    import numpy as np

    if there.shape != wanted.shape:
        return None
    if torch.equal(there, wanted):
        return np.arange(len(there))
    old, new = (
        np.ascontiguousarray(each.contiguous().view(torch.int16).numpy()).view(np.dtype((np.void, 2 * each.shape[1])))[
            :, 0
        ]
        for each in (there, wanted)
    )
    by_old, by_new = np.argsort(old, kind="stable"), np.argsort(new, kind="stable")
    if not np.array_equal(old[by_old], new[by_new]):
        return None
    places = np.empty(len(old), np.int64)
    places[by_new] = by_old
    return places
