"""Small settings and text for recovery's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from optimum_ishrink.recovery.options import RecoveryOptions
from optimum_ishrink.recovery.teacher import LayerMap, LiveTeacher
from optimum_ishrink.recovery.training import train
from optimum_ishrink.recovery.training_text import RecoveryText
from tests.helpers.tiny import tiny_config, tiny_model

SMALL = RecoveryOptions(
    recovery="kl",
    recovery_tokens=600,
    recovery_length=16,
    recovery_lora_rank=4,
    recovery_lora_alpha=8,
    recovery_compensation_samples=8,
    recovery_learning_rate=5e-3,
    recovery_batch_size=4,
    recovery_save_steps=4,
    recovery_patience=100,
    batch_size=4,
)

_NAMES = {
    "loss": "recovery",
    "trained": "recovery_train",
    "micro_batch_size": "batch_size",
    "seed": "seed",
    "for_": "recovery_for",
}
_NAMES |= {name: f"recovery_lora_{name}" for name in ("rank", "alpha", "dropout", "targets")}


def settings(**changes: Any) -> RecoveryOptions:
    """Small options; names are those of recovery's without their prefix."""
    return SMALL.replace(**{_NAMES.get(name, f"recovery_{name}"): value for name, value in changes.items()})


def random_text(windows: int = 36, length: int = 16, held_out: int = 4) -> RecoveryText:
    ids = torch.randint(3, 300, (windows, length), generator=torch.Generator().manual_seed(7))
    return RecoveryText(ids, ids.clone(), held_out, torch.zeros(windows, dtype=torch.int64))


def cut_model(model: Any, amount: float = 0.5, seed: int = 3) -> Any:
    """Change a model so that it is worse, but near: half of every MLP's neurons at zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "down_proj" in name:
                parameter[:, : int(parameter.shape[1] * amount)] = 0
    return model


LAYERS = [f"model.layers.{i}" for i in range(4)]


def shallow(depth: int = 2) -> Any:
    """A model with as many layers as most tests of a training need."""
    return tiny_model(tiny_config("llama", num_hidden_layers=depth))


def go(folder: Path, teacher: Any = None, *, model: Any = None, text: Any = None, **changes: Any) -> Any:
    """Recover a tiny cut model; the same call gives the same result."""
    model = model if model is not None else cut_model(shallow())
    depth = model.config.num_hidden_layers
    teacher = teacher or LiveTeacher(shallow(depth), layers=True, values=True)
    return train(
        model,
        teacher,
        text or random_text(),
        settings(**changes),
        folder,
        layers=LAYERS[:depth],
        layer_map=LayerMap.even(depth, depth),
    )
