"""What is trained: how it is named, and how an adapter starts."""

from __future__ import annotations

import pytest
import torch

from optimum_ishrink import RequestError
from optimum_ishrink.recovery.trainable import add_lora, train_parameters
from optimum_ishrink.recovery.trained_parts import parse_trained
from tests.helpers.small_recovery import LAYERS, settings
from tests.helpers.tiny import tiny_config, tiny_model


def test_parts_are_parsed() -> None:
    assert parse_trained("norms + last:2") == ("norms", "last:2")
    with pytest.raises(RequestError, match="last:9 layers were requested for training; the model has 4"):
        train_parameters(tiny_model(tiny_config("llama")), ("last:9",), LAYERS)


def test_targets_that_are_not_there() -> None:
    with pytest.raises(RequestError, match="unknown LoRA target 'q_prj' .did you mean 'q_proj'"):
        add_lora(tiny_model(tiny_config("llama")), settings(rank=2, alpha=4, targets=["q_prj"]))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi3", "qwen3_moe"])
def test_an_adapter_starts_at_nothing_or_where_it_is_told(model_type: str) -> None:
    ids = torch.arange(3, 12)[None]
    how = settings(rank=3, alpha=5, seed=1)
    model = tiny_model(tiny_config(model_type))
    wanted = model(ids).logits
    add_lora(model, how)
    torch.testing.assert_close(model(ids).logits, wanted)
    state = torch.random.get_rng_state()
    again = tiny_model(tiny_config(model_type))
    reader = {"llama": "mlp.down_proj", "gpt2": "mlp.c_proj", "phi3": "mlp.down_proj"}.get(
        model_type, "self_attn.o_proj"
    )
    name = f"{'transformer.h' if model_type == 'gpt2' else 'model.layers'}.1.{reader}.weight"
    weight = again.get_parameter(name)
    delta = torch.randn(weight.shape[0], 2).double() @ torch.randn(2, weight.shape[1]).double()
    moved = tiny_model(tiny_config(model_type))
    with torch.no_grad():
        moved.get_parameter(name).add_(delta)
    add_lora(again, how, start={name: delta})
    torch.testing.assert_close(again(ids).logits, moved(ids).logits, atol=1e-4, rtol=1e-4)
    torch.random.set_rng_state(state)
