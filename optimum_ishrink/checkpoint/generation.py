"""generation_config.json: checked before long work, and written so that transformers accepts and saves it again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from ..core.json_files import read_json
from ..errors import SourceError

GENERATION_CONFIG = "generation_config.json"

_FLAG = re.compile(r"^- `(\w+)`:", re.MULTILINE)


def check_generation_config(folder: Path) -> None:
    """Check that a checkpoint's generation config, if there is one, can be written so that it validates.

    Args:
        folder: The checkpoint.

    Raises:
        SourceError: It is not a JSON object, or transformers refuses its values.
    """
    if (folder / GENERATION_CONFIG).is_file():
        mend_generation_config(folder / GENERATION_CONFIG)


def mend_generation_config(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the contents of a generation config without the flags that have no effect, and the names of these.

    transformers reads a file that sets a temperature but does not sample, and refuses to save it again with the
    model. Without such flags `generate` does the same.

    Args:
        path: The file.

    Returns:
        The contents, and the names of the flags that are left out: none where the file validates as it is.

    Raises:
        SourceError: It is not a JSON object, or transformers refuses its values.
    """
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise SourceError(f"{path} is not a JSON object; mend it, or remove it")
    dropped: list[str] = []
    while True:
        kept = {key: value for key, value in raw.items() if key not in dropped}
        reason = _refusal(kept)
        if reason is None:
            return kept, dropped
        found = [flag for flag in _FLAG.findall(reason) if flag in kept]
        if not found:
            text = " ".join(reason.split())[:300]
            raise SourceError(f"transformers refuses {path} ({text}); mend it, or remove it")
        dropped += found


def drop_idle_flags(config: GenerationConfig) -> None:
    """Unset the flags of a generation config that have no effect, so that it can be saved.

    Args:
        config: The config; it is changed.
    """
    try:
        config.validate(strict=True)
    except ValueError as error:
        for flag in _FLAG.findall(str(error)):
            setattr(config, flag, None)


def _refusal(raw: Mapping[str, Any]) -> str | None:
    try:
        GenerationConfig.from_dict(dict(raw)).validate(strict=True)
    except Exception as error:  # wrong types raise whatever their first comparison raises
        return str(error) or type(error).__name__
    return None
