from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.checkpoint.tensors import read_index
from optimum_ishrink.checkpoint.writing import carry_files, verify_checkpoint, write_weights
from optimum_ishrink.errors import VerificationError
from optimum_ishrink.surgery.cut import outgoing_tensors
from tests.helpers.cutting import SHAPES, cut_to, random_plan
from tests.helpers.tiny import edit_json, save_tiny, tiny_config


@pytest.fixture
def cut(llama_folder: Path, tmp_path: Path) -> Path:
    plan, _, _ = random_plan(json.loads((llama_folder / "config.json").read_text()), SHAPES["all"], seed=1)
    return cut_to(llama_folder, tmp_path / "cut", plan)


def test_only_the_planned_keys_of_the_config_change(llama_folder: Path, cut: Path) -> None:
    before = json.loads((llama_folder / "config.json").read_text())
    after = json.loads((cut / "config.json").read_text())
    assert list(after) == list(before)
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"num_hidden_layers", "num_key_value_heads", "num_attention_heads", "intermediate_size"}
    assert after["head_dim"] == 8


def test_an_implied_head_dim_is_written_when_heads_are_removed(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("llama", 2))
    edit_json(folder / "config.json", head_dim=None)
    raw = json.loads((folder / "config.json").read_text())
    plan, _, _ = random_plan(raw, SHAPES["groups"], seed=1)
    assert plan.config_changes["head_dim"] == (None, 4)
    assert json.loads((cut_to(folder, tmp_path / "cut", plan) / "config.json").read_text())["head_dim"] == 4


def test_other_files_are_carried_over_byte_for_byte(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("llama"))
    (folder / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    (folder / "LICENSE.txt").write_text("terms")
    (folder / "notes.md").write_text("not part of a checkpoint")
    (tmp_path / "new").mkdir()
    carried = carry_files(folder, tmp_path / "new")
    assert {"chat_template.jinja", "LICENSE.txt", "generation_config.json", "tokenizer.json"} <= set(carried)
    for name in carried:
        assert (tmp_path / "new" / name).read_bytes() == (folder / name).read_bytes()
    assert not (tmp_path / "new" / "notes.md").exists()


def test_several_chat_templates_are_carried_over(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("llama"))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_bytes(b"{{ tools }}")
    (tmp_path / "new").mkdir()
    assert "additional_chat_templates/tool.jinja" in carry_files(folder, tmp_path / "new")
    assert (tmp_path / "new" / "additional_chat_templates" / "tool.jinja").read_bytes() == b"{{ tools }}"


def test_every_tensor_has_the_dtype_of_its_source(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("llama"))
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if "mlp" in name:
            tensors[name] = tensors[name].bfloat16()
        if "norm" in name:
            tensors[name] = tensors[name].half()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    plan, _, _ = random_plan(json.loads((folder / "config.json").read_text()), SHAPES["all"], seed=1)
    written = load_file(cut_to(folder, tmp_path / "cut", plan) / "model.safetensors")
    for name, tensor in written.items():
        assert tensor.dtype == (
            torch.bfloat16 if "mlp" in name else torch.float16 if "norm" in name else torch.float32
        )


def test_tied_weights_and_old_buffers_on_disk_are_left_out(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("llama", 1))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    plan, _, _ = random_plan(json.loads((folder / "config.json").read_text()), SHAPES["layers"], seed=1)
    written = load_file(cut_to(folder, tmp_path / "cut", plan) / "model.safetensors")
    assert "lm_head.weight" not in written
    assert not any("inv_freq" in name for name in written)


def test_shards_and_index_are_those_of_save_pretrained(llama_folder: Path, tmp_path: Path) -> None:
    raw = json.loads((llama_folder / "config.json").read_text())
    plan, _, _ = random_plan(raw, {}, seed=0)
    source = open_source(llama_folder)
    (tmp_path / "ours").mkdir()
    outgoing = outgoing_tensors(source.tensors, source.binding, plan)
    write_weights(outgoing, tmp_path / "ours", max_shard_size=20_000)
    save_tiny(tmp_path / "theirs", tiny_config("llama"), max_shard_size=20_000)
    ours = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    theirs = json.loads((tmp_path / "theirs" / "model.safetensors.index.json").read_text())
    assert ours == theirs
    for file in set(ours["weight_map"].values()):
        mine, other = load_file(tmp_path / "ours" / file), load_file(tmp_path / "theirs" / file)
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_the_same_plan_gives_the_same_bytes(llama_folder: Path, tmp_path: Path) -> None:
    plan, _, _ = random_plan(json.loads((llama_folder / "config.json").read_text()), SHAPES["all"], seed=1)
    first, second = (cut_to(llama_folder, tmp_path / name, plan) for name in ("one", "two"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", "model.norm.weight is missing"),
        ("extra", "surplus is unexpected"),
        ("shape", r"model.norm.weight is \[3\], expected \[32\]"),
    ],
)
def test_verification_finds_every_fault(cut: Path, fault: str, message: str) -> None:
    tensors = load_file(cut / "model.safetensors")
    if fault == "missing":
        del tensors["model.norm.weight"]
    elif fault == "extra":
        tensors["surplus"] = torch.ones(1)
    else:
        tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, cut / "model.safetensors", {"format": "pt"})
    with pytest.raises(VerificationError, match=message):
        verify_checkpoint(cut)


def test_verification_finds_a_changed_dtype(cut: Path) -> None:
    dtypes = {name: info.dtype for name, info in read_index(cut).items()}
    assert verify_checkpoint(cut, dtypes) > 0
    with pytest.raises(VerificationError, match=r"model.norm.weight is F32, expected BF16"):
        verify_checkpoint(cut, {**dtypes, "model.norm.weight": "BF16"})


def test_a_count_that_differs_from_the_plan_is_an_error(llama_folder: Path, tmp_path: Path) -> None:
    import dataclasses

    plan, _, _ = random_plan(json.loads((llama_folder / "config.json").read_text()), SHAPES["all"], seed=1)
    wrong = dataclasses.replace(plan, new_num_parameters=plan.new_num_parameters + 1)
    with pytest.raises(VerificationError, match="the plan says"):
        cut_to(llama_folder, tmp_path / "cut", wrong)


def test_the_source_is_untouched(llama_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(llama_folder, tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    plan, _, _ = random_plan(json.loads((copy / "config.json").read_text()), SHAPES["all"], seed=1)
    cut_to(copy, tmp_path / "cut", plan)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
