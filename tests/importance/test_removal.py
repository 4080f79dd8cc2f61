"""Scores by removal equal what a model without the unit, or without the layer, gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_outputs import BaseModelOutputWithPast

from optimum_ishrink.architectures.axes import input_readers, layer_module
from optimum_ishrink.errors import NotFiniteError, RequestError
from optimum_ishrink.evaluation.text_statistics import kl_divergence
from optimum_ishrink.importance.batches import Batches
from optimum_ishrink.importance.criterion import LAYER_CRITERIA, UNIT_CRITERIA
from optimum_ishrink.importance.engine import score_model
from optimum_ishrink.importance.removal import score_spans
from tests.helpers.scored_models import KEYS, WINDOWS, bound_model, layer_with
from tests.helpers.tiny import LAYOUT_CASES

CPU = torch.device("cpu")
BATCHES = Batches(WINDOWS, None, 4, CPU)


def logits_without(model: Any, binding: Any, removed: Any) -> torch.Tensor:
    """The logits when every weight of some layers is zero, which makes them the identity."""
    state = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(name.startswith(layer_module(binding, layer) + ".") for layer in removed):
                parameter.zero_()
        logits: torch.Tensor = model(WINDOWS).logits
    model.load_state_dict(state)
    return logits


@pytest.mark.parametrize(("model_type", "variant"), LAYOUT_CASES)
def test_a_layer_that_is_left_out_is_a_layer_of_zeros(model_type: str, variant: int) -> None:
    model, binding = bound_model(model_type, variant)
    if binding.description.dimensions["num_hidden_layers"].fixed:
        pytest.skip("a layer of zeros is not the identity")
    with torch.no_grad():
        base = model(WINDOWS).logits
    losses = score_spans(model, binding, BATCHES, LAYER_CRITERIA["perplexity"], [(0, 1), (2, 3), (1, 4)], (3,))
    distances = score_spans(model, binding, BATCHES, LAYER_CRITERIA["divergence"], [(0, 1), (3, 4), (1, 3)])
    for value, removed in zip(losses, ({0, 3}, {2, 3}, {1, 2, 3})):
        logits = logits_without(model, binding, removed)[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), WINDOWS[:, 1:].flatten())
        assert value.item() == pytest.approx(loss.item(), rel=1e-4)
    for value, removed in zip(distances, ({0}, {3}, {1, 2})):
        kl = kl_divergence(base, logits_without(model, binding, removed))[:, :-1].mean()
        assert value.item() == pytest.approx(kl.item(), rel=1e-3, abs=1e-6)


def test_a_model_whose_layers_cannot_be_run_one_by_one_is_refused() -> None:
    model, binding = bound_model("bloom", 0)
    with pytest.raises(
        RequestError, match="^perplexity runs the layers of a model one by one, .* bloom cannot be: their"
    ):
        score_spans(model, binding, BATCHES, LAYER_CRITERIA["perplexity"], [(0, 1)])
    with pytest.raises(RequestError, match="^logits-mse runs the layers"):
        score_model(model, binding, WINDOWS, UNIT_CRITERIA["logits-mse"], None, ("num_key_value_heads",))


@pytest.mark.parametrize(("model_type", "variant"), LAYOUT_CASES)
def test_logits_mse_is_that_of_a_masked_forward(model_type: str, variant: int) -> None:
    model, binding = bound_model(model_type, variant)
    keys = ["num_key_value_heads"]
    if binding.mlps == 1 and binding.sizes["ffn"] == 24:
        keys.append("intermediate_size")
    scores = score_model(model, binding, WINDOWS[:4], UNIT_CRITERIA["logits-mse"], None, tuple(keys), group_size=12)
    with torch.no_grad():
        base = model(WINDOWS[:4]).logits
    for key in keys:
        layer = layer_with(binding, key, 2)
        bound = next(bound for bound in input_readers(binding, key) if bound.layer == layer)
        weight = model.get_submodule(bound.module).weight
        before = weight.detach().clone()
        group = weight.shape[0 if bound.transposed else 1] // binding.sizes["kv"]
        width = 12 if key == "intermediate_size" else group
        which = 1 if key == "intermediate_size" else min(1, binding.sizes["kv"] - 1)
        removed = slice(width * which, width * (which + 1))
        with torch.no_grad():
            (weight[removed] if bound.transposed else weight[:, removed]).zero_()
            mse = (model(WINDOWS[:4]).logits - base)[:, :-1].square().mean()
            weight.copy_(before)
        score = scores[key][layer, 12] * 12 if key == "intermediate_size" else scores[key][layer, which]
        assert score.item() == pytest.approx(mse.item(), rel=1e-3)


@given(batch_size=st.integers(1, 7), start=st.integers(0, 3), length=st.integers(1, 4))
@settings(max_examples=10)
def test_batches_do_not_matter(batch_size: int, start: int, length: int) -> None:
    model, binding = bound_model("gemma2")
    spans = [(start, min(4, start + length))]
    for name in ("perplexity", "divergence", "block-influence"):
        batched = score_spans(model, binding, Batches(WINDOWS, None, batch_size, CPU), LAYER_CRITERIA[name], spans)
        whole = score_spans(model, binding, Batches(WINDOWS, None, 6, CPU), LAYER_CRITERIA[name], spans)
        torch.testing.assert_close(batched, whole, rtol=1e-4, atol=1e-6)


def test_block_influence_of_single_layers_is_what_the_hooks_see() -> None:
    model, binding = bound_model("olmo2")
    criterion = LAYER_CRITERIA["block-influence"]
    watched = score_model(model, binding, WINDOWS, None, criterion, KEYS[:1])["num_hidden_layers"]
    spans = score_spans(model, binding, BATCHES, criterion, [(layer, layer + 1) for layer in range(4)])
    torch.testing.assert_close(spans, watched)


def test_the_influence_of_a_span_is_between_its_ends() -> None:
    model, binding = bound_model()
    with torch.no_grad():
        states = model(WINDOWS, output_hidden_states=True).hidden_states
    value = score_spans(model, binding, BATCHES, LAYER_CRITERIA["block-influence"], [(1, 3)])
    expected = (1 - torch.nn.functional.cosine_similarity(states[1], states[3], dim=-1)).mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_layers_that_return_tuples_are_left_out_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    model, binding = bound_model()
    expected = score_spans(model, binding, BATCHES, LAYER_CRITERIA["perplexity"], [(1, 2)])

    def forward(self: Any, input_ids: torch.Tensor, **_: Any) -> Any:
        hidden = self.embed_tokens(input_ids)
        positions = torch.arange(input_ids.shape[1])[None]
        rotary = self.rotary_emb(hidden, positions)
        for layer in self.layers:
            (hidden,) = layer(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))

    for layer in model.model.layers:
        layer.forward = lambda *args, run=layer.forward, **kwargs: (run(*args, **kwargs),)
    monkeypatch.setattr(type(model.model), "forward", forward)
    before = [layer.forward for layer in model.model.layers]
    found = score_spans(model, binding, BATCHES, LAYER_CRITERIA["perplexity"], [(1, 2)])
    torch.testing.assert_close(found, expected)
    assert [layer.forward for layer in model.model.layers] == before  # what was set on the layers is restored


def test_a_score_that_is_not_finite_names_the_layers() -> None:
    model, binding = bound_model("llama")
    overflow = replace(LAYER_CRITERIA["perplexity"], function=lambda before, *_: before[:, 0] * float("inf"))
    with pytest.raises(NotFiniteError, match=r"perplexity is not finite \(.*\) without layers 1 to 2"):
        score_spans(model, binding, BATCHES, overflow, [(1, 3)])
