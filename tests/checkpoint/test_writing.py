"""What is written beside the weights, and copies of whole checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig

from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.checkpoint.tensors import OutgoingTensor, read_index
from optimum_ishrink.checkpoint.writing import carry_files, compare_written, copy_checkpoint, drop_code, write_weights
from optimum_ishrink.errors import SourceError, VerificationError
from tests.helpers.tiny import edit_json, save_tiny, tiny_config

NAMES = (
    "tekken.json",
    "tokenizer.model",
    "tokenizer.model.v7m1",
    "tokenizer.4.0.0.json",
    "spm.model",
    "vocab.json",
    "vocab.bpe",
    "vocab.txt",
    "merges.txt",
    "qwen.tiktoken",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


def test_every_tokenizer_file_is_carried_byte_for_byte(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    for name in (*NAMES, "tokenizer_code.py", "tokenizer.pt", "model.safetensors", "notes.json"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(name.encode() + b"\r\n")
    (source / "tokenizer").mkdir()  # a folder of that name is no tokenizer file
    assert sorted(carry_files(source, target)) == sorted(NAMES)
    assert all((target / name).read_bytes() == name.encode() + b"\r\n" for name in NAMES)


def test_code_that_is_not_carried_is_not_named(tmp_path: Path, target: Path) -> None:
    source = save_tiny(tmp_path / "source", tiny_config("llama"))
    (source / "tokenization_x.py").write_text("raise SystemExit\n")
    edit_json(source / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "tokenization_x.X"]})
    edit_json(source / "config.json", auto_map={"AutoConfig": "configuration_x.X"})
    carry_files(source, target)
    assert not (target / "tokenization_x.py").exists()
    assert "auto_map" not in json.loads((target / "tokenizer_config.json").read_text())
    AutoTokenizer.from_pretrained(target, trust_remote_code=True)
    shutil.copyfile(source / "config.json", target / "config.json")
    drop_code(target)
    assert "auto_map" not in json.loads((target / "config.json").read_text())


def test_a_generation_config_is_written_so_that_it_validates(
    tmp_path: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "generation_config.json").write_text('{"do_sample":false,"temperature":0.6,"eos_token_id":2}')
    carry_files(source, target)
    assert "left out temperature, which it sets without effect" in capsys.readouterr().err
    GenerationConfig.from_pretrained(target).save_pretrained(target)
    assert json.loads((target / "generation_config.json").read_text())["eos_token_id"] == 2
    (source / "generation_config.json").write_text('{"do_sample":true,"temperature":0.6}')
    carry_files(source, target)
    assert (target / "generation_config.json").read_text() == '{"do_sample":true,"temperature":0.6}'


@pytest.mark.parametrize("shards", [False, True])
def test_a_copy_has_no_second_head_and_no_old_buffers(tmp_path: Path, target: Path, shards: bool) -> None:
    how = {"max_shard_size": "20KB"} if shards else {}
    source = save_tiny(tmp_path / "m", tiny_config("llama", 1), **how)
    copy_checkpoint(open_source(source), target)
    files = {path.name for path in source.glob("model*")}
    assert {path.name for path in target.glob("model*")} == files
    assert all((target / name).read_bytes() == (source / name).read_bytes() for name in files)
    if shards:
        return
    tensors = load_file(source / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    more = {"lm_head.weight": embedding.clone(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file({**tensors, **more}, source / "model.safetensors", {"format": "pt"})
    edit_json(source / "config.json", auto_map={"AutoConfig": "x.X"})
    (tmp_path / "again").mkdir()
    copy_checkpoint(open_source(source), tmp_path / "again")
    written = load_file(tmp_path / "again" / "model.safetensors")
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())
    save_file({**tensors, "lm_head.weight": embedding + 1}, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="values that differ"):
        copy_checkpoint(open_source(source), target)


def test_tensors_that_do_not_read_back_are_found(llama_folder: Path, target: Path) -> None:
    stored = read_index(llama_folder)
    copied = [OutgoingTensor(name, info.dtype, info.shape, source=info) for name, info in stored.items()]
    write_weights(copied, target)
    compare_written(copied, target)
    norm = stored["model.norm.weight"]
    right = load_file(target / "model.safetensors")["model.norm.weight"]
    made = OutgoingTensor("model.norm.weight", norm.dtype, norm.shape, make=lambda: right)
    compare_written([made], target)
    wrong = OutgoingTensor("model.norm.weight", norm.dtype, norm.shape, make=lambda: right + 1)
    with pytest.raises(VerificationError, match="model.norm.weight does not read back as it was written"):
        compare_written([wrong], target)
    other = OutgoingTensor("model.norm.weight", norm.dtype, norm.shape, source=stored["model.embed_tokens.weight"])
    with pytest.raises(VerificationError, match="does not read back"):
        compare_written([other], target)
