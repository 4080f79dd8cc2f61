"""A key-value cache whose room is there from the beginning, of which attention reads what is filled.

A cache that grows is copied at every token. That of a fixed size, which compiled graphs need, is read whole at every
token, and at first most of it is empty.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import StaticCache
from transformers.cache_utils import LinearAttentionLayer, StaticLayer, StaticSlidingWindowLayer


class PreallocatedLayer(StaticLayer):  # type: ignore[misc]
    """Keys and values of one layer.

    Args:
        max_cache_len: Tokens that there is room for.
    """

    # So that transformers makes a mask, although all that is read is visible: without one, PyTorch on a CPU takes four
    # times as long for query heads that share keys.
    is_compileable = True

    def __init__(self, max_cache_len: int) -> None:
        super().__init__(max_cache_len)
        self.is_initialized: bool = False
        self.tokens = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add those of further tokens, shape (batch, heads, tokens, size); return all so far, without a copy."""
        if not self.is_initialized:
            room = (self.max_cache_len,)
            self.keys = key_states.new_empty(key_states.shape[:2] + room + key_states.shape[3:])
            self.values = value_states.new_empty(value_states.shape[:2] + room + value_states.shape[3:])
            self.is_initialized = True
        start, self.tokens = self.tokens, self.tokens + key_states.shape[2]
        self.keys[:, :, start : self.tokens] = key_states
        self.values[:, :, start : self.tokens] = value_states
        return self.keys[:, :, : self.tokens], self.values[:, :, : self.tokens]

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Return how many tokens attention reads with further ones, and the place of the first."""
        further = query_length if isinstance(query_length, int) else len(query_length)  # older versions give positions
        return self.tokens + further, 0

    def get_seq_length(self, *args: Any) -> int:
        """Return how many tokens there are."""
        return self.tokens


def preallocated_cache(config: Any, length: int) -> Any:
    """Return an empty cache with room for a text.

    Layers that keep something else, such as a window of the last tokens or a state, are those of `StaticCache`.

    Args:
        config: The model's config.
        length: Tokens of the text.
    """
    cache = StaticCache(config=config, max_cache_len=length)
    # All layers of full attention share one mask, so none of them may be of another kind.
    if {type(layer) for layer in cache.layers} <= {StaticLayer, StaticSlidingWindowLayer, LinearAttentionLayer}:
        cache.layers = [PreallocatedLayer(length) if _keeps_all(layer, length) else layer for layer in cache.layers]
    return cache


def _keeps_all(layer: Any, length: int) -> bool:
    """Whether a layer keeps the keys and values of a whole text."""
    return isinstance(layer, StaticLayer) and layer.max_cache_len >= length
