from __future__ import annotations

from typing import Any

import pytest
import torch

from optimum_ishrink.edge import input_moments as module
from optimum_ishrink.edge.input_moments import input_moments
from optimum_ishrink.errors import NotFiniteError
from tests.helpers.tiny import in_full, tiny_config, tiny_model


def matrices(model: Any) -> dict[str, str]:
    """Return the parameters of two dimensions under other names."""
    return {f"the {name}": name for name, weight in model.named_parameters() if weight.dim() == 2}


def collect(model: Any, windows: torch.Tensor, names: dict[str, str]) -> dict[str, torch.Tensor]:
    return {name: moment for part in input_moments(model, windows, names) for name, moment in part.items()}


def seen_by(model: Any, name: str, windows: torch.Tensor) -> torch.Tensor:
    rows: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda _, inputs, __: rows.append(inputs[0].flatten(0, -2))
    )
    with torch.no_grad():
        model(windows)
    handle.remove()
    read = torch.cat(rows)
    return read.T @ read / len(read)


@pytest.mark.parametrize("name", in_full(("llama", "gpt2", "gemma3_text", "phi3"), "llama", "gpt2"))
@torch.no_grad()
def test_moments_are_those_of_what_a_matrix_reads(name: str) -> None:
    model = tiny_model(tiny_config(name))
    windows = torch.randint(0, 300, (6, 9), generator=torch.Generator().manual_seed(0))
    found = collect(model, windows, matrices(model))
    linear = [
        each
        for each, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) or type(part).__name__ == "Conv1D"
    ]
    for each in linear:
        key = f"the {each}.weight"
        if key in found:  # a tied head has the embedding's name
            torch.testing.assert_close(found[key], seen_by(model, each, windows), rtol=1e-4, atol=1e-6)
    assert len(found) >= len(linear) - 1 and len(linear) > 8


@torch.no_grad()
def test_a_tied_embedding_is_read_as_the_head_and_another_one_is_not_read() -> None:
    windows = torch.randint(0, 300, (2, 9))
    tied = tiny_model(tiny_config("llama", 1))
    found = collect(tied, windows, {"token_embd.weight": "model.embed_tokens.weight"})
    torch.testing.assert_close(found["token_embd.weight"], seen_by(tied, "lm_head", windows), rtol=1e-4, atol=1e-6)
    assert not collect(tiny_model(tiny_config("llama")), windows, {"token_embd.weight": "model.embed_tokens.weight"})


def test_matrices_are_measured_in_groups_where_all_take_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tiny_config("llama"))
    windows = torch.randint(0, 300, (2, 9))
    whole = collect(model, windows, matrices(model))
    monkeypatch.setattr(module, "MOST_BYTES", 3 * 4 * 32 * 32)
    parts = list(input_moments(model, windows, matrices(model)))
    assert len(parts) > 5
    assert all(torch.equal(whole[name], moment) for part in parts for name, moment in part.items())
    assert whole.keys() == {name for part in parts for name in part}


def test_matrices_that_read_the_same_share_their_moments() -> None:
    model = tiny_model(tiny_config("llama"))
    found = collect(model, torch.randint(0, 300, (2, 9)), matrices(model))
    layer = "the model.layers.0."
    query, key, up = (
        found[f"{layer}{part}.weight"] for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
    )
    assert query is key and query is not up


@torch.no_grad()
def test_values_are_measured_on_the_mean_of_the_inputs_so_far() -> None:
    model = tiny_model(tiny_config("llama"))
    windows = torch.randint(0, 300, (3, 9))
    query, value = ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj")
    names = {name: f"{name}.weight" for name in (query, value)}
    (found,) = (part for part in input_moments(model, windows, names, averaged=[value], batch_size=2))
    torch.testing.assert_close(found[query], seen_by(model, query, windows), rtol=1e-4, atol=1e-6)
    read: list[torch.Tensor] = []
    handle = model.get_submodule(value).register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    model(windows)
    handle.remove()
    means = torch.stack([read[0][:, : end + 1].mean(dim=1) for end in range(9)], dim=1).flatten(0, 1)
    torch.testing.assert_close(found[value], means.T @ means / len(means), rtol=1e-4, atol=1e-6)


def test_fused_experts_are_left_out() -> None:
    model = tiny_model(tiny_config("qwen3_moe"))
    experts = [name for name, weight in model.named_parameters() if weight.dim() == 3]
    assert experts and not collect(model, torch.randint(0, 300, (2, 9)), {name: name for name in experts})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e30])
@torch.no_grad()
def test_what_is_not_finite_is_refused(value: float) -> None:
    model = tiny_model(tiny_config("llama"))
    model.model.norm.weight[0] = value
    with pytest.raises(NotFiniteError, match="what matrices read on the calibration text is not finite"):
        collect(model, torch.randint(0, 300, (2, 9)), {"output.weight": "lm_head.weight"})
