"""Writing what was trained into a checkpoint folder, and the adapter beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..architectures.model_class import stored_state
from ..checkpoint.changed_tensors import stored_tensors, write_changed
from ..checkpoint.loading import load_model
from ..checkpoint.tensors import overwrite_tensor
from .options import RecoveryOptions
from .trainable import add_lora
from .training import Trained

ADAPTER = "adapter"


def write_solved(folder: Path, trained: Trained) -> None:
    """Put the weights that were re-fit before the training into a checkpoint folder.

    Args:
        folder: The checkpoint that they were re-fit from.
        trained: The result of the training.
    """
    tensors = stored_tensors(folder)
    for name, value in trained.solved.items():
        overwrite_tensor(tensors[name], value)


def write_trained(folder: Path, trained: Trained, options: RecoveryOptions) -> list[str]:
    """Put trained parameters into a checkpoint folder, in the dtype of its files, after the re-fit weights.

    An adapter is merged in float32, where it is not merged yet. Tensors that did not change keep their bytes.

    Args:
        folder: The checkpoint that was trained from.
        trained: The result of the training.
        options: The recovery's options.

    Returns:
        Names of the tensors that training changed.
    """
    write_solved(folder, trained)
    model = load_model(folder, torch.float32, torch.device("cpu"))
    if trained.merged:
        _set_parameters(model, trained.merged)
    elif options.uses_lora:
        adapted = add_lora(model, options)
        _set_parameters(model, trained.parameters)
        model = adapted.merge_and_unload()
    else:
        _set_parameters(model, trained.parameters)
    return write_changed(stored_state(model), folder)


@torch.no_grad()
def _set_parameters(model: Any, values: Mapping[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, value in values.items():
        parameters[name].copy_(value)


def save_adapter(folder: Path, trained: Trained, base: str) -> None:
    """Save the adapter beside the merged checkpoint, for use on top of the pruned model.

    Args:
        folder: The checkpoint folder; the adapter goes into its `adapter`.
        trained: The result of the training.
        base: Hub id of the pruned model that it belongs to.
    """
    config = trained.adapter.peft_config["default"]
    config.base_model_name_or_path = base
    config.inference_mode = True
    with torch.no_grad():
        parameters = dict(trained.adapter.get_base_model().named_parameters())
        for name, value in trained.parameters.items():
            parameters[name].copy_(value)
    trained.adapter.save_pretrained(folder / ADAPTER, save_embedding_layers=False)
    (folder / ADAPTER / "README.md").unlink(missing_ok=True)
