"""Quantised checkpoints: what is written, what a plain reader makes of it, what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from optimum_ishrink.edge.torch_quantizations import TORCH_QUANTIZATIONS
from optimum_ishrink.edge.write_quantized import int4_scales, read_quantized
from optimum_ishrink.errors import VerificationError
from tests.helpers.warm_process import run_warm

IN_16_BITS = (1, 3)

READER = """
import json, sys, torch
from transformers import AutoModelForCausalLM
found = {}
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with torch.no_grad():
        found[folder] = model(torch.arange(3, 40)[None]).logits[0, -1, :8].tolist()
assert "optimum_ishrink" not in sys.modules
print(json.dumps(found))
"""


def test_a_plain_reader_in_a_fresh_process(quantized_folders: dict[str, Path], tied_folder: Path) -> None:
    folders = [str(folder) for folder in quantized_folders.values()]
    done = run_warm([sys.executable, "-c", READER, *folders])
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for folder in folders:
        model = read_quantized(Path(folder), torch.bfloat16)
        with torch.no_grad():
            expected = model(torch.arange(3, 40)[None]).logits[0, -1, :8]
        assert found[folder] == expected.tolist()


def test_only_safetensors_and_what_a_model_needs(quantized_folders: dict[str, Path], tied_folder: Path) -> None:
    for folder in quantized_folders.values():
        assert {path.name for path in folder.iterdir()} == {path.name for path in tied_folder.iterdir()}
        config = (folder / "config.json").read_text()
        assert str(tied_folder) not in config
        assert "quantization_config" in json.loads(config)
        assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_what_is_quantised_and_what_stays_in_16_bits(quantized_folders: dict[str, Path], tied_folder: Path) -> None:
    before = load_file(tied_folder / "model.safetensors")
    for name, folder in quantized_folders.items():
        tensors = load_file(folder / "model.safetensors")
        for key, tensor in before.items():
            layer = int(key.split(".")[2]) if ".layers." in key else None
            if layer is None or layer in IN_16_BITS or "norm" in key:
                assert torch.equal(tensors[key], tensor), key
                assert tensor.dtype == torch.bfloat16
                continue
            module = key.removesuffix(".weight")
            if TORCH_QUANTIZATIONS[name].bits == 8:
                scale = tensors[f"{module}._weight_scale"]
                values = tensors[f"{module}._weight_qdata"]
                assert (values.dtype, values.shape, scale.numel()) == (torch.int8, tensor.shape, len(tensor))
                assert ((values * scale - tensor.float()).abs() <= 0.51 * scale).all(), key
            else:
                assert tensors[f"{module}.weight_packed"].nbytes == tensor.numel() // 2
                assert tensors[f"{module}.weight_scale"].shape == (len(tensor), tensor.shape[1] // 32)
        assert "lm_head.weight" not in tensors


def test_int4_weights_are_those_of_the_scales(quantized_folders: dict[str, Path], tied_folder: Path) -> None:
    before = load_file(tied_folder / "model.safetensors")
    state = read_quantized(quantized_folders["int4"], torch.bfloat16).state_dict()
    for key in ("model.layers.0.mlp.down_proj.weight", "model.layers.2.self_attn.q_proj.weight"):
        scale = int4_scales(before[key], 32).float()[..., None]
        groups = before[key].float().unflatten(-1, (-1, 32))
        expected = ((groups / scale).round().clamp(-8, 7) * scale).flatten(-2)
        # A weight halfway between two steps may go to either, when the division is in 16 bits.
        wrong = (state[key].float() - expected).abs()
        assert (wrong <= 1.01 * scale.expand_as(groups).flatten(-2)).all()
        assert (wrong > 0.02 * scale.expand_as(groups).flatten(-2)).float().mean() < 0.05


def test_the_searched_scale_rounds_no_worse_than_the_plain_one() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 128, generator=generator) ** 3
    weight[0] = 0
    groups = weight.unflatten(-1, (-1, 32))

    def error(scale: torch.Tensor) -> torch.Tensor:
        step = scale[..., None]
        return ((groups / step).round().clamp(-8, 7) * step - groups).square().sum(-1)

    found, plain = int4_scales(weight, 32), (groups.abs().amax(-1) / 7.5).clamp(min=1e-30)
    assert found.shape == (16, 4)
    assert (found > 0).all()
    assert (error(found) <= error(plain) * 1.0001 + 1e-12).all()
    assert error(found).sum() < 0.95 * error(plain).sum()
    assert error(found)[0].sum() == 0


def test_what_cannot_be_read_again_is_not_written(tied_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"transformers cannot run the export \(.*; nothing was written"):
        read_quantized(tmp_path, torch.bfloat16)
    with pytest.raises(VerificationError, match="it is in torch.bfloat16; nothing was written"):
        read_quantized(tied_folder, torch.float16)
