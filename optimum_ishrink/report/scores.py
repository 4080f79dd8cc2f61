"""Importance scores as a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from ..core.durable import replace_file


def write_scores(scores: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write importance scores as safetensors, in a file that is whole at any time.

    Args:
        scores: Config key to scores.
        path: The new file.
    """
    replace_file(path, save({name: values.contiguous() for name, values in scores.items()}, {"format": "pt"}))


def read_scores(path: Path) -> dict[str, torch.Tensor]:
    """Read importance scores.

    Args:
        path: A file that `write_scores` wrote.
    """
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
