"""A written checkpoint is opened as its user will open it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from optimum_ishrink.checkpoint.loading import load_tokenizer
from optimum_ishrink.checkpoint.reopening import check_files, check_logits, check_runs, check_tokenizer
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.errors import VerificationError
from tests.helpers.offloaded import from_disk
from tests.helpers.tiny import LAYOUT_CASES, edit_json, save_tiny, tiny_config

CPU = torch.device("cpu")


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tied", tiny_config("llama", 1))


@pytest.mark.parametrize(("model_type", "variant"), LAYOUT_CASES)
def test_every_architecture_opens(tmp_path: Path, model_type: str, variant: int) -> None:
    folder = save_tiny(tmp_path / "m", tiny_config(model_type, variant))
    check_logits(folder, check_files(folder, folder), torch.float32, CPU)
    check_logits(folder, None, torch.bfloat16, CPU)


def test_a_model_on_disk_runs_and_has_a_logit_for_each_token(tied: Path) -> None:
    model = from_disk(open_source(tied))
    check_runs(model, load_tokenizer(tied))
    model.config.vocab_size += 1
    with pytest.raises(VerificationError, match="the written model gives 300 logits for 301 tokens"):
        check_runs(model, None)


def _stale_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 0.1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _adapter(folder: Path) -> None:
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(task_type="CAUSAL_LM"))
    adapted.save_pretrained(folder)


def _missing(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_stale_head, "the written head is not the embedding"),
        (_adapter, "an adapter lies beside the written weights"),
        (_missing, "does not load cleanly: missing_keys model.norm.weight"),
    ],
)
def test_what_opens_as_another_model_is_found(tied: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(tied)
    with pytest.raises(VerificationError, match=message):
        check_logits(tied, load_tokenizer(tied), torch.float32, CPU)


def test_other_logits_are_found(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = save_tiny(tmp_path / "other", tiny_config("llama"), seed=1)
    monkeypatch.setattr(
        "optimum_ishrink.checkpoint.reopening.load_model",
        lambda *_: AutoModelForCausalLM.from_pretrained(other, dtype=torch.float32),
    )
    with pytest.raises(VerificationError, match="gives other logits than the tensors that were written"):
        check_logits(llama_folder, load_tokenizer(llama_folder), torch.float32, CPU)


def test_headers_and_generation_config_are_checked(tied: Path) -> None:
    check_files(tied, tied)
    edit_json(tied / "generation_config.json", do_sample=False, temperature=0.5)
    with pytest.raises(VerificationError, match="generation_config.json sets temperature without effect"):
        check_files(tied, tied)
    _stale_head(tied)
    with pytest.raises(VerificationError, match="lm_head.weight is unexpected"):
        check_files(tied, tied)


def test_tokenizers_are_compared(llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = shutil.copytree(llama_folder, tmp_path / "written")
    assert check_tokenizer(written, llama_folder)("abc")["input_ids"]
    edit_json(written / "tokenizer_config.json", chat_template="{{ messages }}")
    with pytest.raises(VerificationError, match="another chat template"):
        check_tokenizer(written, llama_folder)
    shutil.copyfile(llama_folder / "tokenizer_config.json", written / "tokenizer_config.json")
    data = json.loads((written / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary["e"], vocabulary["f"] = vocabulary["f"], vocabulary["e"]
    (written / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(VerificationError, match="cuts a text into other tokens"):
        check_tokenizer(written, llama_folder)
    (written / "tokenizer.json").write_text("{}")
    with pytest.raises(VerificationError, match="the written tokenizer does not open"):
        check_tokenizer(written, llama_folder)
    assert check_tokenizer(written, written) is None
    assert "written has no tokenizer that AutoTokenizer opens" in capsys.readouterr().err
