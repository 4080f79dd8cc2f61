"""The proof of the cut: the smaller model gives the logits of the original with the removed parts set to zero."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from optimum_ishrink import IShrinker
from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.checkpoint.tensors import read_index, read_tensor
from optimum_ishrink.errors import ShapeError
from optimum_ishrink.surgery.zeroing import masked_state
from tests.helpers.cutting import (
    IDS,
    SHAPES,
    assert_exact,
    cut_to,
    exact_logits,
    load,
    logits,
    masked_checkpoint,
    random_plan,
)
from tests.helpers.tiny import (
    CASES,
    LAYOUTS,
    PROOF_CASES,
    edit_json,
    save_tiny,
    supported_shape,
    tiny_config,
    tiny_model,
)
from tests.helpers.warm_process import run_warm


# In every variant of every architecture: all dimensions at once, and heads that are merged.
@pytest.mark.parametrize(
    "cuts",
    [
        ["all", "merged"],
        pytest.param(["layers", "groups", "query heads", "neurons", "experts"], marks=pytest.mark.slow),
    ],
    ids=["together", "one by one"],
)
@pytest.mark.parametrize(("model_type", "variant"), PROOF_CASES)
def test_masked_equals_sliced(model_type: str, variant: int, cuts: list[str], tmp_path: Path) -> None:
    config = tiny_config(model_type, variant)
    folder = save_tiny(tmp_path / "base", config)
    original = exact_logits(folder)
    raw = json.loads((folder / "config.json").read_text())
    for number, what in enumerate(cuts):
        shape = supported_shape(config, SHAPES[what])
        if not shape or (what == "merged" and "num_attention_heads" not in shape):
            continue  # the architecture cannot change this dimension; the support table says why
        plan, _, binding = random_plan(raw, shape, seed=3, merge=what == "merged")
        found = exact_logits(cut_to(folder, tmp_path / f"cut-{number}", plan))
        stored = sum(info.numel() for info in map(torch.Size, _shapes(tmp_path / f"cut-{number}")))
        assert stored == plan.new_num_parameters < plan.num_parameters
        expected = exact_logits(masked_checkpoint(folder, tmp_path / f"masked-{number}", binding, plan), plan=plan)
        if plan.inexact:
            assert {key for key in shape if binding.inexact({key: shape[key]})}
            assert found.isfinite().all()
        else:
            assert_exact(found, expected, what)
        # The cut changes something: the original gives other logits.
        assert (original - expected).abs().max() > 1e-3, what


def _shapes(folder: Path) -> list[tuple[int, ...]]:
    return [info.shape for info in read_index(folder).values()]


@pytest.mark.parametrize(
    ("model_type", "variant"),
    [case if case[0] in LAYOUTS and not case[1] else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_generation_with_the_cache_equals_without(model_type: str, variant: int, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config(model_type, variant))
    shape = supported_shape(tiny_config(model_type, variant), SHAPES["all"])
    plan, _, _ = random_plan(json.loads((folder / "config.json").read_text()), shape, seed=5)
    shrunk = load(cut_to(folder, tmp_path / "cut", plan))
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with_cache = shrunk.generate(IDS, use_cache=True, **how)
    assert with_cache.shape == (2, 15)
    assert torch.equal(with_cache, shrunk.generate(IDS, use_cache=False, **how))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    model_type=st.sampled_from(["qwen3", "phi3", "gpt_oss", "cohere"]),
    layers=st.integers(1, 4),
    groups=st.integers(1, 4),
    group=st.integers(1, 2),
    neurons=st.sampled_from([8, 16, 24]),
    seed=st.integers(0, 2**20),
)
def test_any_retained_set(
    model_type: str, layers: int, groups: int, group: int, neurons: int, seed: int, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("any")
    base = save_tiny(folder / "base", tiny_config(model_type))
    shape = {
        "num_hidden_layers": layers,
        "num_key_value_heads": groups,
        "num_attention_heads": groups * group,
        "intermediate_size": neurons,
    }
    plan, _, binding = random_plan(json.loads((base / "config.json").read_text()), shape, seed)
    found = exact_logits(cut_to(base, folder / "cut", plan))
    assert_exact(found, exact_logits(masked_checkpoint(base, folder / "masked", binding, plan), plan=plan))


def test_merging_identical_heads_changes_nothing(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("qwen2"))
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if "k_proj" in name or "v_proj" in name:
            heads = tensor.view(4, 4, *tensor.shape[1:])
            heads[2], heads[3] = heads[0].clone(), heads[1].clone()  # 0 equals 2, and 1 equals 3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    result = IShrinker.from_pretrained(folder).shrink(
        num_key_value_heads=2,
        merge_key_value_heads=True,
        calibration_samples=8,
        calibration_length=32,
        evaluate=False,
        benchmark=False,
        save_directory=tmp_path / "cut",
    )
    assert result.plan.merges == (((0, 2), (1, 3)),) * 4
    assert result.plan.new_shape["num_attention_heads"] == 8
    assert_exact(exact_logits(tmp_path / "cut"), exact_logits(folder))


def test_a_shape_that_llama_refuses_is_written_as_mistral_to_the_bit(tmp_path: Path) -> None:
    config = tiny_config(
        "llama", tie_word_embeddings=True, rope_parameters={"rope_theta": 5000.0, "rope_type": "default"}
    )
    folder = save_tiny(tmp_path / "base", config)
    raw = json.loads((folder / "config.json").read_text())
    shrinker = IShrinker.from_pretrained(folder)
    how = {"importance": "l2-norm", "compensation": "none", "evaluate": False, "benchmark": False}
    with pytest.raises(
        ShapeError, match="nearest num_key_value_heads: 2 or 4|allow_class_change would write it as mistral"
    ):
        shrinker.plan(num_key_value_heads=3, **how)
    result = shrinker.shrink(num_key_value_heads=3, allow_class_change=True, save_directory=tmp_path / "cut", **how)
    assert type(result.model).__name__ == "MistralForCausalLM"
    assert result.plan.config_changes["model_type"] == ("llama", "mistral")
    assert "the checkpoint is written as `mistral`" in (tmp_path / "cut" / "README.md").read_text()
    binding = bind_config(raw)[1]
    masked = masked_checkpoint(folder, tmp_path / "masked", binding, result.plan)
    assert_exact(exact_logits(tmp_path / "cut"), exact_logits(masked))
    # The class alone changes nothing: the same tensors, read as the other class, give the same bits.
    edit_json(folder / "config.json", model_type="mistral", architectures=["MistralForCausalLM"])
    same = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**same, "sliding_window": None}))
    as_mistral = logits(load(folder))
    edit_json(folder / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    assert torch.equal(as_mistral, logits(load(folder)))


def test_an_identity_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("qwen2", 1))
    raw = json.loads((folder / "config.json").read_text())
    plan, _, _ = random_plan(raw, {}, seed=0)
    cut = cut_to(folder, tmp_path / "cut", plan)
    before, after = read_index(folder), read_index(cut)
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(read_tensor(before[name]), read_tensor(after[name]))
    assert json.loads((cut / "config.json").read_text()) == raw


LOAD = """
import json, sys
sys.modules["optimum_ishrink"] = None  # a machine without this package
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (folder, info)
    ids = torch.arange(3, 12)[None]
    print(json.dumps(model(ids).logits.sum().item()))
    assert AutoTokenizer.from_pretrained(folder)("abc")["input_ids"]
