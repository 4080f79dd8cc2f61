"""The OBS score is the least squared error that removing a unit leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_ishrink.architectures.axes import input_readers
from optimum_ishrink.errors import DataError, RequestError
from optimum_ishrink.importance.criteria.obs import obs
from optimum_ishrink.importance.criterion import UNIT_CRITERIA
from optimum_ishrink.importance.engine import score_model
from optimum_ishrink.importance.gram import RIDGE, with_ridge
from tests.helpers.scored_models import KEYS, bound_model, layer_with
from tests.helpers.tiny import LAYOUT_CASES, VOCAB

MANY = torch.randint(3, VOCAB, (12, 16), generator=torch.Generator().manual_seed(0))


def residual(x: torch.Tensor, weight: torch.Tensor, removed: torch.Tensor, ridge: float) -> float:
    """The error that least squares leaves without some channels; the ridge pulls the others to their old weights."""
    tokens, width = x.shape
    rows = torch.cat([x / tokens**0.5, torch.eye(width, dtype=x.dtype) * ridge**0.5])
    retained = torch.tensor(sorted({*range(width)} - {*removed.tolist()}), dtype=torch.int64)
    solved = torch.linalg.lstsq(rows[:, retained], rows @ weight.T, driver="gelsd").solution
    return float((rows[:, retained] @ solved - rows @ weight.T).square().sum())


@given(width=st.integers(2, 9), units=st.integers(1, 3), outputs=st.integers(1, 4), seed=st.integers(0, 2**20))
@settings(max_examples=25)
def test_the_score_is_the_residual_of_least_squares(width: int, units: int, outputs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = max(1, width // units)
    channels = torch.randperm(width, generator=generator)[: units * size].view(-1, size)
    x = torch.randn(30, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(outputs, width, generator=generator, dtype=torch.float64)
    gram = with_ridge(x.T @ x, len(x))
    ridge = RIDGE * (x.square().sum() / len(x) / width).item()
    scores = obs(gram, weight, channels)
    for score, removed in zip(scores, channels):
        assert score.item() == pytest.approx(residual(x, weight, removed, ridge), rel=1e-4, abs=1e-9)


def test_a_single_channel_has_the_textbook_form() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(50, 6), torch.randn(4, 6)
    gram = with_ridge(x.T @ x, 50)
    expected = weight.square().sum(0) / torch.linalg.inv(gram).diagonal()
    torch.testing.assert_close(obs(gram, weight, torch.arange(6)[:, None]), expected.float(), rtol=1e-5, atol=0)


def test_a_channel_that_others_can_replace_scores_low_however_large() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 3)
    x[:, 1] = x[:, 0]
    scores = obs(with_ridge(x.T @ x, 200), torch.tensor([[5.0, 5.0, 1.0]]), torch.arange(3)[:, None])
    assert scores[0] < scores[2]


@pytest.mark.parametrize(("model_type", "variant"), LAYOUT_CASES)
def test_scores_of_a_model_are_those_of_the_inputs_of_its_projections(model_type: str, variant: int) -> None:
    model, binding = bound_model(model_type, variant)
    keys = ["num_key_value_heads", "num_attention_heads"]
    if binding.mlps == 1:
        keys.append("intermediate_size")
    scores = score_model(model, binding, MANY, UNIT_CRITERIA["obs"], None, tuple(keys), batch_size=5)
    for key in keys:
        layer = layer_with(binding, key, 2)
        bound = next(bound for bound in input_readers(binding, key) if bound.layer == layer)
        module = model.get_submodule(bound.module)
        seen: list[torch.Tensor] = []
        handle = module.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].detach()))
        with torch.no_grad():
            model(MANY)
        handle.remove()
        x = seen[0].flatten(0, 1).double()
        weight = module.weight.detach().double()
        weight = weight.T if bound.transposed else weight
        if len(x) < x.shape[1]:
            continue  # the ridge is raised, which another test shows
        last = min(1, scores[key].shape[1] - 1)
        removed = torch.arange(x.shape[1]).view(scores[key].shape[1], -1)[last]
        ridge = RIDGE * (x.square().sum() / len(x) / x.shape[1]).item()
        assert scores[key][layer, last].item() == pytest.approx(residual(x, weight, removed, ridge), rel=2e-3)


def test_too_few_tokens_raise_the_ridge_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    gram = torch.eye(8) * 4
    torch.testing.assert_close(with_ridge(gram, 4), torch.eye(8, dtype=torch.float64) * (1 + RIDGE * 2))
    torch.testing.assert_close(with_ridge(gram, 16), torch.eye(8, dtype=torch.float64) * (0.25 + RIDGE * 0.25))
    model, binding = bound_model()
    how: Any = (UNIT_CRITERIA["obs"], None, KEYS[1:])
    score_model(model, binding, MANY, *how)
    assert not caplog.records
    score_model(model, binding, MANY[:2], *how)
    assert "obs: 32 calibration tokens are fewer than the 64 channels" in caplog.text


def test_channels_that_are_never_active_score_zero() -> None:
    scores = obs(with_ridge(torch.zeros(4, 4), 10), torch.ones(2, 4), torch.arange(4)[:, None])
    assert scores.max() < 1e-12


def test_text_that_is_too_uniform_names_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model, binding = bound_model()
    monkeypatch.setattr("optimum_ishrink.importance.gram.RIDGE", -0.5)  # no text can make it positive definite
    with pytest.raises(DataError, match="too uniform to solve layer 0 for; give more text"):
        score_model(model, binding, MANY, UNIT_CRITERIA["obs"], None, KEYS[1:])


def test_padding_is_refused() -> None:
    model, binding = bound_model()
    mask = torch.ones_like(MANY)
    how: Any = (UNIT_CRITERIA["obs"], None, KEYS[1:])
    whole = score_model(model, binding, MANY, *how, attention_mask=mask)
    torch.testing.assert_close(whole, score_model(model, binding, MANY, *how))
    mask[0, 3:] = 0
    with pytest.raises(RequestError, match="'obs' needs windows without padding"):
        score_model(model, binding, MANY, *how, attention_mask=mask)


def test_activations_that_are_not_finite_name_the_layer() -> None:
    model, binding = bound_model()
    with torch.no_grad():
        model.model.layers[1].mlp.gate_proj.weight[0, 0] = float("inf")
    with pytest.raises(DataError, match=r"enter model.layers.1.mlp.down_proj in layer 1 are not finite"):
        score_model(model, binding, MANY, UNIT_CRITERIA["obs"], None, KEYS[1:])
