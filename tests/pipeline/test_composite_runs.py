"""Runs over models of several parts: scored, repaired, measured and trained on text."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from optimum_ishrink import IShrinker
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.checkpoint.tensors import read_index, read_tensor
from tests.helpers.tiny import in_full
from tests.helpers.tiny_composites import composite_config, composite_model, image_question, save_composite
from tests.helpers.trained_vocabulary import trained_tokenizer

SHAPE = {"num_hidden_layers": 3, "intermediate_size": 16, "keep_first_layers": 1}
TEXT = {"calibration_samples": 8, "calibration_length": 32, "importance_samples": 4}
QUICK = {"evaluate": False, "benchmark": False}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(
        "\n".join(f"Ferry {i} leaves pier {i * 7 % 13} with {i * 3} bicycles and a dog." for i in range(200))
    )
    return path


def other_parts(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors outside the decoder and its head, by the names in the files."""
    source = open_source(folder)
    inside = ("model.language_model.", "model.text_model.", "lm_head.")
    return {info.stored_as: read_tensor(info) for name, info in source.tensors.items() if not name.startswith(inside)}


def assert_carried(base: Path, result: Path) -> None:
    before, after = other_parts(base), other_parts(result)
    assert before.keys() == after.keys() and len(before) > 20
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "model_type", in_full(["gemma3", "llava", "paligemma", "qwen2_vl", "qwen3_vl", "smolvlm"], "gemma3", "smolvlm")
)
def test_a_run_scores_repairs_and_measures_on_text(model_type: str, tmp_path: Path, text: Path) -> None:
    folder = save_composite(tmp_path / "base", composite_config(model_type))
    files = {"preprocessor_config.json": "{\n}", "processor_config.json": '{"processor_class": "X"}'}
    for name, content in files.items():
        (folder / name).write_text(content)
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("\n".join(f"A quiet valley with {i} houses lies behind hill {i % 9}." for i in range(100)))
    result = IShrinker.from_pretrained(folder).shrink(
        **SHAPE, **TEXT, calibration=str(text), eval_text=[str(held_out)], eval_samples=2, eval_length=24,
        sample_new_tokens=0, benchmark=False, save_directory=tmp_path / "cut",
    )  # fmt: skip
    assert result.plan.model_type == model_type
    assert all(name.startswith("text_config.") for name in result.plan.config_changes)
    assert len(result.report.compensation.repairs) > 0
    metrics = {each.metric: each.value for each in result.report.shrunk.quality}
    assert metrics["perplexity"] > 1 and metrics["kl_divergence"] > 0
    assert type(result.model).__name__ == type(composite_model(composite_config(model_type))).__name__
    assert_carried(folder, tmp_path / "cut")
    for name, content in files.items():
        assert (tmp_path / "cut" / name).read_text() == content
    card = (tmp_path / "cut" / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card and "AutoModelForImageTextToText.from_pretrained" in card
    assert "Only the text decoder was cut" in card and "ishrink export" not in card


def test_perplexity_is_causal_where_the_class_would_read_ahead(tmp_path: Path) -> None:
    folder = save_composite(tmp_path / "base", composite_config("paligemma"))
    ids = torch.arange(3, 14)[None]
    other = torch.cat([ids[:, :-1], ids[:, :1]], dim=1)
    plain = AutoModelForImageTextToText.from_pretrained(folder)
    model = open_source(folder).load_model(torch.float32, torch.device("cpu"))
    with torch.no_grad():
        ahead = (plain(input_ids=ids).logits - plain(input_ids=other).logits)[:, :-1].abs().max()
        causal = (model(input_ids=ids).logits - model(input_ids=other).logits)[:, :-1].abs().max()
    assert causal == 0 < ahead


def test_a_cut_by_weights_alone_loads_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_composite(tmp_path / "base", composite_config("llava"))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("optimum_ishrink.checkpoint.source.load_model", refuse)
    monkeypatch.setattr("optimum_ishrink.checkpoint.reopening.load_model", refuse)
    IShrinker.from_pretrained(folder).shrink(
        **SHAPE, **QUICK, num_key_value_heads=2, importance="l2-norm", layer_importance="l2-norm", compensation="none",
        save_directory=tmp_path / "cut",
    )  # fmt: skip
    assert_carried(folder, tmp_path / "cut")


@pytest.mark.parametrize("model_type", in_full(["gemma3", "llava", "paligemma", "qwen2_vl", "smolvlm"], "paligemma"))
def test_image_tokens_stay_in_a_smaller_vocabulary(model_type: str, tmp_path: Path, text: Path) -> None:
    tokenizer = copy.deepcopy(trained_tokenizer())
    tokenizer.add_tokens(["<image>", "<video>", "<start>", "<end>"], special_tokens=True)
    config = composite_config(model_type, vocab_size=len(tokenizer))
    for key in ("image_token", "video_token", "vision_start_token", "vision_end_token", "boi_token", "eoi_token"):
        for ending in ("_id", "_index"):
            name = {"boi": "start", "eoi": "end"}.get(key.split("_")[0], key.split("_")[-2])
            if hasattr(config, key + ending):
                setattr(config, key + ending, tokenizer.convert_tokens_to_ids(f"<{name}>"))
    if hasattr(config, "vocab_size"):
        config.vocab_size = len(tokenizer)
    folder = tmp_path / "base"
    composite_model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({"image_token_id": config.image_token_id, "size": 4}))
    (folder / "preprocessor_config.json").write_text('{"size":16}')
    result = IShrinker.from_pretrained(folder).shrink(
        vocab_size=1408, calibration=str(text), **QUICK, save_directory=tmp_path / "cut"
    )
    rows = list(result.plan.vocabulary.rows)
    new = {row: number for number, row in enumerate(rows)}
    written = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert written["text_config"]["vocab_size"] == 1408 == written.get("vocab_size", 1408)
    image = new[config.image_token_id]
    assert json.loads((tmp_path / "cut" / "processor_config.json").read_text()) == {"image_token_id": image, "size": 4}
    assert (tmp_path / "cut" / "preprocessor_config.json").read_text() == '{"size":16}'
    assert AutoTokenizer.from_pretrained(tmp_path / "cut").convert_tokens_to_ids("<image>") == image
    assert_carried(folder, tmp_path / "cut")
    base, cut = (AutoModelForImageTextToText.from_pretrained(each) for each in (folder, tmp_path / "cut"))
    assert cut.config.image_token_id == image
    question = image_question(base)
    ids = question["input_ids"]
    ids[ids != config.image_token_id] = rows[20]
    renumbered = {**question, "input_ids": ids.clone().apply_(new.__getitem__)}
    with torch.no_grad():
        assert torch.equal(base(**question).logits[..., rows], cut(**renumbered).logits)


