"""The cut of models of several parts: what images are answered, and that all but the text decoder stays."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from optimum_ishrink.architectures.composite import composites
from optimum_ishrink.architectures.model_class import parse_config
from optimum_ishrink.checkpoint.stored_names import read_by_parameter
from optimum_ishrink.checkpoint.tensors import read_index, read_tensor
from optimum_ishrink.surgery.zeroing import masked_state
from tests.helpers.cutting import IDS, SHAPES, assert_exact, cut_to, random_plan
from tests.helpers.tiny_composites import CASES, composite_config, image_question, save_composite
from tests.helpers.warm_process import run_warm


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    model, info = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model


def answers(folder: Path, variant: int, *, text: bool = True) -> list[torch.Tensor]:
    """Logits of a question about an image and of a text alone, with every step in float64."""
    model = load(folder, torch.float64)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for name in ("float32", "float"):
            patch.setattr(torch, name, torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        question = image_question(model, variant)
        found = [model(**question).logits, *([model(input_ids=IDS).logits] if text else [])]
    assert all(logits.dtype == torch.float64 for logits in found)
    return found


def supported(config: Any, shape: dict[str, int]) -> dict[str, int]:
    text = config.get_text_config().model_type
    fixed = composites()[config.model_type].describe_text(text).dimensions
    return {key: value for key, value in shape.items() if not fixed[key].fixed}


def masked(folder: Path, target: Path, binding: Any, plan: Any) -> Path:
    """Write the original with the removed parts at zero, under the names of its files."""
    shutil.copytree(folder, target)
    raw = json.loads((folder / "config.json").read_text())
    stored = {name: info.stored_as for name, info in read_by_parameter(folder, parse_config(raw)).items()}
    tensors = load_file(folder / "model.safetensors")
    state = masked_state(binding, plan, {name: tensors[stored[name]] for name in stored})
    save_file(
        {stored[name]: t.contiguous() for name, t in state.items()}, target / "model.safetensors", {"format": "pt"}
    )
    return target


@pytest.mark.parametrize(
    "cuts",
    [["all"], pytest.param(["merged", "layers", "groups", "query heads", "neurons"], marks=pytest.mark.slow)],
    ids=["together", "one by one"],
)
@pytest.mark.parametrize(("model_type", "variant"), CASES)
def test_masked_equals_sliced(model_type: str, variant: int, cuts: list[str], tmp_path: Path) -> None:
    config = composite_config(model_type, variant)
    folder = save_composite(tmp_path / "base", config)
    raw = json.loads((folder / "config.json").read_text())
    original = answers(folder, variant)
    for number, what in enumerate(cuts):
        shape = supported(config, SHAPES[what])
        if not shape:
            continue
        plan, _, binding = random_plan(raw, shape, seed=3, merge=what == "merged")
        cut = cut_to(folder, tmp_path / f"cut-{number}", plan)
        assert sum(torch.Size(info.shape).numel() for info in read_index(cut).values()) == plan.new_num_parameters
        found = answers(cut, variant)
        if plan.inexact:  # the decoder's description says why
            assert all(logits.isfinite().all() for logits in found)
            continue
        expected = answers(masked(folder, tmp_path / f"masked-{number}", binding, plan), variant)
        for one, other, before in zip(found, expected, original, strict=True):
            assert_exact(one, other, what)
            assert (before - other).abs().max() > 1e-3, what


@pytest.mark.parametrize(("model_type", "variant"), CASES)
def test_an_identity_plan_changes_no_bit(model_type: str, variant: int, tmp_path: Path) -> None:
    folder = save_composite(tmp_path / "base", composite_config(model_type, variant))
    (folder / "preprocessor_config.json").write_text('{"size": 16}')
    raw = json.loads((folder / "config.json").read_text())
    plan, _, _ = random_plan(raw, {}, seed=0)
    cut = cut_to(folder, tmp_path / "cut", plan)
    before, after = read_index(folder), read_index(cut)
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(read_tensor(before[name]), read_tensor(after[name]))
    assert json.loads((cut / "config.json").read_text()) == raw
    assert (cut / "preprocessor_config.json").read_bytes() == (folder / "preprocessor_config.json").read_bytes()


@pytest.mark.parametrize(("model_type", "variant"), CASES)
def test_an_answer_with_the_cache_equals_one_without(model_type: str, variant: int, tmp_path: Path) -> None:
    config = composite_config(model_type, variant)
    folder = save_composite(tmp_path / "base", config)
    raw = json.loads((folder / "config.json").read_text())
    plan, _, _ = random_plan(raw, supported(config, SHAPES["all"]), seed=5)
    shrunk = load(cut_to(folder, tmp_path / "cut", plan))
    question = image_question(shrunk, variant)
    how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with_cache = shrunk.generate(**question, use_cache=True, **how)
    assert with_cache.shape[1] == question["input_ids"].shape[1] + 5
    assert torch.equal(with_cache, shrunk.generate(**question, use_cache=False, **how))


LOAD = """
import json, sys
sys.modules["optimum_ishrink"] = None  # a machine without this package
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer
for folder in sys.argv[1:]:
    model, info = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (folder, info)
    print(json.dumps(model(input_ids=torch.arange(3, 12)[None]).logits.sum().item()))
    assert AutoTokenizer.from_pretrained(folder)("abc")["input_ids"]
"""


def test_a_fresh_process_loads_them_without_this_package(tmp_path: Path) -> None:
    folders, expected = [], []
    for model_type, variant in (("llava", 0), ("gemma3", 0), ("qwen2_vl", 0), ("smolvlm", 0), ("paligemma", 0)):
        config = composite_config(model_type, variant)
        folder = save_composite(tmp_path / model_type, config)
        raw = json.loads((folder / "config.json").read_text())
        plan, _, _ = random_plan(raw, supported(config, SHAPES["all"]), seed=5)
        folders.append(cut_to(folder, tmp_path / f"{model_type}-cut", plan))
        with torch.no_grad():
            logits = load(folders[-1])(input_ids=torch.arange(3, 12)[None]).logits
        expected.append(logits.sum().item())
    done = run_warm([sys.executable, "-c", LOAD, *map(str, folders)])
    assert done.returncode == 0, done.stderr[-2000:]
    assert [json.loads(line) for line in done.stdout.splitlines()] == pytest.approx(expected, rel=1e-5)