"""


@pytest.mark.parametrize(
    "cases",
    [
        [("llama", 1), ("gpt2", 0), ("phi3", 0), ("gpt_oss", 0), ("gemma3_text", 0)],
        pytest.param(CASES, marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_a_fresh_process_loads_every_architecture_without_this_package(
    cases: list[tuple[str, int]], tmp_path: Path
) -> None:
    folders, expected = [], []
    for model_type, variant in cases:
        folder = save_tiny(
            tmp_path / f"{model_type}-{variant}", tiny_config(model_type, variant), max_shard_size="20KB"
        )
        assert (folder / "model.safetensors.index.json").exists()
        plan, _, _ = random_plan(
            json.loads((folder / "config.json").read_text()),
            supported_shape(tiny_config(model_type, variant), SHAPES["all"]),
            seed=2,
        )
        folders.append(cut_to(folder, tmp_path / f"{model_type}-{variant}-cut", plan))
        model = AutoModelForCausalLM.from_pretrained(folders[-1], dtype=torch.float32)
        expected.append(model(torch.arange(3, 12)[None]).logits.sum().item())
    done = run_warm([sys.executable, "-c", LOAD, *map(str, folders)])
    assert done.returncode == 0, done.stderr[-2000:]
    assert [json.loads(line) for line in done.stdout.splitlines()] == pytest.approx(expected, rel=1e-5)


def test_zeroed_layers_are_the_identity() -> None:
    model = tiny_model(tiny_config("llama", 1))
    raw = {**model.config.to_dict(), "model_type": "llama"}
    plan, _, binding = random_plan(raw, {"num_hidden_layers": 1}, seed=0)
    masked = masked_state(binding, plan, model.state_dict())
    removed = [layer for layer in range(4) if layer not in plan.layers]
    assert len(removed) == 3
    assert all(not masked[name].any() for name in masked for layer in removed if f".layers.{layer}." in name)
