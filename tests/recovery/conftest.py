from __future__ import annotations

from typing import Any

import pytest
from small import cut_model
from tiny import tiny_config, tiny_model


@pytest.fixture
def student() -> Any:
    return cut_model(tiny_model(tiny_config("llama")))


@pytest.fixture
def teacher_model() -> Any:
    return tiny_model(tiny_config("llama"))
