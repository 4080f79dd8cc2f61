"""The limits of a model: positions and embeddings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.core.limits import check_lengths, check_tokens, max_positions
from optimum_ishrink.errors import DataError, RequestError
from tests.helpers.tiny import tiny_config, tiny_tokenizer


def test_positions_of_configs() -> None:
    assert max_positions(tiny_config("llama", max_position_embeddings=100)) == 100
    assert max_positions(tiny_config("gpt2", n_positions=64, max_position_embeddings=64)) == 64
    unknown: Any = SimpleNamespace(max_position_embeddings=None)
    unknown.get_text_config = lambda: unknown
    assert max_positions(unknown) is None
    for kind in ("linear", "dynamic", "yarn"):
        config = tiny_config("llama", max_position_embeddings=100)
        config.rope_parameters = {"rope_type": kind, "factor": 4.0, "rope_theta": 10000.0}
        assert max_positions(config) == 400
        config.rope_parameters["original_max_position_embeddings"] = 50
        assert max_positions(config) == 200


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_a_window_fits_up_to_the_last_position(limit: int, length: int) -> None:
    config = tiny_config("llama", max_position_embeddings=limit)
    if length <= limit:
        check_lengths(config, "m", eval_length=length)
        return
    with pytest.raises(RequestError, match=rf"^eval_length={length} is more than the {limit} positions of m; use at"):
        check_lengths(config, "m", eval_length=length)


@given(st.lists(st.integers(0, 258), min_size=1), st.integers(1, 259))
def test_the_first_token_without_an_embedding_is_named(ids: list[int], rows: int) -> None:
    outside = sorted({token for token in ids if token >= rows})
    if not outside:
        check_tokens(torch.tensor(ids), rows, tiny_tokenizer(), "text", "m")
        return
    with pytest.raises(DataError, match=rf"text has the .*token .* with the id {outside[0]}.*has {rows} embeddings"):
        check_tokens(ids, rows, tiny_tokenizer(), "text", "m")


def test_special_tokens_are_called_what_they_are() -> None:
    with pytest.raises(DataError, match="the end-of-text token '</s>' with the id 2, but m has 2 embeddings"):
        check_tokens([0, 2], 2, tiny_tokenizer(), "text", "m")
