"""Bases that cannot take back what they have read, and classes that keep no cache."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from optimum_ishrink import RequestError
from optimum_ishrink.speculation.refusals import check_base
from tests.helpers.tiny import tiny_config, tiny_model

SOURCE: Any = SimpleNamespace(display_name="odd", raw_config={"model_type": "odd"})


class Model:
    """A model that returns some cache."""

    device = torch.device("cpu")

    def __init__(self, cache: object) -> None:
        self.cache = cache

    def forward(self, input_ids: torch.Tensor, cache: object = None) -> None:
        """Nothing: its arguments say what the cache is called."""

    def __call__(self, **_: object) -> dict[str, object]:
        return {"cache": self.cache}


def test_a_base_that_returns_no_cache_or_with_one_that_cannot_be_cut_back() -> None:
    for cache in (None, SimpleNamespace(is_croppable=False)):
        with pytest.raises(RequestError, match=r"transformers does not draft for odd \(odd\): its state sums up"):
            check_base(SOURCE, Model(cache))
    check_base(SOURCE, tiny_model(tiny_config("llama")))