@pytest.mark.parametrize(
    "how",
    [
        {"recovery": "kl"},
        pytest.param({"recovery": "kl+hidden", "recovery_train": "full"}, marks=pytest.mark.slow),
        pytest.param({"recovery": "ce", "recovery_train": "norms"}, marks=pytest.mark.slow),
    ],
    ids=["adapter", "full", "norms"],
)
def test_recovery_trains_the_decoder_alone(how: dict[str, Any], tmp_path: Path, text: Path) -> None:
    folder = save_composite(tmp_path / "base", composite_config("llava"))
    more = tmp_path / "more.txt"
    more.write_text("\n".join(f"Each winter {i} ships carry grain to mill number {i % 5}." for i in range(300)))
    result = IShrinker.from_pretrained(folder).shrink(
        **SHAPE, **QUICK, importance="l2-norm", layer_importance="l2-norm", compensation="none",
        calibration=str(text), recovery_data=[str(more)], recovery_tokens=2000, recovery_length=32,
        recovery_batch_size=2, recovery_learning_rate=1e-3, **how, save_directory=tmp_path / "cut",
    )  # fmt: skip
    assert result.report.recovery is not None
    assert_carried(folder, tmp_path / "cut")
    before, after = read_index(folder), read_index(tmp_path / "cut")
    assert before["language_model.model.norm.weight"].shape == after["language_model.model.norm.weight"].shape
    changed = [
        name
        for name in after
        if after[name].shape == before[name].shape
        and not torch.equal(read_tensor(before[name]), read_tensor(after[name]))
    ]
    assert changed and all(name.startswith("language_model.") for name in changed)
