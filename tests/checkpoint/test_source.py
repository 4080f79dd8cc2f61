from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.errors import ArchitectureError, SourceError
from tests.helpers.tiny import edit_json, save_tiny, tiny_config, tiny_model, tiny_tokenizer


def test_one_file_and_shards_give_the_same_tensors(tmp_path: Path) -> None:
    config = tiny_config("qwen2")
    one = open_source(save_tiny(tmp_path / "one", config))
    many = open_source(save_tiny(tmp_path / "many", config, max_shard_size="20KB"))
    assert len({info.file for info in many.tensors.values()}) > 3
    assert {n: (i.shape, i.dtype) for n, i in one.tensors.items()} == {
        n: (i.shape, i.dtype) for n, i in many.tensors.items()
    }
    assert one.nbytes == many.nbytes == one.binding.num_parameters() * 4


def test_a_model_in_memory() -> None:
    model, tokenizer = tiny_model(tiny_config("llama")), tiny_tokenizer()
    source = open_source(model, tokenizer=tokenizer)
    assert source.notes == ("saved from a model in memory",)
    again = source.load_model(torch.float32, torch.device("cpu"))
    ids = torch.arange(3, 9)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert source.load_tokenizer()("abc")["input_ids"] == tokenizer("abc")["input_ids"]
    place = source.folder
    del source
    assert not place.exists()
    with pytest.raises(SourceError, match="needs its tokenizer"):
        open_source(model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "does not exist"),
        ("a/b/c", "does not exist"),
        ("nobody/nothing", "not a local folder, not in the cache, and the Hub cannot be reached"),
        ("no spaces allowed", "nor a valid Hub id"),
    ],
)
def test_missing_models(name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(name)


def test_a_file_of_a_checkpoint_is_refused(folder: Path) -> None:
    with pytest.raises(
        SourceError, match=f"model.safetensors is a file; give the folder .* such as {re.escape(str(folder))}$"
    ):
        open_source(folder / "model.safetensors")


def test_folders_without_a_model(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="holds no config.json$"):
        open_source(tmp_path / "empty")
    (tmp_path / "empty" / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceError, match="it holds m.gguf: pass it as gguf_file"):
        open_source(tmp_path / "empty")
    with pytest.raises(SourceError, match="give its folder as the model and pass gguf_file='m.gguf'"):
        open_source(tmp_path / "empty" / "m.gguf")
    (folder / "config.json").write_text("[]")
    with pytest.raises(SourceError, match="not a JSON object"):
        open_source(folder).binding  # noqa: B018


def test_files_that_do_not_fit_the_config(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="lacks 1 tensors that its config expects: model.norm.weight"):
        open_source(folder).tensors  # noqa: B018
    save_file(
        {**tensors, "model.norm.weight": norm, "odd": norm.clone()}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(SourceError, match="holds 1 tensors that its config does not expect: odd"):
        open_source(folder).tensors  # noqa: B018
    save_file({**tensors, "model.norm.weight": norm[:5].clone()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"model.norm.weight as \[5\]; its config expects \[32\]"):
        open_source(folder).tensors  # noqa: B018


def test_several_submodules_are_refused(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="kosmos-2", text_config={"model_type": "llama"})
    with pytest.raises(
        ArchitectureError, match=r"'kosmos-2' combines several models \(text_config\), .* one of these"
    ):
        open_source(folder).binding  # noqa: B018


@pytest.mark.parametrize(
    ("model_type", "variant", "head"), [("llama", 1, "lm_head.weight"), ("gpt_neox", 0, "embed_out.weight")]
)
def test_a_stored_head_must_be_the_embedding_that_it_is_tied_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, variant: int, head: str
) -> None:
    monkeypatch.setattr("optimum_ishrink.checkpoint.comparing._PIECE", 1000)
    folder = save_tiny(tmp_path / "m", tiny_config(model_type, variant, tie_word_embeddings=True))
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "embed" in name)
    assert head not in tensors
    tensors[head] = tensors[name].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert head not in open_source(folder).tensors
    tensors[head][-1, -1] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        SourceError, match=f"holds {head} with values that differ from {name}, but its config ties them"
    ):
        open_source(folder).tensors  # noqa: B018
    tensors[head] = tensors[name].bfloat16()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="with values that differ"):
        open_source(folder).tensors  # noqa: B018


def test_a_checkpoint_saved_from_a_base_model(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", tiny_config("gpt2"))
    before = open_source(folder)
    ids, cpu = torch.arange(3, 9)[None], torch.device("cpu")
    logits = before.load_model(torch.float32, cpu)(ids).logits
    names = list(before.tensors)
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(folder / "model.safetensors").items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)  # the causal mask that old versions saved
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    after = open_source(folder)
    assert list(after.tensors) == names
    assert torch.equal(after.load_model(torch.float32, cpu)(ids).logits, logits)
    save_file({**tensors, "h.0.odd": torch.ones(1)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="does not expect: h.0.odd"):
        open_source(folder).tensors  # noqa: B018


def test_a_quantised_or_remote_config_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "awq"})
    with pytest.raises(SourceError, match="already quantised"):
        open_source(folder).binding  # noqa: B018
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {}}))
    with pytest.raises(ArchitectureError, match="remote code"):
        open_source(folder).binding  # noqa: B018


def test_an_adapter_beside_the_weights_is_refused(folder: Path) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(task_type="CAUSAL_LM"))
    model.save_pretrained(folder)
    with pytest.raises(SourceError, match="holds adapter_config.json.*merge it into them") as caught:
        open_source(folder)
    assert "\n" not in str(caught.value)


def test_headers_are_checked_without_reading_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(save_tiny(tmp_path / "m", tiny_config("llama", 1)))
    monkeypatch.setattr("optimum_ishrink.checkpoint.source.same_bytes", lambda *_: pytest.fail("weights were read"))
    source.check_headers()


def test_a_generation_config_that_cannot_be_used_is_found_by_the_check(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"max_new_tokens": -1}')
    with pytest.raises(SourceError, match="transformers refuses .*generation_config.json"):
        open_source(folder).check()
