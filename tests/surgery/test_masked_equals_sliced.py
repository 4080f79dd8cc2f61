"""The proof of the cut: the smaller model gives the logits of the original with the removed parts set to zero."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import CASES, VOCAB, save_tiny, tiny_config, tiny_model
from transformers import AutoModelForCausalLM

from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.artifacts import Plan
from optimum_ishrink.planning import ShapeRequest, edit_config, make_plan
from optimum_ishrink.source import open_source
from optimum_ishrink.surgery import masked_state, write_checkpoint

SHAPES = {
    "layers": {"num_hidden_layers": 2},
    "groups": {"num_key_value_heads": 2},
    "neurons": {"intermediate_size": 13},
    "all": {"num_hidden_layers": 3, "num_key_value_heads": 1, "intermediate_size": 7},
}
IDS = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


def random_plan(raw: dict[str, Any], shape: dict[str, int], seed: int) -> tuple[Plan, Any, Any]:
    config, binding = bind_config(raw)
    generator = torch.Generator().manual_seed(seed)
    full = {**binding.shape, **shape}
    scores = {
        "num_hidden_layers": torch.rand(binding.sizes["layers"], generator=generator),
        "num_key_value_heads": torch.rand(binding.sizes["layers"], binding.sizes["kv"], generator=generator),
        "intermediate_size": torch.rand(binding.sizes["layers"], binding.sizes["ffn"], generator=generator),
    }
    request = ShapeRequest(shape, intermediate_multiple=1, keep_first_layers=0, keep_last_layers=0)
    plan = make_plan(
        model="tiny",
        revision=None,
        raw_config=raw,
        config=config,
        binding=binding,
        shape=full,
        request=request,
        scores=scores,
        settings={},
    )
    return plan, config, binding


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


def masked_logits(model: Any, binding: Any, plan: Plan) -> torch.Tensor:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(masked_state(binding, plan, before))
    result = logits(model)
    model.load_state_dict(before)
    return result


def cut_to(folder: Path, target: Path, plan: Plan) -> Path:
    source = open_source(folder)
    edited = edit_config(source.raw_config, source.config, source.binding, plan.new_shape, plan.layers)
    target.mkdir()
    write_checkpoint(source.folder, source.tensors, source.binding, plan, edited, target)
    return target


@pytest.mark.parametrize(("model_type", "variant"), CASES)
@pytest.mark.parametrize("what", SHAPES)
def test_masked_equals_sliced(model_type: str, variant: int, what: str, tmp_path: Path) -> None:
    config = tiny_config(model_type, variant)
    folder = save_tiny(tmp_path / "base", config)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    raw = json.loads((folder / "config.json").read_text())
    plan, _, binding = random_plan(raw, SHAPES[what], seed=3)

    shrunk, info = AutoModelForCausalLM.from_pretrained(
        cut_to(folder, tmp_path / "cut", plan), dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert shrunk.num_parameters() == plan.new_num_parameters < plan.num_parameters
    expected = masked_logits(model, binding, plan)
    torch.testing.assert_close(logits(shrunk), expected, atol=1e-5, rtol=1e-5)
    # The cut was not for nothing: the original gives other logits.
    assert (logits(model) - expected).abs().max() > 1e-2


@pytest.mark.parametrize(("model_type", "variant"), CASES)
def test_generation_with_the_cache_equals_without(model_type: str, variant: int, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config(model_type, variant))
    plan, _, _ = random_plan(json.loads((folder / "config.json").read_text()), SHAPES["all"], seed=5)
    shrunk = AutoModelForCausalLM.from_pretrained(cut_to(folder, tmp_path / "cut", plan), dtype=torch.float32)
    how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with_cache = shrunk.generate(IDS, use_cache=True, **how)
    assert with_cache.shape == (2, 17)
    assert torch.equal(with_cache, shrunk.generate(IDS, use_cache=False, **how))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layers=st.integers(1, 4),
    groups=st.sampled_from([1, 2, 4]),
    neurons=st.integers(1, 24),
    seed=st.integers(0, 2**20),
)
def test_any_keep_set(layers: int, groups: int, neurons: int, seed: int, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("any")
    base = save_tiny(folder / "base", tiny_config("qwen3", 1))
    shape = {"num_hidden_layers": layers, "num_key_value_heads": groups, "intermediate_size": neurons}
    plan, _, binding = random_plan(json.loads((base / "config.json").read_text()), shape, seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    shrunk = AutoModelForCausalLM.from_pretrained(cut_to(base, folder / "cut", plan), dtype=torch.float32)
    torch.testing.assert_close(logits(shrunk), masked_logits(model, binding, plan), atol=1e-5, rtol=1e-5)


def test_an_identity_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    from optimum_ishrink.tensor_files import read_index, read_tensor

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
sys.modules["optimum_ishrink"] = None  # a stranger's machine
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (folder, info)
    ids = torch.arange(3, 12)[None]
    print(json.dumps(model(ids).logits.sum().item()))
    assert AutoTokenizer.from_pretrained(folder)("abc")["input_ids"]
"""


def test_a_fresh_process_loads_every_architecture_without_this_package(tmp_path: Path) -> None:
    folders, expected = [], []
    for model_type, variant in CASES:
        folder = save_tiny(
            tmp_path / f"{model_type}-{variant}", tiny_config(model_type, variant), max_shard_size="20KB"
        )
        assert (folder / "model.safetensors.index.json").exists()
        plan, _, _ = random_plan(json.loads((folder / "config.json").read_text()), SHAPES["all"], seed=2)
        folders.append(cut_to(folder, tmp_path / f"{model_type}-{variant}-cut", plan))
        model = AutoModelForCausalLM.from_pretrained(folders[-1], dtype=torch.float32)
        expected.append(model(torch.arange(3, 12)[None]).logits.sum().item())
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, folders)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert [json.loads(line) for line in done.stdout.splitlines()] == pytest.approx(expected, rel=1e-5)


def test_zeroed_layers_are_the_identity() -> None:
    model = tiny_model(tiny_config("llama", 1))
    raw = {**model.config.to_dict(), "model_type": "llama"}
    plan, _, binding = random_plan(raw, {"num_hidden_layers": 1}, seed=0)
    masked = masked_state(binding, plan, model.state_dict())
    gone = [layer for layer in range(4) if layer not in plan.layers]
    assert len(gone) == 3
    assert all(not masked[name].any() for name in masked for layer in gone if f".layers.{layer}." in name)
