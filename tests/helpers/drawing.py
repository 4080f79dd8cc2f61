"""Cards without their figures: drawing them takes longer than everything else on tiny models."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.card import build

_DRAWING = ("draw_removed", "draw_importance", "draw_quality", "draw_speed")
_ORIGINAL = {name: getattr(build, name) for name in _DRAWING}
_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)


def _draw_a_pixel(*arguments: Any) -> None:
    path = arguments[-1]
    assert isinstance(path, Path)
    path.write_bytes(_PIXEL)


@contextmanager
def without_pictures() -> Iterator[None]:
    """Replace each of a card's figures by one pixel."""
    with pytest.MonkeyPatch.context() as patch:
        for name in _DRAWING:
            patch.setattr(build, name, _draw_a_pixel)
        yield


@contextmanager
def with_pictures() -> Iterator[None]:
    """Draw the card's figures, inside `without_pictures` too."""
    with pytest.MonkeyPatch.context() as patch:
        for name, draw in _ORIGINAL.items():
            patch.setattr(build, name, draw)
        yield
