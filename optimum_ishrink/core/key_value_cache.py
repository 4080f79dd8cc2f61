"""Reading a text step by step, with the key-value cache of a model or, of a class that keeps none, without.

The name under which a model takes and returns its cache depends on the version of transformers. Newer versions call it
`cache`, both as an argument and in the output. Older ones call it `past_key_values`, a name that transformers 5.40
removes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache


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


def keeps_cache(model: Any) -> bool:
    """Return whether a model takes a cache.

    Some classes do not, such as that of the first GPT: they ignore a cache that they are given, and return none.

    Args:
        model: The model, or its class.
    """
    return cache_name(model) in inspect.signature(model.forward).parameters


def own_cache(model: Any) -> type[Any] | None:
    """Return the kind of cache that a model makes itself, where its class takes no other; it reads one token for that.

    Args:
        model: The model; its class takes a cache.
    """
    first = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    with torch.no_grad():
        made = type(getattr(model(input_ids=first, use_cache=True), cache_name(model)))
    return None if made is DynamicCache else made


def step_reader(model: Any) -> Callable[..., tuple[Any, Any]]:
    """Return a function that reads tokens of a text after those before them.

    It takes the tokens, shape (batch, number); what it returned with the tokens before them, None at first; and more
    arguments of the model by name. It returns the model's output, and what was read by then: the cache, or all tokens
    where the class keeps none, because these are read again in the next step. The output ends with the tokens given.

    Args:
        model: The model.
    """
    name = cache_name(model)

    def read(ids: torch.Tensor, before: Any = None, **given: Any) -> tuple[Any, Any]:
        output = model(input_ids=ids, use_cache=True, **{name: before}, **given)
        return output, output[name]

    def read_again(ids: torch.Tensor, before: torch.Tensor | None = None, **given: Any) -> tuple[Any, torch.Tensor]:
        whole = ids if before is None else torch.cat([before, ids], dim=1)
        return model(input_ids=whole, **given), whole

    return read if keeps_cache(model) else read_again
