"""Opening a conversation: the models are loaded and warmed up, and what a user should know about them is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..checkpoint.session import Session
from ..checkpoint.source import Source, open_source
from ..core.device import dtype_name
from ..errors import SourceError
from ..options.run import RunOptions
from .conversation import Conversation
from .options import ChatOptions
from .speaker import Speaker


def open_conversation(source: Source, base: str | Path | None, options: ChatOptions, run: RunOptions) -> Conversation:
    """Load a model, and the one beside it, and warm both up.

    Args:
        source: The model.
        base: Hub id or folder of the model beside it, or None.
        options: How answers are generated.
        run: Device, dtype and seed.

    Raises:
        SourceError: A model cannot be opened or loaded.
        RequestError: The device is not there, or a system prompt has no place.
    """
    other = None
    if base is not None:
        try:
            other = open_source(base)
        except SourceError as error:
            raise SourceError(f"base: {error}") from None
    session = Session(source, run)
    sessions = [session] if other is None else [session, Session(other, run)]
    # Tokenizers first: where one does not open, nothing was loaded in vain.
    tokenizers = [each.tokenizer for each in sessions]
    speakers = [
        Speaker(each.model, tokenizer, each.source.display_name)
        for each, tokenizer in zip(sessions, tokenizers, strict=True)
    ]
    compute: dict[str, Any] = {"device": str(session.device), "dtype": dtype_name(session.dtype)}
    if session.device.type == "cpu":
        compute["threads"] = torch.get_num_threads()
    beside = speakers[1] if len(speakers) > 1 else None
    conversation = Conversation(speakers[0], beside, options=options, seed=run.seed, compute=compute)
    for speaker in speakers:
        speaker.warm_up()
    return conversation


def facts(conversation: Conversation) -> list[str]:
    """Return what a user should know before the first prompt, a line each.

    Args:
        conversation: The conversation.
    """
    lines = []
    speakers = list(conversation.speakers.values())
    for speaker in speakers:
        if not speaker.has_template:
            lines.append(
                f"{speaker.name} has no chat template: each prompt is completed as plain text, without earlier turns"
            )
    if len({speaker.tokenizer.chat_template for speaker in speakers if speaker.has_template}) > 1:
        lines.append("The two have different chat templates; each reads its own.")
    return lines
