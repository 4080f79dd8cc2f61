"""Units: their weights, gradients and channels, and the neurons that are scored together."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimum_ishrink.architectures.axes import holds_units, input_readers
from optimum_ishrink.architectures.slicing import zero_removed
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.errors import RequestError
from optimum_ishrink.importance.criterion import LAYER_CRITERIA, UNIT_CRITERIA
from optimum_ishrink.importance.engine import score_model
from optimum_ishrink.importance.units import Units, units_to_score
from optimum_ishrink.importance.weights import key_value_similarity, score_weights
from tests.helpers.scored_models import KEYS, WINDOWS, bound_model
from tests.helpers.tiny import PROOF_CASES, save_tiny, tiny_config


def unit_weights(layer: Any, values: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """All values of each neuron and of each KV group of a llama-like layer, flat."""
    named = {name: values(parameter) for name, parameter in layer.named_parameters()}
    neurons, groups = [], []
    for i in range(24):
        parts = [named["mlp.gate_proj.weight"][i], named["mlp.up_proj.weight"][i], named["mlp.down_proj.weight"][:, i]]
        parts += [
            named[f"mlp.{name}_proj.bias"][i, None] for name in ("gate", "up") if f"mlp.{name}_proj.bias" in named
        ]
        neurons.append(torch.cat(parts))
    for i in range(4):
        parts = []
        for name, heads in (("q", 2), ("k", 1), ("v", 1)):
            width = heads * 8
            rows = slice(i * width, (i + 1) * width)
            parts.append(named[f"self_attn.{name}_proj.weight"][rows].flatten())
            if f"self_attn.{name}_proj.bias" in named:
                parts.append(named[f"self_attn.{name}_proj.bias"][rows])
        parts.append(named["self_attn.o_proj.weight"][:, i * 16 : (i + 1) * 16].flatten())
        groups.append(torch.cat(parts))
    return neurons, groups


@pytest.mark.parametrize("variant", [0, 1])
@pytest.mark.parametrize(("name", "order"), [("l1-norm", 1), ("l2-norm", 2)])
def test_norms_are_those_of_all_weights_of_a_unit(name: str, order: int, variant: int, tmp_path: Path) -> None:
    source = open_source(save_tiny(tmp_path / "m", tiny_config("llama", variant)))
    model = source.load_model(torch.float32, torch.device("cpu"))
    scores = score_weights(source.tensors, source.binding, UNIT_CRITERIA[name], KEYS[1:])
    for number, layer in enumerate(model.model.layers):
        kinds = unit_weights(layer, lambda parameter: parameter.detach())
        for key, units in zip(("intermediate_size", "num_key_value_heads"), kinds):
            expected = torch.stack([torch.linalg.vector_norm(unit, order) for unit in units])
            torch.testing.assert_close(scores[key][number], expected)


def test_the_norm_of_a_layer_is_that_of_all_its_weights(tmp_path: Path) -> None:
    source = open_source(save_tiny(tmp_path / "m", tiny_config("gpt2")))
    model = source.load_model(torch.float32, torch.device("cpu"))
    scores = score_weights(source.tensors, source.binding, LAYER_CRITERIA["l2-norm"], KEYS[:1])
    flat = torch.cat([parameter.detach().flatten() for parameter in model.transformer.h[2].parameters()])
    torch.testing.assert_close(scores["num_hidden_layers"][2], flat.norm())


@pytest.mark.parametrize(
    ("name", "reduce"),
    [
        ("taylor", lambda weight, gradient: (weight * gradient).abs().sum()),
        ("taylor-unit", lambda weight, gradient: (weight * gradient).sum().abs()),
        ("gradient-norm", lambda weight, gradient: gradient.norm()),
    ],
)
def test_gradient_criteria_are_what_autograd_gives_averaged_over_batches(name: str, reduce: Any) -> None:
    model, binding = bound_model("llama", 1)
    scores = score_model(model, binding, WINDOWS, UNIT_CRITERIA[name], None, KEYS[1:], batch_size=2)
    expected = {"intermediate_size": torch.zeros(24), "num_key_value_heads": torch.zeros(4)}
    for batch in WINDOWS.split(2):
        model.zero_grad()
        model(batch, labels=batch).loss.backward()
        weights = unit_weights(model.model.layers[2], lambda parameter: parameter.detach())
        gradients = unit_weights(model.model.layers[2], lambda parameter: parameter.grad)
        for key, w, g in zip(expected, weights, gradients):
            expected[key] += torch.stack([reduce(*pair) for pair in zip(w, g)]) / 3
    for key, value in expected.items():
        torch.testing.assert_close(scores[key][2], value, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("model_type", "variant"), PROOF_CASES)
def test_channels_of_units_are_those_that_slicing_retains(model_type: str, variant: int) -> None:
    _, binding = bound_model(model_type, variant)
    for key in ("num_key_value_heads", "num_attention_heads", "intermediate_size"):
        if key == "intermediate_size" and binding.sizes.get("experts", 1) > 1:
            continue
        bound = input_readers(binding, key)[0]
        channels = Units(binding, (key,), 4 if key == "intermediate_size" else 1).channels(bound, key)
        assert sorted(channels.flatten().tolist()) == list(range(channels.numel()))
        number = min(1, len(channels) - 1)  # there may be a single group
        if key == "intermediate_size":
            keep = {"ffn": [4, 5, 6, 7]}
        elif key == "num_attention_heads":
            keep = {"heads": [1]}
        else:
            group = binding.sizes["heads"] // binding.sizes["kv"]
            keep = {"heads": list(range(number * group, (number + 1) * group)), "kv": [number]}
        shape = [channels.numel(), 3] if bound.transposed else [3, channels.numel()]
        masked = zero_removed(torch.ones(shape), bound, binding.sizes, keep)
        rows = masked if bound.transposed else masked.T
        assert rows[:, 0].nonzero().flatten().tolist() == channels[number].tolist()


@pytest.mark.parametrize("name", UNIT_CRITERIA.names())
def test_a_unit_of_zeros_scores_zero(name: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", tiny_config("qwen3"))
    source = open_source(folder)
    model = source.load_model(torch.float32, torch.device("cpu"))
    with torch.no_grad():
        for parameter, bound in ((p, source.binding.tensors[n]) for n, p in model.named_parameters()):
            if bound.layer == 1:
                for keep in ({"ffn": [*range(8), *range(12, 24)]}, {"kv": [0, 1, 3], "heads": [0, 1, 2, 3, 6, 7]}):
                    parameter.copy_(zero_removed(parameter, bound, source.binding.sizes, keep))
    model.save_pretrained(folder)
    source = open_source(folder)
    if UNIT_CRITERIA[name].needs == "weights":
        scores = score_weights(source.tensors, source.binding, UNIT_CRITERIA[name], KEYS[1:], group_size=4)
    else:
        scores = score_model(model, source.binding, WINDOWS, UNIT_CRITERIA[name], None, KEYS[1:], group_size=4)
    assert scores["intermediate_size"][1, 8:12].abs().max() < 1e-12
    assert scores["num_key_value_heads"][1, 2].abs() < 1e-12
    assert (scores["intermediate_size"][1] > 1e-9).sum() == 20
    assert (scores["num_key_value_heads"][1] > 1e-9).sum() == 3


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["l1-norm", "taylor", "activation-norm"]), size=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24])
)
def test_groups_share_the_sum_of_their_neurons(name: str, size: int, tmp_path_factory: Any) -> None:
    source = open_source(_folder(tmp_path_factory))

    def score(group_size: int | None) -> torch.Tensor:
        if UNIT_CRITERIA[name].needs == "weights":
            found = score_weights(source.tensors, source.binding, UNIT_CRITERIA[name], KEYS[2:], group_size=group_size)
        else:
            model = source.load_model(torch.float32, torch.device("cpu"))
            how = {"group_size": group_size}
            found = score_model(model, source.binding, WINDOWS, UNIT_CRITERIA[name], None, KEYS[2:], **how)
        return found["intermediate_size"]

    alone, together = score(None), score(size)
    shares = alone.view(4, -1, size).mean(dim=2).repeat_interleave(size, dim=1)
    torch.testing.assert_close(together, shares, rtol=1e-4, atol=1e-7)


def _folder(factory: Any) -> Path:
    folder = factory.getbasetemp() / "grouped"
    return folder if folder.exists() else save_tiny(folder, tiny_config("llama"))


def test_a_group_of_neurons_has_one_norm(tmp_path: Path) -> None:
    source = open_source(save_tiny(tmp_path / "m", tiny_config("llama")))
    how = (source.tensors, source.binding, UNIT_CRITERIA["l2-norm"], KEYS[2:])
    alone = score_weights(*how)["intermediate_size"].view(4, 3, 8)
    together = score_weights(*how, group_size=8)["intermediate_size"].view(4, 3, 8)
    torch.testing.assert_close(together, alone.norm(dim=2, keepdim=True).expand_as(alone) / 8)


def test_criteria_that_remove_unit_after_unit_choose_groups() -> None:
    _, binding = bound_model()

    def size(width: int, name: str) -> int:
        wide = dataclasses.replace(binding, sizes={**binding.sizes, "ffn": width})
        return units_to_score(wide, UNIT_CRITERIA[name], KEYS[1:], None).group

    assert [size(width, "logits-mse") for width in (24, 1536, 8192, 7618)] == [1, 48, 256, 293]
    assert [size(width, "taylor") for width in (24, 1536)] == [1, 1]
    with pytest.raises(RequestError, match="importance_group_size=5 does not divide the 24 neurons.*use 4 or 6"):
        units_to_score(binding, UNIT_CRITERIA["taylor"], KEYS[1:], 5)
    with pytest.raises(RequestError, match="importance_group_size=99 does not divide the 24 neurons.*use 24"):
        units_to_score(binding, UNIT_CRITERIA["taylor"], KEYS[1:], 99)
    assert units_to_score(binding, UNIT_CRITERIA["taylor"], KEYS[1:2], 5).group == 1  # no neurons, no groups


def test_a_kv_group_holds_its_query_heads() -> None:
    _, binding = bound_model()
    query, norm = (
        binding.tensors[f"model.layers.1.{name}.weight"] for name in ("self_attn.q_proj", "post_attention_layernorm")
    )
    assert [holds_units(query, key) for key in KEYS] == [True, True, False]
    assert [holds_units(norm, key) for key in KEYS] == [True, False, False]
    assert not holds_units(binding.tensors["lm_head.weight"], "num_hidden_layers")


def test_heads_of_layers_without_attention_are_not_similar(tmp_path: Path) -> None:
    source = open_source(save_tiny(tmp_path / "m", tiny_config("lfm2")))
    similarity = key_value_similarity(source.tensors, source.binding)
    assert not similarity[[0, 2]].any()
    torch.testing.assert_close(similarity[[1, 3]].diagonal(dim1=1, dim2=2), torch.ones(2, 4))
