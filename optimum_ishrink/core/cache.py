"""Where scores and results are cached between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the cache folder: `ISHRINK_CACHE`, or `ishrink` in the Hugging Face home."""
    from huggingface_hub.constants import HF_HOME

    override = os.environ.get("ISHRINK_CACHE")
    return Path(override).expanduser() if override else Path(HF_HOME) / "ishrink"
