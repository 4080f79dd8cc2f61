"""Whether a quantised GGUF file is the model of its 16-bit file: the same metadata, and weights near to its weights.

A quantised file may diverge from its checkpoint by any amount, so its predictions alone do not tell a coarse
quantisation from a wrong rotary base. The 16-bit file's predictions have to equal the checkpoint's; what is compared
here carries that over.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import VerificationError

if TYPE_CHECKING:
    import numpy as np

MAY_DIFFER = ("general.file_type", "general.quantization_version", "general.size_label")
"""The only metadata that say how weights are stored, and the size in words, which the converter takes from the name of
the model that it was cut from."""

NEAR = 0.5
"""Largest distance of a matrix from its 16-bit weights, as a share of their norm. Quantisations of 4 bits stay below
0.1 and those of 2 bits below 0.4; other weights, another order or another scale are at 1 or more."""

_ROWS = 256
"""Rows of each matrix that are compared, evenly spaced: all of them would take minutes in large models."""


def check_same_model(exact: Path, quantized: Path) -> None:
    """Check that a quantised file holds the model of its 16-bit file.

    Args:
        exact: The 16-bit file.
        quantized: What was made from it, or from the same checkpoint.

    Raises:
        VerificationError: Metadata or weights differ; the message names the first.
    """
    import gguf

    old, new = gguf.GGUFReader(exact), gguf.GGUFReader(quantized)
    before, after = _metadata(old), _metadata(new)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            raise _difference(f"{name} is {_brief(after.get(name))}, not {_brief(before.get(name))}")
    weights = {tensor.name: tensor for tensor in new.tensors}
    expected = {tensor.name for tensor in old.tensors}
    if expected != weights.keys():
        raise _difference(f"its tensors differ in {min(expected ^ weights.keys())}")
    for tensor in old.tensors:
        found = weights[tensor.name]
        if list(found.shape) != list(tensor.shape):
            raise _difference(f"{tensor.name} has another shape")
        if not _is_near(tensor, found):
            raise _difference(f"the weights of {tensor.name} are others")


def _metadata(reader: Any) -> dict[str, Any]:
    """Return the metadata by name, but for those of the file's own layout and of how weights are stored."""
    return {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and name not in MAY_DIFFER
    }


def _is_near(old: Any, new: Any) -> bool:
    import numpy as np

    expected, found = _rows(old), _rows(new)
    if not bool(np.isfinite(found).all()):
        return False
    if old.tensor_type == new.tensor_type:
        return bool(np.array_equal(expected, found))
    return bool(np.linalg.norm(found - expected) <= NEAR * np.linalg.norm(expected))


def _rows(tensor: Any) -> np.ndarray[Any, Any]:
    """Return some rows of a tensor, float64, shape (rows, columns)."""
    import gguf
    import numpy as np

    data = tensor.data.reshape(-1, tensor.data.shape[-1])
    chosen = np.unique(np.linspace(0, len(data) - 1, min(len(data), _ROWS)).round().astype(int))
    values: np.ndarray[Any, Any] = gguf.quants.dequantize(data[chosen], tensor.tensor_type)
    return values.astype(np.float64)


def _difference(what: str) -> VerificationError:
    return VerificationError(
        f"the quantised file is not the model of its 16-bit file: {what}; nothing was written. Export f16 instead"
    )


def _brief(value: Any) -> str:
    text = "missing" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
