"""Rounding the matrices of a search's models for what they compute on calibration text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.session import Session
from ..core.progress import note
from ..edge.rounded_matrices import RoundedMatrices
from ..text.calibration import Calibration
from .layout import Layout
from .making import Made, Maker


def matrix_parameters(layout: Layout, model: Any) -> tuple[dict[str, str], list[str]]:
    """Return a model's parameter for each matrix of its file, and the parameters that checkpoints store transposed.

    Args:
        layout: The base's file.
        model: The base, or a checkpoint that was made from it.
    """
    tensors, parameters = layout.binding.tensors, dict(model.named_parameters())
    names = {
        tensor.name: tensors[tensor.source].parameter
        for tensor in layout.tensors
        if tensor.is_matrix
        and tensor.source is not None
        and tensor.source in tensors
        and tensors[tensor.source].parameter in parameters
    }
    return names, [tensor.parameter for tensor in tensors.values() if tensor.transposed]


class Rounding:
    """Rounds the matrices of models. What was rounded is on disk beside the model, and is not rounded again.

    Args:
        layout: The base's file.
        maker: Has the models and the calibration text.
        exact_file: Returns the file of 16 bits of a checkpoint, written where it is not there yet.
    """

    def __init__(self, layout: Layout, maker: Maker, exact_file: Callable[[Made], Path]) -> None:
        self._layout = layout
        self._maker = maker
        self._exact_file = exact_file
        self._matrices: dict[Path, RoundedMatrices] = {}
        self._noted: set[str] = set()

    def rounded(self, made: Made, types: Mapping[str, str]) -> RoundedMatrices:
        """Return a checkpoint's matrices rounded to the types of a file, where they are not yet.

        Args:
            made: The checkpoint.
            types: Name of the type of each matrix, by its name in its file.
        """
        return self.rounded_to_each(made, {name: (each,) for name, each in types.items()})

    def rounded_to_each(self, made: Made, types: Mapping[str, Collection[str]]) -> RoundedMatrices:
        """Return a checkpoint's matrices rounded to several types each, where they are not yet.

        A note says how many cannot be rounded, and why, where no other checkpoint had the same reasons.

        Args:
            made: The checkpoint.
            types: Names of types, by the matrix's name in its file.
        """
        folder, model = made.place / "rounded", None
        if folder not in self._matrices:
            model = self._maker.load(made)
            names, transposed = matrix_parameters(self._layout, model)
            self._matrices[folder] = RoundedMatrices(self._exact_file(made), folder, names, transposed)
        found = self._matrices[folder]
        if found.missing(types):
            found.round(self._maker.load(made) if model is None else model, self._windows(made), types)
        self._note(found.left, len(found.parameters))
        return found

    def _note(self, left: Mapping[str, str], matrices: int) -> None:
        """Say why matrices have the nearest values."""
        if not self._noted.issuperset(left.values()):
            self._noted |= set(left.values())
            reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(left.values()).items())
            note(f"the nearest values are kept in {len(left)} of {matrices} matrices: {reasons}")

    def _windows(self, made: Made) -> torch.Tensor:
        """Return the calibration text in a checkpoint's own tokens."""
        config, drawn = self._maker.config, self._maker.calibration
        if made.pair is not None:
            drawn = Calibration(config, Session(made.source, config), whole=drawn)
        return drawn.windows[: config.importance_samples]
