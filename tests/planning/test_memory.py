"""Targets on memory: what is counted is what transformers holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.cli.program import main
from optimum_ishrink.core.key_value_cache import cache_name
from optimum_ishrink.errors import RequestError, ShapeError
from optimum_ishrink.planning.memory import kv_cache_bytes, stored_bytes
from optimum_ishrink.planning.options import ShapeOptions
from optimum_ishrink.planning.shape import resolve_shape
from tests.helpers.smollm2 import BINDING
from tests.helpers.tiny import tiny_config, tiny_model

MODELS = ["llama", "mistral", "gemma3_text", "gpt2", "qwen2", "qwen3_moe", "gpt_oss"]
HYBRIDS = ["lfm2", "granitemoehybrid", "falcon_h1", "nemotron_h", "deepseek_v3", "kimi_linear"]


@pytest.mark.parametrize("model_type", [*MODELS, *HYBRIDS])
@pytest.mark.parametrize("context", [2, 11])
def test_the_cache_has_the_counted_bytes(model_type: str, context: int) -> None:
    config = tiny_config(model_type)
    model, (_, binding) = tiny_model(config, 0), bind_config(config.to_dict())
    ids, name = torch.arange(1, context)[None], cache_name(model)
    with torch.inference_mode():
        cache = model(ids, use_cache=True)[name] if context > 1 else None
        cache = model(torch.tensor([[1]]), use_cache=True, **{name: cache})[name]
    # Of a sliding window, the tensors hold the token before it as well: they are views of it.
    layers = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    held = sum(t.untyped_storage().nbytes() for layer in layers for t in (layer.keys, layer.values))
    assert kv_cache_bytes(binding, {}, context, 4) == held


def test_a_class_that_keeps_no_cache_holds_none() -> None:
    assert kv_cache_bytes(bind_config(tiny_config("openai-gpt").to_dict())[1], {}, 100) == 0


def test_with_fewer_layers_those_that_hold_most_are_counted() -> None:
    config = tiny_config("gemma3_text", layer_types=["sliding_attention"] * 3 + ["full_attention"])
    _, binding = bind_config(config.to_dict())
    token = 2 * binding.sizes["kv"] * binding.sizes["head_dim"] * 2
    assert kv_cache_bytes(binding, {}, 100) == token * (3 * 3 + 100)
    assert kv_cache_bytes(binding, {"num_hidden_layers": 2}, 100) == token * (3 + 100)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float32", 4), (torch.bfloat16, 2), ("float16", 2), ("float64", 8), (None, 2)]
)
def test_the_bytes_of_a_stored_parameter(dtype: Any, expected: int) -> None:
    assert stored_bytes(bind_config({**tiny_config("llama").to_dict(), "dtype": dtype})[1]) == expected


@pytest.mark.parametrize(("share", "context"), [(0.31, 1), (0.123, 2048), (0.2, 8192)])
def test_a_target_on_memory_is_not_exceeded(share: float, context: int) -> None:
    def memory(shape: dict[str, int]) -> int:
        return BINDING.num_parameters(shape) * 2 + kv_cache_bytes(BINDING, shape, context)

    whole = memory(dict(BINDING.shape))
    for target in (f"memory={whole * (1 - share) / 1e3:.3f}kB", f"memory=-{100 * share:.6f}%"):
        options = ShapeOptions(target=target, context=context, intermediate_multiple=16)
        assert (1 - share - 0.0051) * whole <= memory(resolve_shape(BINDING, options)) <= (1 - share) * whole + 2


def test_a_long_context_costs_groups_and_layers_rather_than_neurons() -> None:
    target = "memory=-30%"
    short = resolve_shape(BINDING, ShapeOptions(target=target, context=1))
    long = resolve_shape(BINDING, ShapeOptions(target=target, context=8192))
    cache = [kv_cache_bytes(BINDING, shape, 1) for shape in (short, long)]
    assert cache[1] < cache[0]


def test_what_cannot_be_met_says_what_is_counted() -> None:
    with pytest.raises(ShapeError, match="269,0.* of weights and 47,185,920 of the KV cache of 2,048 tokens: nothing"):
        resolve_shape(BINDING, ShapeOptions(target="memory=2GB"))
    with pytest.raises(ShapeError, match=r"nearest: .* MB of memory, -\d"):
        resolve_shape(BINDING, ShapeOptions(target="memory=1MB"))


def test_a_context_beyond_the_positions_is_refused_where_it_counts() -> None:
    with pytest.raises(RequestError, match=r"context=8193 is more than the 8192 positions of the model; .*--context"):
        resolve_shape(BINDING, ShapeOptions(target="memory=-10%", context=8193))
    resolve_shape(BINDING, ShapeOptions(target="params=-10%", context=8193))


def test_the_dtype_counts_where_the_shape_alone_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes: list[Any] = []
    for name, dtype in (("wide", torch.float32), ("narrow", torch.bfloat16)):
        config = tiny_config("llama", intermediate_size=96)
        model = tiny_model(config, 0).to(dtype)
        model.save_pretrained(tmp_path / name)
        words = ["plan", "--model", str(tmp_path / name), "--shape-only", "--json", "--context", "64"]
        whole = model.num_parameters() * dtype.itemsize + kv_cache_bytes(
            bind_config(config.to_dict())[1], {}, 64, dtype.itemsize
        )
        prune = ["--prune", "intermediate_size", "--intermediate-multiple", "1"]
        assert main([*words, "--target", f"memory={0.9 * whole / 1e3:.3f}kB", *prune]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["counted"] == whole and 0.895 * whole - 1 <= found["new_counted"] <= 0.9 * whole + 1
        shapes.append(found["new_shape"])
    assert shapes[0] == shapes[1]
    assert main([*(word for word in words if word != "--json"), "--target", "memory=-10%", *prune]) == 0
    assert " MB of memory (-10." in capsys.readouterr().out
