"""A second model that a method is given by name: a teacher or a base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..checkpoint.loaded_model import check_name, unwrapped
from ..errors import SourceError


def given_model(model: Any, role: str) -> str | Path:
    """Return the name of a second model, and refuse a loaded one: its tokenizer is not known here.

    Args:
        model: What was given.
        role: What it is: `teacher` or `base`.

    Raises:
        SourceError: It is no name; the message says what to do.
    """
    if isinstance(unwrapped(model), PreTrainedModel):
        raise SourceError(
            f"a loaded model as {role} needs its tokenizer: "
            f"{role}=IShrinker.from_pretrained(model, tokenizer=tokenizer).source"
        )
    try:
        return check_name(model)
    except SourceError as error:
        raise SourceError(f"{role}: {error}") from None
