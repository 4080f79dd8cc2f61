from __future__ import annotations

import pytest
import torch
from transformers import StaticCache
from transformers.cache_utils import LinearAttentionLayer, StaticSlidingWindowLayer

from optimum_ishrink.core.key_value_cache import step_reader
from optimum_ishrink.core.preallocated_cache import PreallocatedLayer, preallocated_cache
from tests.helpers.tiny import tiny_config, tiny_model

LENGTH = 12
WHOLE = ["llama", "gpt2", "bloom", "qwen3", "gemma2", "gpt_oss", "phi3", "opt", "stablelm", "olmoe"]
"""Models of full attention; windows of others are as long as the text or longer."""


@pytest.mark.parametrize("model_type", [*WHOLE, "deepseek_v3", "gemma3_text", "lfm2", "qwen3_next", "falcon_h1"])
def test_a_text_read_token_by_token_gives_what_it_gives_at_once(model_type: str) -> None:
    model = tiny_model(tiny_config(model_type))
    ids = torch.randint(3, 200, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    cache, read, found = preallocated_cache(model.config, LENGTH), step_reader(model), []
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        for start, end in ((0, 3), *((position, position + 1) for position in range(3, LENGTH))):
            if model_type in ("lfm2", "qwen3_next", "falcon_h1") and start == 0:  # a state grows token by token here
                for position in range(3):
                    output, cache = read(ids[:, position : position + 1], cache)
                    found.append(output.logits)
                continue
            output, cache = read(ids[:, start:end], cache)
            found.append(output.logits)
    torch.testing.assert_close(torch.cat(found, dim=1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", [each for each in WHOLE if each not in ("gemma2", "gpt_oss")])
def test_all_layers_of_full_attention_are_read_as_far_as_they_are_filled(model_type: str) -> None:
    cache = preallocated_cache(tiny_config(model_type), LENGTH)
    assert {type(layer) for layer in cache.layers} == {PreallocatedLayer}
    keys = torch.randn(2, 1, 3, 4)
    for end in (3, 6):
        found, _ = cache.layers[0].update(keys, keys)
        assert found.shape[2] == end == cache.layers[0].get_seq_length()
        assert cache.layers[0].get_mask_sizes(1) == cache.layers[0].get_mask_sizes(torch.zeros(1)) == (end + 1, 0)
    assert torch.equal(found[:, :, 3:], keys)


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "gpt_oss", "lfm2", "qwen3_next", "falcon_h1"])
def test_layers_that_keep_something_else_stay(model_type: str) -> None:
    config = tiny_config(model_type)
    usual = StaticCache(config=config, max_cache_len=LENGTH).layers
    shared = [type(layer) for layer in usual if isinstance(layer, LinearAttentionLayer | StaticSlidingWindowLayer)]
    kinds = [type(layer) for layer in preallocated_cache(config, LENGTH).layers]
    assert shared and [kind for kind in kinds if kind is not PreallocatedLayer] == shared


def test_windows_as_long_as_the_text_are_whole_layers() -> None:
    config = tiny_config("gemma3_text")
    kinds = {type(layer) for layer in preallocated_cache(config, config.sliding_window).layers}
    assert kinds == {PreallocatedLayer}
