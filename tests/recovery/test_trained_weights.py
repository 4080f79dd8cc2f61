"""What was trained is in the files once, whichever parameters were trained and however the head was stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from optimum_ishrink import IShrinker, RequestError
from optimum_ishrink.checkpoint.source import open_source
from tests.helpers.tiny import edit_json, in_full, save_tiny, tiny_config

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def twice(tmp_path: Path) -> Path:
    """A tied head that is stored a second time, beside a generation config that transformers would not save."""
    folder = save_tiny(tmp_path / "twice", tiny_config("llama", 1))
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, HEAD: tensors[EMBEDDING].clone()}, folder / "model.safetensors", {"format": "pt"})
    edit_json(folder / "generation_config.json", do_sample=False, temperature=0.6)
    return folder


def recover(folder: Path, text: Path, output: Path, trained: str, **more: object) -> Path:
    IShrinker.from_pretrained(folder, dtype="float32", device="cpu").recover(
        recovery="ce",
        recovery_train=trained,
        recovery_data=[str(text)],
        recovery_tokens=600,
        recovery_length=16,
        recovery_batch_size=4,
        recovery_learning_rate=1e-2,
        evaluate=False,
        benchmark=False,
        save_directory=output,
        **more,
    )
    return output


@pytest.mark.parametrize(
    "trained",
    in_full(
        ["full", "head", "embeddings", "norms", "last:1", "norms+head", "lora"], "embeddings", "norms+head", "lora"
    ),
)
def test_a_tied_head_is_never_left_stale(twice: Path, text_file: Path, tmp_path: Path, trained: str) -> None:
    before = load_file(twice / "model.safetensors")
    out = recover(twice, text_file, tmp_path / "out", trained)
    after = load_file(out / "model.safetensors")
    assert after.keys() == before.keys() - {HEAD}
    assert any(not torch.equal(after[name], before[name]) for name in after)
    assert torch.equal(after[EMBEDDING], before[EMBEDDING]) == (trained in ("norms", "last:1", "lora"))
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    open_source(out).check()
    model.save_pretrained(tmp_path / "again")  # its generation config validates


@pytest.mark.parametrize("trained", in_full(["full", "head", "embeddings"], "full", "head"))
def test_an_untied_head_is_trained_in_its_own_place(
    llama_folder: Path, text_file: Path, tmp_path: Path, trained: str
) -> None:
    before = load_file(llama_folder / "model.safetensors")
    after = load_file(recover(llama_folder, text_file, tmp_path / "out", trained) / "model.safetensors")
    assert not torch.equal(after[HEAD], before[HEAD])
    assert torch.equal(after[EMBEDDING], before[EMBEDDING]) == (trained == "head")
    assert not torch.equal(after[HEAD], after[EMBEDDING])


def test_an_adapter_in_a_tied_head_is_refused(twice: Path, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="recovery_lora_targets names lm_head, which is the embedding too"):
        recover(twice, text_file, tmp_path / "out", "lora", recovery_lora_targets=["lm_head"])
    assert not (tmp_path / "out").exists()


def test_a_stale_head_is_refused_before_the_training(twice: Path, text_file: Path, tmp_path: Path) -> None:
    tensors = load_file(twice / "model.safetensors")
    save_file({**tensors, HEAD: tensors[HEAD] + 1}, twice / "model.safetensors", {"format": "pt"})
    with pytest.raises(RequestError, match=r"holds lm_head.weight with values that differ"):
        recover(twice, text_file, tmp_path / "out", "norms")
