"""Criteria: their formulas, and what they give on tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from optimum_ishrink.architectures.axes import layers_with
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.errors import DataError, NotFiniteError, RequestError
from optimum_ishrink.importance.batches import Batch
from optimum_ishrink.importance.criteria.activation_norm import activation_norm
from optimum_ishrink.importance.criteria.block_influence import block_influence
from optimum_ishrink.importance.criteria.gradient_norm import gradient_norm
from optimum_ishrink.importance.criteria.l1_norm import l1_norm
from optimum_ishrink.importance.criteria.l2_norm import l2_norm
from optimum_ishrink.importance.criteria.logits_mse import logits_mse
from optimum_ishrink.importance.criteria.sum_of_units import sum_of_units
from optimum_ishrink.importance.criteria.taylor import taylor
from optimum_ishrink.importance.criteria.taylor_unit import taylor_unit
from optimum_ishrink.importance.criteria.thesis_mix import thesis_mix
from optimum_ishrink.importance.criterion import LAYER_CRITERIA, UNIT_CRITERIA, Criterion
from optimum_ishrink.importance.engine import backward, score_model
from optimum_ishrink.importance.weights import score_weights
from tests.helpers.scored_models import KEYS, WINDOWS, bound_model
from tests.helpers.tiny import LAYOUT_CASES, save_tiny, tiny_config


def test_formulas() -> None:
    w, g = torch.tensor([[1.0, -2.0], [3.0, 0.5]]), torch.tensor([[2.0, 1.0], [-1.0, 4.0]])
    assert l1_norm(w.bfloat16()).tolist() == [[1, 2], [3, 0.5]]
    assert l2_norm(w.bfloat16()).tolist() == [[1, 4], [9, 0.25]]
    assert taylor_unit(w, g).tolist() == [[2, -2], [-3, 2]]
    assert gradient_norm(w, g).tolist() == [[4, 1], [1, 16]]
    assert logits_mse(w, g, torch.zeros(2)).tolist() == [(1 + 9) / 2, (16 + 12.25) / 2]
    assert sum_of_units(w, g).tolist() == [2, 6.5]
    mixed = thesis_mix(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 10.0]]), torch.tensor([[0.2, 0.2]]))
    torch.testing.assert_close(mixed, torch.tensor([[(0.5 + 0 + 1) / 3, (1.5 + 2 + 1) / 3]]))
    assert thesis_mix(*[torch.zeros(1, 2)] * 3).tolist() == [[0, 0]]
    assert taylor(w, g).tolist() == [[2, 2], [3, 2]]
    assert activation_norm(torch.tensor([2.0, 1.0]), w).tolist() == [20, 4.25]
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    assert torch.allclose(block_influence(x, x), torch.zeros(3), atol=1e-6)
    assert torch.allclose(block_influence(x, -x), torch.full((3,), 2.0))


def test_every_criterion_is_described() -> None:
    for registry in (UNIT_CRITERIA, LAYER_CRITERIA):
        for name in registry:
            criterion = registry[name]
            assert criterion.name == name
            assert criterion.formula
            assert "arXiv" in criterion.reference
            assert criterion.cost
            assert criterion.function.__doc__
    with pytest.raises(
        RequestError, match="unknown importance 'taylr' .did you mean 'taylor'.*allowed: activation-norm"
    ):
        UNIT_CRITERIA["taylr"]


def test_activation_norm_is_the_squared_change_of_the_output_without_the_unit() -> None:
    model, binding = bound_model()
    scores = score_model(model, binding, WINDOWS, UNIT_CRITERIA["activation-norm"], None, KEYS[1:])
    down = model.model.layers[2].mlp.down_proj
    seen: list[torch.Tensor] = []
    handle = down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        model(WINDOWS)
    handle.remove()
    neuron = 5
    change = seen[0][..., neuron, None] * down.weight[:, neuron]
    assert scores["intermediate_size"][2, neuron].item() == pytest.approx(
        change.square().sum(-1).mean().item(), rel=1e-5
    )
    assert scores["num_key_value_heads"].shape == (4, 4)
    assert scores["intermediate_size"].shape == (4, 24)


def test_taylor_is_the_sum_over_the_units_weights_averaged_over_batches() -> None:
    model, binding = bound_model("qwen2", 1)
    scores = score_model(model, binding, WINDOWS, UNIT_CRITERIA["taylor"], None, KEYS[1:], batch_size=3)
    neurons, groups = torch.zeros(24), torch.zeros(4)
    for batch in (WINDOWS[:3], WINDOWS[3:]):
        model.zero_grad()
        model(batch, labels=batch).loss.backward()  # transformers shifts the labels itself
        layer = model.model.layers[1]
        values = {name: (p * p.grad).abs().detach() for name, p in layer.named_parameters()}
        neurons += values["mlp.gate_proj.weight"].sum(1) + values["mlp.up_proj.weight"].sum(1)
        neurons += values["mlp.down_proj.weight"].sum(0)
        for part in ("q_proj", "k_proj", "v_proj"):
            groups += values[f"self_attn.{part}.weight"].view(4, -1).sum(1)
            groups += values[f"self_attn.{part}.bias"].view(4, -1).sum(1)
        groups += values["self_attn.o_proj.weight"].T.reshape(4, -1).sum(1)
    torch.testing.assert_close(scores["intermediate_size"][1], neurons / 2, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scores["num_key_value_heads"][1], groups / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("unit", "layer"), [("taylor", "block-influence"), ("thesis-mix", "perplexity"), ("obs", "divergence")]
)
def test_scoring_leaves_the_model_unchanged(unit: str, layer: str) -> None:
    model, binding = bound_model()
    logits = model(WINDOWS).logits
    model.lm_head.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    scores = score_model(model, binding, WINDOWS, UNIT_CRITERIA[unit], LAYER_CRITERIA[layer], KEYS)
    assert not any(value.requires_grad for value in scores.values())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert torch.equal(model(WINDOWS).logits, logits)


def test_the_loss_is_shifted_and_masked() -> None:
    model, _ = bound_model()
    model.get_output_embeddings().requires_grad_(False)
    mask = torch.ones_like(WINDOWS)
    whole = backward(model, Batch(WINDOWS, mask), seed=None)
    assert whole == pytest.approx(model(WINDOWS, labels=WINDOWS).loss.item(), rel=1e-5)
    mask[:, 6:] = 0
    short = WINDOWS[:, :6]
    padded = backward(model, Batch(WINDOWS, mask), seed=None)
    assert padded == pytest.approx(model(short, labels=short).loss.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["taylor", "gradient-norm", "activation-norm", "logits-mse"])
def test_padding_changes_no_score(name: str) -> None:
    model, binding = bound_model()
    layer = LAYER_CRITERIA["divergence" if name == "logits-mse" else "block-influence"]
    plain = score_model(model, binding, WINDOWS, UNIT_CRITERIA[name], layer, KEYS, batch_size=2)
    padded = torch.cat([WINDOWS, torch.zeros(6, 5, dtype=torch.int64)], dim=1)
    mask = torch.cat([torch.ones(6, 10), torch.zeros(6, 5)], dim=1).long()
    scores = score_model(model, binding, padded, UNIT_CRITERIA[name], layer, KEYS, attention_mask=mask, batch_size=2)
    for key in KEYS:
        torch.testing.assert_close(scores[key], plain[key], rtol=1e-4, atol=1e-6)


# Criteria that run the model without each unit take most of the time; tests/importance/test_removal.py has them, too.
@pytest.mark.parametrize(
    ("model_type", "variant", "removing"),
    [
        pytest.param(*getattr(case, "values", case), removing, marks=getattr(case, "marks", ()))
        if not removing or case in [("llama", 0), ("gpt2", 0), ("gpt_oss", 0)]
        else pytest.param(
            *getattr(case, "values", case), removing, marks=[*getattr(case, "marks", ()), pytest.mark.slow]
        )
        for case in LAYOUT_CASES
        for removing in (False, True)
    ],
)
def test_every_criterion_scores_every_architecture(
    model_type: str, variant: int, removing: bool, tmp_path: Path
) -> None:
    source = open_source(save_tiny(tmp_path / "m", tiny_config(model_type, variant)))
    model, binding = source.load_model(torch.float32, torch.device("cpu")), source.binding
    sizes = binding.sizes
    experts = binding.mlps
    shapes = {
        "num_hidden_layers": (4,),
        "num_key_value_heads": (4, sizes["kv"]),
        "num_attention_heads": (4, 8),
        "intermediate_size": (4, sizes["ffn"] * experts),
    }
    unit_keys = tuple(key for key in shapes if key != KEYS[0] and not binding.description.dimensions[key].fixed)
    how = {"batch_size": 3, "group_size": 24}
    for registry, keys in ((UNIT_CRITERIA, unit_keys), (LAYER_CRITERIA, KEYS[:1])):
        for name in registry:
            criterion = registry[name]
            if (criterion.needs in ("logits", "scores")) is not removing:
                continue
            seen = keys if not criterion.parts else tuple(key for key in keys if key != "num_attention_heads")
            if criterion.needs == "weights":
                scores = score_weights(source.tensors, binding, criterion, keys)
            elif criterion.needs == "unit_scores":
                continue  # it adds up other scores
            else:
                arguments = (criterion, None) if registry is UNIT_CRITERIA else (None, criterion)
                neurons = experts > 1 and "intermediate_size" in keys
                if neurons and not criterion.sees_experts and registry is UNIT_CRITERIA:
                    with pytest.raises(RequestError, match="cannot see into experts; importance can be"):
                        score_model(model, binding, WINDOWS, *arguments, keys)
                    seen = tuple(key for key in seen if key != "intermediate_size")
                scores = score_model(model, binding, WINDOWS[:3], *arguments, seen, **how) if seen else {}
            assert {key: tuple(value.shape) for key, value in scores.items()} == {key: shapes[key] for key in seen}
            assert all((value >= 0).all() and value.dtype == torch.float32 for value in scores.values())
            having = {key: [*layers_with(binding, key)] for key in scores}
            assert all((value[having[key]] > 0).float().mean() > 0.6 for key, value in scores.items())
            for key, value in scores.items():
                assert not value[[layer for layer in range(4) if layer not in having[key]]].any()


@pytest.mark.parametrize("name", UNIT_CRITERIA.names())
def test_values_that_are_not_finite_name_the_layer(name: str, tmp_path: Path) -> None:
    source = open_source(save_tiny(tmp_path / "m", tiny_config("llama")))
    model = source.load_model(torch.float32, torch.device("cpu"))
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    if UNIT_CRITERIA[name].needs == "weights":
        model.save_pretrained(tmp_path / "m")
        source = open_source(tmp_path / "m")
        with pytest.raises(DataError, match=r"importance of intermediate_size is not finite in layer 2 \(NaN\); "):
            score_weights(source.tensors, source.binding, UNIT_CRITERIA[name], KEYS[2:])
        return
    with pytest.raises(DataError, match=r"layer 2.*; try dtype='float32'") as caught:
        score_model(model, source.binding, WINDOWS, UNIT_CRITERIA[name], None, KEYS[2:])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["perplexity", "divergence", "block-influence"])
def test_layers_that_are_not_finite_are_named(name: str) -> None:
    model, binding = bound_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match="layer 1"):
        score_model(model, binding, WINDOWS, None, LAYER_CRITERIA[name], KEYS[:1])


def test_a_loss_that_is_not_finite_after_finite_layers() -> None:
    model, binding = bound_model()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match="NaN on the calibration text, first in lm_head, whose weights hold NaN"):
        score_model(model, binding, WINDOWS, UNIT_CRITERIA["taylor"], None, KEYS[1:])


def test_no_windows_are_refused() -> None:
    model, binding = bound_model()
    with pytest.raises(DataError, match="no calibration windows"):
        score_model(model, binding, WINDOWS[:0], UNIT_CRITERIA["taylor"], None, KEYS)


def test_a_criterion_with_another_need_is_refused() -> None:
    model, binding = bound_model()
    odd = Criterion("odd", "weights", "", "", l2_norm)
    with pytest.raises(RequestError, match="'odd' needs weights, which is not computed on a model"):
        score_model(model, binding, WINDOWS, odd, None, KEYS)


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        UNIT_CRITERIA.register("taylor")(UNIT_CRITERIA["taylor"])
