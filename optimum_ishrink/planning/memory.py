"""Memory that a model takes in transformers, by arithmetic: its weights, and the KV cache of one sequence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..architectures.axes import layers_with
from ..architectures.binding import Binding
from ..architectures.description import GROUPS

_WINDOWS: Mapping[str, str] = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Kinds of layers that hold no more tokens than a key of the config says; all others hold the whole context."""


def stored_bytes(binding: Binding) -> int:
    """Return the bytes of a parameter in the checkpoint's dtype, as its config says; 2 where it does not.

    Args:
        binding: The model.
    """
    dtype = getattr(binding.config, "dtype", None) or getattr(binding.config, "torch_dtype", None)
    bits = re.search(r"\d+", str(dtype))
    return int(bits[0]) // 8 if bits else 2


def kv_cache_bytes(binding: Binding, shape: Mapping[str, int], context: int, element_bytes: int = 2) -> int:
    """Return the bytes of the KV cache of one sequence.

    A layer with a sliding window holds no more tokens than that, and one without attention none: its state, which does
    not grow with the context, is not counted. Latent attention holds the latents that all heads share, and a class
    that keeps no cache holds nothing: the description says how many elements a token has. Which layers
    stay is not known before they are scored: those that hold most are counted, so with fewer layers it is the most
    that the cache can take.

    Args:
        binding: The model.
        shape: Sizes that change, by config key.
        context: Tokens of the sequence.
        element_bytes: Bytes of a key's or value's element, 2 in 16 bits.
    """
    sizes = binding.resized(shape)
    kinds, windows = _kinds(binding.config, binding.sizes["layers"])
    tokens = _cached_tokens(kinds, windows, sizes["layers"], context, layers_with(binding, GROUPS))
    return sizes.get("cache", 2 * sizes["kv"] * sizes["head_dim"]) * element_bytes * tokens


def _kinds(config: Any, layers: int) -> tuple[tuple[str, ...], tuple[int | None, ...]]:
    """Return the kind of each layer as transformers' cache has it, and the window of each kind in `_WINDOWS`."""
    text = config if config is None else config.get_text_config()
    windows = tuple(getattr(text, key, None) for key in _WINDOWS.values())
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        whole = next((kind for kind, window in zip(_WINDOWS, windows, strict=True) if window), "full_attention")
        kinds = [whole] * layers
    return tuple(kinds), windows


@lru_cache(maxsize=1024)
def _cached_tokens(
    kinds: tuple[str, ...], windows: tuple[int | None, ...], layers: int, context: int, attention: tuple[int, ...]
) -> int:
    """Return the tokens that all layers hold together, of which some have attention."""
    known = dict(zip(_WINDOWS, windows, strict=True))
    held = [min(context, known.get(kinds[layer]) or context) for layer in attention]
    return sum(sorted(held, reverse=True)[:layers])


@dataclass(frozen=True)
class Memory:
    """What a target on memory counts: the weights, and the KV cache of one sequence in the same dtype.

    Activations and the libraries are not counted: `ishrink search --runtime torch` measures them.

    Args:
        parameter_bytes: Bytes of a parameter in the checkpoint's dtype, which transformers computes in.
        context: Tokens of the sequence.
    """

    parameter_bytes: int
    context: int

    @property
    def per_parameter(self) -> int:
        """Bytes of one more parameter."""
        return self.parameter_bytes

    def of(self, binding: Binding, shape: Mapping[str, int], count: int) -> int:
        """Return the bytes of a shape.

        Args:
            binding: The model.
            shape: The sizes by config key.
            count: Its number of parameters.
        """
        return count * self.parameter_bytes + kv_cache_bytes(binding, shape, self.context, self.parameter_bytes)

    def words(self, value: float) -> str:
        """Return an amount with its unit.

        Args:
            value: The amount.
        """
        return f"{value / 1e6:,.1f} MB of memory"

    def change(self, value: float, whole: float) -> str:
        """Return by how much an amount differs.

        Args:
            value: The amount.
            whole: That of the unpruned model.
        """
        return f"-{1 - value / whole:.2%}"
