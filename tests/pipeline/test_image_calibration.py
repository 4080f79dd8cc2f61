"""Runs that are calibrated on rows with images, and the windows that they are calibrated on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink import IShrinkConfig, IShrinker
from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.errors import DataError, RequestError, SourceError
from optimum_ishrink.importance.stage import score
from optimum_ishrink.text.calibration import Calibration
from optimum_ishrink.text.image_windows import row_inputs
from optimum_ishrink.text.sources import TextSource
from tests.helpers.image_rows import image_rows, save_with_processor, write_image, write_rows
from tests.helpers.tiny import in_full, save_tiny, tiny_config
from tests.helpers.tiny_composites import composite_config, save_composite

QUICK = {"evaluate": False, "benchmark": False, "device": "cpu", "dtype": "float32"}
CUT = {"num_hidden_layers": 3, "intermediate_size": 16, "keep_first_layers": 0, "keep_last_layers": 0}


def calibration(folder: Path, *texts: Path, samples: int = 6, length: int = 40, **how: Any) -> tuple[Session, Any]:
    config = IShrinkConfig(
        calibration=[str(text) for text in texts],
        calibration_samples=samples,
        calibration_length=length,
        importance_samples=samples,
        **{"device": "cpu", "dtype": "float32", "score_cache": False, **how},
    )
    session = Session(open_source(folder), config)
    return session, Calibration(config, session)


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    return save_with_processor(tmp_path / "base")


def test_windows_begin_with_rows_and_follow_one_another(llava: Path, tmp_path: Path) -> None:
    session, drawn = calibration(llava, image_rows(tmp_path), samples=5, length=50)
    assert drawn.windows.shape == (5, 50) and drawn.features is not None
    said = session.tokenizer.convert_tokens_to_ids("u")  # of `user: `, which the template writes before the image
    assert all(first < 0 or first == said for first in drawn.windows[:, 0].tolist())
    used = -1 - drawn.windows[drawn.windows < 0]
    assert len(used.unique()) == len(used) and int(used.max()) < len(drawn.features)
    assert (drawn.windows == session.tokenizer.eos_token_id).any()
    assert torch.equal(calibration(llava, tmp_path / "rows.jsonl", samples=5, length=50)[1].windows, drawn.windows)


def _watch(layers: Any) -> tuple[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], list[Any]]:
    """Note what enters each layer, what leaves it, and what its MLP's last projection reads."""
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    read: list[torch.Tensor] = []
    handles = []
    for layer in layers:
        handles.append(layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: read.append(args[0])))
        handles.append(layer.register_forward_hook(lambda _, args, out: seen.append((args[0], out, read[-1]))))
    return seen, handles


def test_scores_are_those_of_the_whole_model_with_its_images(llava: Path, tmp_path: Path) -> None:
    rows = image_rows(tmp_path, 4)
    length = min(
        row_inputs(row, Session(open_source(llava), IShrinkConfig()).processor)["input_ids"].shape[1]
        for row in TextSource(str(rows)).image_rows()
    )
    session, drawn = calibration(
        llava, rows, samples=4, length=length, batch_size=1, importance="activation-norm",
        layer_importance="block-influence",
    )  # fmt: skip
    found = score(session, session.options, drawn, ("intermediate_size", "num_hidden_layers"))
    model, layers = session.model, session.model.model.language_model.layers
    squares = torch.zeros(len(layers), layers[0].mlp.down_proj.in_features)
    turned, tokens = torch.zeros(len(layers)), 0
    for row in TextSource(str(rows)).image_rows():
        inputs = row_inputs(row, session.processor)
        inputs = {n: v[:, :length] if n in ("input_ids", "attention_mask") else v for n, v in inputs.items()}
        inputs.pop("mm_token_type_ids", None)
        seen, handles = _watch(layers)
        with torch.no_grad():
            model(**inputs)
        for handle in handles:
            handle.remove()
        for number, (before, after, neurons) in enumerate(seen):
            squares[number] += neurons[0].square().sum(0)
            turned[number] += (1 - torch.cosine_similarity(before[0], after[0], dim=-1)).sum()
        tokens += length
    weights = torch.stack([layer.mlp.down_proj.weight.detach().square().sum(0) for layer in layers])
    torch.testing.assert_close(found["intermediate_size"], squares / tokens * weights)
    torch.testing.assert_close(found["num_hidden_layers"], turned / tokens)


