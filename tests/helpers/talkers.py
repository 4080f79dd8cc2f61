"""Tiny models that talk: with a chat template, and no end token that they would meet at once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from optimum_ishrink.chat.speaker import Speaker
from tests.helpers.tiny import save_tiny, tiny_config, tiny_model, tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def talking_tokenizer(template: str | None = TEMPLATE) -> Any:
    """The byte-level tokenizer with a chat template."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = template
    return tokenizer


def speaker(model_type: str = "llama", *, seed: int = 0, reuse: bool = True, **changes: Any) -> Speaker:
    """A speaker of a tiny random model."""
    model = tiny_model(tiny_config(model_type, **changes), seed)
    return Speaker(model, talking_tokenizer(), f"tiny-{seed}", reuse=reuse)


def save_talker(folder: Path, *, seed: int = 0, template: str | None = TEMPLATE, **changes: Any) -> Path:
    """Save a tiny model that talks, and return the folder."""
    save_tiny(folder, tiny_config("llama", **changes), seed=seed)
    talking_tokenizer(template).save_pretrained(folder)
    return folder
