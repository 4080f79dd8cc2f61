from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.edge import rounded_matrices as module
from optimum_ishrink.edge.gguf_quantizations import parse_gguf_quantization
from optimum_ishrink.edge.rounded_matrices import RoundedMatrices, find_rows
from optimum_ishrink.edge.same_model import check_same_model
from optimum_ishrink.edge.write_gguf import quantize_file
from tests.helpers.tiny import tiny_config, tiny_model

NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
    "blk.0.ffn_up.weight": "model.layers.0.mlp.up_proj.weight",
    "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(tiny_config("llama", 1, hidden_size=64, head_dim=8, intermediate_size=96, num_hidden_layers=1))


@pytest.fixture
def exact(model: Any, tmp_path: Path) -> Path:
    """The model's matrices in bf16, the rows of the queries in reverse."""
    writer = gguf.GGUFWriter(tmp_path / "exact.gguf", "llama")
    for name, parameter in NAMES.items():
        rows = model.get_parameter(parameter).detach().numpy()
        rows = rows[::-1] if "attn_q" in name else rows
        stored = gguf.quants.quantize(np.ascontiguousarray(rows), gguf.GGMLQuantizationType.BF16)
        writer.add_tensor(name, stored, raw_dtype=gguf.GGMLQuantizationType.BF16)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    return tmp_path / "exact.gguf"


def windows() -> torch.Tensor:
    return torch.randint(0, 300, (4, 16), generator=torch.Generator().manual_seed(0))


def test_matrices_are_rounded_once_and_written_as_they_are_measured(
    model: Any, exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = RoundedMatrices(exact, tmp_path / "rounded", NAMES)
    types = {name: ["q8_0", "q4_0"] for name in NAMES}
    found.round(model, windows(), types)
    monkeypatch.setattr(module, "calibrated_blocks", lambda *_: pytest.fail("it is rounded already"))
    found.round(model, windows(), types)
    quantize_file(
        exact, tmp_path / "q.gguf", parse_gguf_quantization("q4_0"), dict.fromkeys(NAMES, "q4_0"), rounded=found
    )
    check_same_model(exact, tmp_path / "q.gguf")
    written = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "q.gguf").tensors}
    for name, parameter in NAMES.items():
        values = found.values(name, "q4_0", model)
        assert values is not None
        held = torch.from_numpy(gguf.quants.dequantize(written[name].data, written[name].tensor_type))
        assert torch.equal(values, held.flip(0) if "attn_q" in name else held)
        weight = model.get_parameter(parameter).detach()
        assert float((values - weight).norm()) < 0.2 * float(weight.norm())


def test_what_is_computed_errs_less_than_with_nearest_values(model: Any, exact: Path, tmp_path: Path) -> None:
    found = RoundedMatrices(exact, tmp_path / "rounded", NAMES)
    name = "blk.0.ffn_up.weight"
    found.round(model, windows(), {name: ["q4_0"]})
    (moments,) = [part[name] for part in module.input_moments(model, windows(), {name: NAMES[name]})]
    weight = model.get_parameter(NAMES[name]).detach().bfloat16().float()
    kind = gguf.GGMLQuantizationType.Q4_0
    off = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)) - weight
    values = found.values(name, "q4_0", model)
    assert values is not None
    ours = values - weight
    assert float(((ours @ moments) * ours).sum()) < 0.8 * float(((off @ moments) * off).sum())


def test_what_cannot_be_rounded_so_is_left_out(model: Any, exact: Path, tmp_path: Path) -> None:
    found = RoundedMatrices(exact, tmp_path / "rounded", {**NAMES, "another": "model.norm.weight"})
    found.round(model, windows(), {"blk.0.ffn_up.weight": ["bf16", "q6_k"], "another": ["q4_0"], "unknown": ["q4_0"]})
    assert not (tmp_path / "rounded").exists()
    assert found.blocks("another", "q4_0") is None
    assert found.values("blk.0.ffn_up.weight", "bf16", model) is None


def test_a_matrix_that_the_file_has_with_other_values_is_left_out(model: Any, exact: Path, tmp_path: Path) -> None:
    other = tiny_model(model.config, seed=1)
    found = RoundedMatrices(exact, tmp_path / "rounded", NAMES)
    name = "blk.0.ffn_up.weight"
    found.round(other, windows(), {name: ["q4_0"]})
    assert found.blocks(name, "q4_0") is None
    assert found.left == {name: "whose values in the file are not those of the loaded model"}
    assert not found.missing({name: ["q4_0", "q8_0"]})


def test_an_embedding_alone_is_left_out_and_not_tried_again(
    model: Any, exact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untied = tiny_model(model.config)
    untied.lm_head.weight = torch.nn.Parameter(torch.zeros_like(untied.lm_head.weight))
    found = RoundedMatrices(exact, tmp_path / "rounded", NAMES)
    types = {name: ["q4_0"] for name in NAMES}
    found.round(untied, windows(), types)
    assert (
        list(found.left) == ["token_embd.weight"] and "no linear layer multiplies" in found.left["token_embd.weight"]
    )
    assert all(found.blocks(name, "q4_0") is not None for name in NAMES if name not in found.left)
    monkeypatch.setattr(module, "input_moments", lambda *_, **__: pytest.fail("it is known already"))
    found.round(untied, windows(), types)


@pytest.mark.parametrize("held", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("loaded", ["float32", "float16", "bfloat16"])
def test_rows_are_found_whatever_dtype_the_model_is_loaded_in(
    model: Any, tmp_path: Path, held: str, loaded: str
) -> None:
    """A checkpoint in float32 and one in bfloat16 have a file in bf16."""
    if (held, loaded) == ("float32", "float16"):
        pytest.skip("values are rounded twice in different ways")
    name, kind = "blk.0.ffn_up.weight", gguf.GGMLQuantizationType["F16" if held == "float16" else "BF16"]
    checkpoint = model.get_parameter(NAMES[name]).detach().to(getattr(torch, held))
    writer = gguf.GGUFWriter(tmp_path / "exact.gguf", "llama")
    rows = np.ascontiguousarray(checkpoint.flip(0).float().numpy())
    writer.add_tensor(name, gguf.quants.quantize(rows, kind), raw_dtype=kind)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    other = copy.deepcopy(model).to(getattr(torch, loaded))
    other.get_parameter(NAMES[name]).data.copy_(checkpoint)
    order = RoundedMatrices(tmp_path / "exact.gguf", tmp_path / "rounded", NAMES).order(name, other)
    assert order is not None and order.tolist() == list(range(len(rows)))[::-1]


@given(rows=st.lists(st.integers(0, 3), min_size=1, max_size=12), data=st.data())
def test_rows_are_found_in_any_order(rows: list[int], data: st.DataObject) -> None:
    there = torch.tensor([[row, row + 1.0] for row in rows], dtype=torch.bfloat16)
    order = data.draw(st.permutations(range(len(rows))))
    wanted = there[list(order)]
    places = find_rows(there, wanted)
    assert places is not None and sorted(places.tolist()) == list(range(len(rows)))
    assert torch.equal(there[torch.from_numpy(places)], wanted)
    assert find_rows(there, wanted + 8) is None and find_rows(there, wanted[:, :1]) is None