@pytest.mark.parametrize("model_type", in_full(["llava", "idefics3"], "idefics3"))
def test_a_run_scores_and_repairs_on_images_and_text(model_type: str, tmp_path: Path) -> None:
    folder = save_with_processor(tmp_path / "base", model_type)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"Ferry {i} leaves pier {i * 7 % 13} with {i * 3} bicycles." for i in range(60)))
    how = {**QUICK, **CUT, "calibration_samples": 8, "calibration_length": 36, "importance": "fisher"}
    # Ids of images are outside the embedding, so that a step that has lost sight of them fails.
    result = IShrinker.from_pretrained(folder).shrink(
        **how, calibration=[str(image_rows(tmp_path, 20)), str(text)], save_directory=tmp_path / "cut"
    )
    assert result.plan.choice.calibration.sources == ("rows.jsonl", "text.txt")
    repairs = result.report.compensation.repairs
    assert repairs and any(each.ridge is not None for each in repairs)
    assert (tmp_path / "cut" / "processor_config.json").is_file()


def test_other_images_are_scored_again(llava: Path, tmp_path: Path) -> None:
    rows = image_rows(tmp_path)
    session, drawn = calibration(llava, rows, score_cache=True, importance="activation-norm")
    first = score(session, session.options, drawn, ("intermediate_size",))["intermediate_size"]
    for number in range(12):
        write_image(tmp_path / f"{number}.png", number + 100)
    session, drawn = calibration(llava, rows, score_cache=True, importance="activation-norm")
    assert not torch.equal(score(session, session.options, drawn, ("intermediate_size",))["intermediate_size"], first)


@pytest.mark.parametrize("model_type", ["gemma3", "qwen2_vl", "qwen3_vl"])
def test_models_that_read_images_otherwise_are_refused(model_type: str, tmp_path: Path) -> None:
    folder = save_composite(tmp_path / "base", composite_config(model_type))
    with pytest.raises(
        RequestError, match=rf"base \({model_type}\) cannot be calibrated on rows with images: it .*; give"
    ):
        IShrinker.from_pretrained(folder).plan(**CUT, calibration=str(image_rows(tmp_path, 2)))


def test_a_text_model_refuses_images(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("llama"))
    with pytest.raises(RequestError, match="base reads text alone, and the calibration has images; give rows of text"):
        IShrinker.from_pretrained(folder).plan(**CUT, calibration=str(image_rows(tmp_path, 2)))


def test_a_cut_vocabulary_refuses_images(llava: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match="in tokens that a cut vocabulary may not have; calibrate on text, or leave"
    ):
        IShrinker.from_pretrained(llava).plan(vocab_size=270, calibration=str(image_rows(tmp_path, 2)))


def test_analysis_measures_on_text(llava: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1 has an image, which only --calibration reads"):
        IShrinker.from_pretrained(llava).analyze(calibration=str(image_rows(tmp_path, 2)))


def test_a_base_without_a_processor(tmp_path: Path) -> None:
    folder = save_composite(tmp_path / "base", composite_config("llava"))
    with pytest.raises(SourceError, match=r"base holds no (usable )?processor of images"):
        _ = calibration(folder, image_rows(tmp_path))[1].windows
    (folder / "processor_config.json").write_text('{"processor_class": "NoSuchProcessor", "size": [}')
    with pytest.raises(SourceError, match=r"base holds no usable processor of images"):
        _ = calibration(folder, image_rows(tmp_path))[1].windows


@pytest.mark.parametrize(
    ("row", "length", "reason"),
    [
        ({"text": "a boat"}, 5, r"line 1 takes 5 tokens .* room for 4; use longer windows .--calibration-length"),
        ({"text": "a boat: <image>"}, 40, r"line 1 has no text after its image"),
        ({"text": "<image><image> twice"}, 40, r"line 1 is refused by the model's processor \(.*\); change it, or"),
        (
            {"text": "a boat"},
            40,
            r"rows.jsonl gives 0 windows of 40 tokens of its 1 rows; 6 were requested: give more",
        ),
    ],
)
def test_rows_that_make_no_window(row: dict[str, Any], length: int, reason: str, llava: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    rows = write_rows(tmp_path, [{"image": "a.png", **row}])
    with pytest.raises(DataError, match=reason):
        _ = calibration(llava, rows, length=length - (length == 5))[1].windows


def test_messages_need_a_chat_template(llava: Path, tmp_path: Path) -> None:
    for name in ("chat_template.jinja", "chat_template.json"):
        (llava / name).unlink(missing_ok=True)
    config = json.loads((llava / "processor_config.json").read_text())
    config.pop("chat_template", None)
    (llava / "processor_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="has 'messages', and the processor has no chat template; write a 'text'"):
        _ = calibration(llava, image_rows(tmp_path))[1].windows
