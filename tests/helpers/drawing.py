"""Cards and analyses without their figures: drawing takes longer than everything else on tiny models."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.analysis import zero_out
from optimum_ishrink.card import build

_DRAWING = [(build, name) for name in ("draw_removed", "draw_importance", "draw_quality", "draw_speed")]
_DRAWING += [(zero_out, name) for name in ("draw_sparsity", "draw_sensitivity")]
_ORIGINAL = [getattr(module, name) for module, name in _DRAWING]
_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)


def _draw_a_pixel(*arguments: Any) -> None:
    path = arguments[-1]
    assert isinstance(path, Path)
    path.write_bytes(_PIXEL)


@contextmanager
def without_pictures() -> Iterator[None]:
    """Replace each figure of a card or of an analysis by one pixel."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in _DRAWING:
            patch.setattr(module, name, _draw_a_pixel)
        yield


@contextmanager
def with_pictures() -> Iterator[None]:
    """Draw all figures, inside `without_pictures` too."""
    with pytest.MonkeyPatch.context() as patch:
        for (module, name), draw in zip(_DRAWING, _ORIGINAL, strict=True):
            patch.setattr(module, name, draw)
        yield
