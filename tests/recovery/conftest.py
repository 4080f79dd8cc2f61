from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def frozen_libraries() -> Iterator[None]:
    """Every training run begins with a full garbage collection; it need not walk through the libraries each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
