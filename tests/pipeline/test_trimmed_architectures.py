"""Shrinking by rows of the vocabulary, from the request to what plain transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from optimum_ishrink import IShrinker
from optimum_ishrink.errors import ShapeError, SourceError
from optimum_ishrink.report.plan import Plan
from optimum_ishrink.surgery.tied_head import compare_head
from tests.helpers.cutting import load
from tests.helpers.embeddings import copy_with, save_with_head
from tests.helpers.tiny import CASES, edit_json, graded, save_tiny, supported_shape, tiny_config
from tests.helpers.tokenizer_kinds import SPECIAL, lines, save_kind

TOKENS = 700
ROWS = TOKENS + 21
"""Rows of the models here: the last have no token."""

QUIET: dict[str, Any] = {
    "evaluate": False,
    "benchmark": False,
    "compensation": "none",
    "importance": "l2-norm",
    "layer_importance": "l2-norm",
    "vocab_languages": "none",
    "keep_first_layers": 0,
    "keep_last_layers": 0,
    "intermediate_multiple": 1,
}


FEW = [graded(*case, fast=case in (("llama", 1), ("phi", 0))) for case in CASES]
"""All variants of all architectures, most of them slow or nightly: a whole run each."""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(lines()[:40]) * 3)
    return path


def _save(folder: Path, model_type: str = "llama", variant: int = 0, **changes: Any) -> Path:
    config = tiny_config(model_type, variant, vocab_size=ROWS, **changes)
    save_tiny(folder, config)
    return _with_tokenizer(folder)


def _with_tokenizer(folder: Path) -> Path:
    for path in folder.glob("*token*"):
        path.unlink()
    assert SPECIAL.index("<s>") == 1 and SPECIAL.index("</s>") == 2
    return save_kind("byte-level", folder, pad_token="<unk>")


def _shrink(folder: Path, output: Path, text: Path, **request: Any) -> Plan:
    how = {"calibration": str(text), "calibration_samples": 4, "calibration_length": 16}
    shrinker = IShrinker.from_pretrained(folder)
    return shrinker.shrink(save_directory=output, **{**how, **QUIET, **request}).plan


def _aligned(folder: Path) -> Any:
    model = load(folder)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # mapped files of different lengths are aligned differently
    return model


@torch.no_grad()
def assert_text_computes_the_same(base: Path, trimmed: Path, plan: Plan) -> None:
    assert plan.vocabulary is not None
    rows = plan.vocabulary.rows
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (base, trimmed))
    # A text that the trimmed tokenizer writes in tokens that all stayed: parts of the calibration text.
    words = [word for word in " ".join(lines()[:40]).split() if set(old(word)["input_ids"]) <= {*rows}]
    whole, model = _aligned(base), _aligned(trimmed)
    seen = 0
    for start in range(0, len(words) - 8, 16):
        string = " ".join(words[start : start + 8])
        ids = old(string, return_tensors="pt")["input_ids"]
        if not set(ids.flatten().tolist()) <= {*rows}:
            continue  # with the space before it, a word may be another token
        new_ids = new(string, return_tensors="pt")["input_ids"]
        assert torch.equal(torch.tensor(rows)[new_ids], ids)
        one, other = whole(ids, output_hidden_states=True), model(new_ids, output_hidden_states=True)
        for before, after in zip(one.hidden_states, other.hidden_states, strict=True):
            assert torch.equal(before, after)
        expected = one.logits[..., list(rows)]
        torch.testing.assert_close(other.logits, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
        seen += ids.numel()
    assert seen > 50


@pytest.mark.parametrize(("model_type", "variant"), FEW)
def test_rows_alone(model_type: str, variant: int, tmp_path: Path, text: Path) -> None:
    base = _save(tmp_path / "base", model_type, variant)
    if not supported_shape(tiny_config(model_type, variant, vocab_size=ROWS), {"vocab_size": 512}):
        with pytest.raises(ShapeError, match="vocab_size cannot change|the vocabulary does not change"):
            _shrink(base, tmp_path / "cut", text, vocab_size=512)
        return
    plan = _shrink(base, tmp_path / "cut", text, vocab_size=512)
    assert_text_computes_the_same(base, tmp_path / "cut", plan)
    assert (plan.shape["vocab_size"], plan.new_shape["vocab_size"]) == (ROWS, 512)
    assert plan.config_changes["vocab_size"] == (ROWS, 512)
    stored = load_file(tmp_path / "cut" / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == plan.new_num_parameters
    whole = load_file(base / "model.safetensors")
    assert sum(tensor.numel() for tensor in whole.values()) == plan.num_parameters


@pytest.mark.parametrize(("model_type", "variant"), FEW)
def test_rows_with_everything_else(model_type: str, variant: int, tmp_path: Path, text: Path) -> None:
    base = _save(tmp_path / "base", model_type, variant)
    config = tiny_config(model_type, variant, vocab_size=ROWS)
    if not supported_shape(config, {"vocab_size": 512}):
        return  # the test above
    shape = supported_shape(config, {"num_hidden_layers": 3, "num_key_value_heads": 2, "intermediate_size": 16})
    plan = _shrink(base, tmp_path / "cut", text, vocab_size=512, **shape)
    stored = load_file(tmp_path / "cut" / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == plan.new_num_parameters
    assert plan.vocabulary is not None and len(plan.layers) == shape.get("num_hidden_layers", 4)
    # The same cut of the trimmed model alone gives the same files: nothing depends on the order of the two.
    _shrink(base, tmp_path / "rows", text, vocab_size=512)
    again = _shrink(tmp_path / "rows", tmp_path / "again", text, vocab_languages=["en"], **shape)
    assert (again.layers, again.units) == (plan.layers, plan.units)
    other = load_file(tmp_path / "again" / "model.safetensors")
    assert stored.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in stored.items())
    load(tmp_path / "cut")


def test_rows_without_a_token_go_first(tmp_path: Path, text: Path) -> None:
    base = _save(tmp_path / "base")
    plan = _shrink(base, tmp_path / "cut", text, vocab_size=TOKENS, vocab_multiple=1)
    assert plan.vocabulary is not None and plan.vocabulary.rows == tuple(range(TOKENS))
    assert (tmp_path / "cut" / "tokenizer.json").exists()
    assert_text_computes_the_same(base, tmp_path / "cut", plan)


def test_ids_in_configs_are_renumbered(tmp_path: Path, text: Path) -> None:
    base = _save(tmp_path / "base", pad_token_id=ROWS - 1, eos_token_id=[2, 690])
    edit_json(base / "generation_config.json", eos_token_id=[2, 690], pad_token_id=ROWS - 1, suppress_tokens=[5, 691])
    plan = _shrink(base, tmp_path / "cut", text, vocab_size=512)
    assert plan.vocabulary is not None
    rows = plan.vocabulary.rows
    new = [rows.index(2), rows.index(690)]
    for name in ("config.json", "generation_config.json"):
        written = json.loads((tmp_path / "cut" / name).read_text())
        assert written["eos_token_id"] == new
        assert written["pad_token_id"] == rows.index(ROWS - 1) == len(rows) - 1
        assert written["bos_token_id"] == rows.index(1)
    model = load(tmp_path / "cut")
    assert model.model.embed_tokens.padding_idx == 511
    assert model.generation_config.eos_token_id == new
    assert plan.config_changes["pad_token_id"] == (ROWS - 1, 511)


def test_a_model_with_a_tensor_beside_is_refused(tmp_path: Path, text: Path) -> None:
    odd = copy_with(
        _save(tmp_path / "base"), tmp_path / "odd", **{"model.mtp.shared_head.weight": torch.zeros(ROWS, 32)}
    )
    with pytest.raises(SourceError, match=r"holds 1 tensors that its config does not expect: model\.mtp"):
        _shrink(odd, tmp_path / "cut", text, vocab_size=512)
    assert not (tmp_path / "cut").exists()


def test_what_stays_is_said_only_where_something_goes(tmp_path: Path, text: Path) -> None:
    base = _save(tmp_path / "base")
    with pytest.raises(ShapeError, match="vocab_drop_reserved says which tokens stay, and the vocabulary does not"):
        _shrink(base, tmp_path / "cut", text, num_hidden_layers=3, vocab_drop_reserved=True)


@pytest.mark.parametrize("error", [0.0, 0.3])
def test_rows_of_a_tied_head(error: float, tmp_path: Path, text: Path) -> None:
    config = tiny_config("llama", vocab_size=ROWS)
    base = _with_tokenizer(save_with_head(tmp_path / "base", config, error=error, swap=True))
    plan = _shrink(base, tmp_path / "cut", text, vocab_size=512, tie_embeddings=True)
    assert plan.vocabulary is not None and plan.tied_head is not None and plan.tied_head.tied
    name = "lm_head.weight" if error else "model.embed_tokens.weight"
    whole, cut = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "cut"))
    assert "lm_head.weight" not in cut
    assert torch.equal(cut["model.embed_tokens.weight"], whole[name][list(plan.vocabulary.rows)])
    assert plan.num_parameters - plan.new_num_parameters == 32 * (ROWS + ROWS - 512)
    if not error:
        assert_text_computes_the_same(base, tmp_path / "cut", plan)
    source = IShrinker.from_pretrained(tmp_path / "cut").source
    assert compare_head(source.tensors, source.binding) is None
