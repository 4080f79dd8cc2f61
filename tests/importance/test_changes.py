"""First-order changes of the loss, and the Fisher information that they give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_ishrink.architectures.axes import input_readers, layer_module
from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.importance.changes import sampled_loss
from optimum_ishrink.importance.criterion import LAYER_CRITERIA, UNIT_CRITERIA
from optimum_ishrink.importance.engine import score_model
from tests.helpers.scored_models import layer_with
from tests.helpers.tiny import LAYOUT_CASES, VOCAB, tiny_config

WINDOWS = torch.randint(3, VOCAB, (6, 10), generator=torch.Generator().manual_seed(0))


def test_drawn_tokens_follow_the_models_distribution() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0]).expand(20_000, 4)
    loss = sampled_loss(logits, torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    p = logits[0].softmax(-1)
    assert loss.mean().item() == pytest.approx(-(p * p.log()).sum().item(), abs=0.02)  # the entropy


def drawn_loss(model: Any, windows: torch.Tensor, seed: int) -> torch.Tensor:
    level = torch.rand(windows.numel(), generator=torch.Generator().manual_seed(seed))
    return sampled_loss(model(windows).logits.flatten(0, 1), level).sum()


def test_padding_is_ignored() -> None:
    torch.manual_seed(0)
    config = tiny_config("llama")
    model = AutoModelForCausalLM.from_config(config).eval()
    _, binding = bind_config(config.to_dict())
    mask = torch.ones_like(WINDOWS[:2])
    mask[0, 6:] = 0
    changed = WINDOWS[:2].clone()
    changed[0, 6:] = 3
    how = (UNIT_CRITERIA["fisher"], LAYER_CRITERIA["fisher"], tuple(binding.shape))
    one = score_model(model, binding, WINDOWS[:2], *how, attention_mask=mask)
    other = score_model(model, binding, changed, *how, attention_mask=mask)
    for key, values in one.items():
        torch.testing.assert_close(values, other[key])


@pytest.mark.parametrize(("model_type", "variant"), LAYOUT_CASES)
def test_fisher_is_the_squared_derivative_with_respect_to_a_units_scale(model_type: str, variant: int) -> None:
    """Scaling a unit's channels by s at one token: the derivative of the loss at s = 1 is x . dL/dx."""
    torch.manual_seed(0)
    config = tiny_config(model_type, variant)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    trained = [parameter.requires_grad for parameter in model.parameters()]
    _, binding = bind_config(config.to_dict())
    keys = ["num_hidden_layers", "num_key_value_heads", "num_attention_heads"]
    if binding.mlps == 1:
        keys.append("intermediate_size")
    found = score_model(
        model, binding, WINDOWS[:1], UNIT_CRITERIA["fisher"], LAYER_CRITERIA["fisher"], tuple(keys), seed=5
    )
    assert all(values.isfinite().all() and (values >= 0).all() for values in found.values())
    assert [parameter.requires_grad for parameter in model.parameters()] == trained

    key = keys[-1]
    layer = layer_with(binding, key, 1)
    bound = next(bound for bound in input_readers(binding, key) if bound.layer == layer)
    units = found[key].shape[1]
    scale = torch.ones(WINDOWS.shape[1], units, requires_grad=True)
    module = model.get_submodule(bound.module)

    def scaled(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (inputs[0] * scale.repeat_interleave(inputs[0].shape[-1] // units, dim=1).view(inputs[0].shape[-2:]),)

    handle = module.register_forward_pre_hook(scaled)
    drawn_loss(model, WINDOWS[:1], 5).backward()
    handle.remove()
    expected = scale.grad.square().mean(dim=0)
    torch.testing.assert_close(found[key][layer], expected, rtol=2e-3, atol=1e-9)


def test_fisher_of_a_layer_is_that_of_its_share_of_the_stream() -> None:
    torch.manual_seed(0)
    config = tiny_config("llama")
    model = AutoModelForCausalLM.from_config(config).eval()
    _, binding = bind_config(config.to_dict())
    found = score_model(model, binding, WINDOWS[:1], None, LAYER_CRITERIA["fisher"], ("num_hidden_layers",), seed=3)[
        "num_hidden_layers"
    ]
    scale = torch.ones(WINDOWS.shape[1], 1, requires_grad=True)

    def scaled(_: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return args[0] + scale * (output - args[0])

    handle = model.get_submodule(layer_module(binding, 2)).register_forward_hook(scaled)
    drawn_loss(model, WINDOWS[:1], 3).backward()
    handle.remove()
    torch.testing.assert_close(found[2], scale.grad.square().mean(), rtol=1e-3, atol=1e-9)


def test_it_shares_a_run_with_criteria_that_read_the_texts_labels() -> None:
    torch.manual_seed(0)
    config = tiny_config("qwen3")
    model = AutoModelForCausalLM.from_config(config).eval()
    _, binding = bind_config(config.to_dict())
    both = score_model(
        model, binding, WINDOWS, UNIT_CRITERIA["taylor"], LAYER_CRITERIA["fisher"], tuple(binding.shape), batch_size=2
    )
    units = tuple(key for key in binding.shape if key != "num_hidden_layers")
    taylor = score_model(model, binding, WINDOWS, UNIT_CRITERIA["taylor"], None, units, batch_size=2)
    layers = ("num_hidden_layers",)
    fisher = score_model(model, binding, WINDOWS, None, LAYER_CRITERIA["fisher"], layers, batch_size=2)
    for key, values in {**taylor, **fisher}.items():
        torch.testing.assert_close(both[key], values)
