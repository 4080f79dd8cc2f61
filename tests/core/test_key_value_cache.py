from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from optimum_ishrink.core.key_value_cache import cache_name, has_state, keeps_cache, step_reader
from tests.helpers.tiny import tiny_config, tiny_model


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_model_takes_and_returns_its_cache_under_one_name(model_type: str) -> None:
    model = tiny_model(tiny_config(model_type))
    for part in (model, model.base_model):
        name = cache_name(part)
        cache = part(input_ids=torch.tensor([[3, 4]]), use_cache=True)[name]
        assert part(input_ids=torch.tensor([[5]]), use_cache=True, **{name: cache})[name].get_seq_length() == 3


def test_older_versions_have_the_longer_name() -> None:
    def forward(input_ids: Any, past_key_values: Any = None) -> None: ...

    assert cache_name(SimpleNamespace(forward=forward)) == "past_key_values"


@pytest.mark.parametrize(("model_type", "kept"), [("llama", True), ("openai-gpt", False)])
def test_a_text_is_read_in_steps_with_a_cache_or_without(model_type: str, kept: bool) -> None:
    model, ids = tiny_model(tiny_config(model_type)), torch.arange(3, 23).view(2, 10)
    assert keeps_cache(model) is keeps_cache(type(model)) is kept
    read, before, found = step_reader(model), None, []
    with torch.no_grad():
        for part in ids.split([4, 1, 3, 2], dim=1):
            output, before = read(part, before)
            found.append(output.logits[:, -part.shape[1] :])
        torch.testing.assert_close(torch.cat(found, dim=1), model(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "expected"), [("llama", False), ("lfm2", False), ("granitemoehybrid", True), ("jamba", True)]
)
def test_states_that_sum_up_what_was_read(model_type: str, expected: bool) -> None:
    model = tiny_model(tiny_config(model_type))
    with torch.no_grad():
        output = model.base_model(input_ids=torch.arange(3, 9)[None], use_cache=True)
    assert has_state(output[cache_name(model.base_model)]) is expected
    assert not has_state(None)
