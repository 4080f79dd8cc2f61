"""Writing those tensors of a loaded model into its checkpoint's files that are not what the files hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from ..architectures.model_class import parse_config
from ..core.json_files import read_json
from .stored_names import read_by_parameter
from .tensors import DTYPES, TensorInfo, overwrite_tensor, read_tensor, stored_names


def stored_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Return where the tensors of a checkpoint folder are, by the names of `expected_tensors`.

    Args:
        folder: The checkpoint.
    """
    return read_by_parameter(folder, parse_config(read_json(folder / "config.json")))


def write_changed(state: Mapping[str, torch.Tensor], folder: Path, only: Collection[str] | None = None) -> list[str]:
    """Write the tensors that changed, in the dtype of the files. The others keep their bytes.

    Args:
        state: What `stored_state` gives for the loaded model.
        folder: The checkpoint.
        only: Names, as in the state, of the tensors that may change; None for all.

    Returns:
        Names of the tensors that were written.
    """
    stored = stored_tensors(folder)
    names = stored_names(list(state), list(stored))
    written = []
    for name, tensor in state.items():
        if names[name] not in stored:  # a buffer that this version of transformers saves and the source's did not
            continue
        if only is not None and name not in only:
            continue
        target = stored[names[name]]
        value = tensor.to(DTYPES[target.dtype])
        if not torch.equal(value, read_tensor(target)):
            overwrite_tensor(target, value)
            written.append(names[name])
    return written
