"""The name under which a model takes and returns its key-value cache, which depends on the version of transformers.

Newer versions call it `cache`, both as an argument and in the output. Older ones call it `past_key_values`, a name
that transformers 5.40 removes.
"""

from __future__ import annotations

import inspect
from typing import Any


def has_state(cache: Any) -> bool:
    """Return whether a cache holds more than keys and values: states that sum up what was read, or an index of it.

    Not every class goes on from these when several tokens are read at once (the first version of Mamba begins anew,
    and an index is searched as if nothing had been read before), so what was read before has to be read again. So it
    has where a class brings a cache of its own, of which nothing is known.

    Args:
        cache: The cache, after the model has run; None holds nothing.
    """
    if cache is None:
        return False
    layers = getattr(cache, "layers", ())
    if type(cache).__module__ != "transformers.cache_utils" or any(map(_is_indexed, layers)):
        return True
    return any(any(getattr(layer, "is_recurrent_states_initialized", {}).values()) for layer in layers)


def _is_indexed(layer: Any) -> bool:
    return "Indexed" in type(layer).__name__


def cache_name(model: Any) -> str:
    """Return the name under which a model takes a cache and returns one."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
