"""Small settings and text for recovery's tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from optimum_ishrink.recovery.settings import RecoverySettings
from optimum_ishrink.recovery.trainable import LoraSettings
from optimum_ishrink.recovery.training_text import RecoveryText
from optimum_ishrink.text.sources import TextSource

SETTINGS = RecoverySettings(
    data=(TextSource("self"),),
    tokens=600,
    length=16,
    sampling_temperature=1.0,
    sampling_filter=0.1,
    cache=None,
    loss="kl",
    trained="lora",
    lora=LoraSettings(rank=4, alpha=8, dropout=0.0, targets=()),
    lora_start="zero",
    compensation="none",
    compensation_samples=8,
    learning_rate=5e-3,
    batch_size=4,
    micro_batch_size=2,
    epochs=1,
    temperature=1.0,
    top_k=None,
    labels="text",
    save_steps=4,
    patience=100,
    checkpointing=False,
    seed=0,
)


def settings(**changes: Any) -> RecoverySettings:
    lora = {name: changes.pop(name) for name in ("rank", "alpha", "dropout", "targets") if name in changes}
    return replace(SETTINGS, lora=replace(SETTINGS.lora, **lora), **changes)


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
