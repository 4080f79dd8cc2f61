"""The name under which a model takes and returns its key-value cache, which depends on the version of transformers.

Newer versions call it `cache`, both as an argument and in the output. Older ones call it `past_key_values`, a name
that transformers 5.40 removes.
"""

from __future__ import annotations

import inspect
from typing import Any


def has_state(cache: Any) -> bool:
    """Return whether a cache holds states that sum up what was read, beside keys and values or in their place.

    Not every class goes on from such a state when several tokens are read at once (the first version of Mamba begins
    anew), so what was read before has to be read again. So it has where a class brings a cache of its own, of which
    nothing is known.

    Args:
        cache: The cache, after the model has run; None holds nothing.
    """
    if cache is None:
        return False
    if type(cache).__module__ != "transformers.cache_utils":
        return True
    layers = getattr(cache, "layers", ())
    return any(any(getattr(layer, "is_recurrent_states_initialized", {}).values()) for layer in layers)


def cache_name(model: Any) -> str:
    """Return the name under which a model takes a cache and returns one."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
