"""Buffers that are reused from tensor to tensor, because fresh memory is slow to get."""

from __future__ import annotations

import torch


class Scratch:
    """Reusable buffers. The kernel has to map new pages for every fresh allocation, which takes several times as long
    as the copy into them.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, use: str, nbytes: int) -> torch.Tensor:
        """Return a buffer, uint8, shape (nbytes,). It overwrites the one that was taken for the same use before.

        Args:
            use: What it is for.
            nbytes: Bytes needed.
        """
        if use not in self._buffers or self._buffers[use].numel() < nbytes:
            self._buffers[use] = torch.empty(nbytes, dtype=torch.uint8)
        return self._buffers[use][:nbytes]
