"""The name under which a model takes and returns its key-value cache, which depends on the version of transformers.

Newer versions call it `cache`, both as an argument and in the output. Older ones call it `past_key_values`, a name
that transformers 5.40 removes.
"""

from __future__ import annotations

import inspect
from typing import Any


def cache_name(model: Any) -> str:
    """Return the name under which a model takes a cache and returns one."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
