"""Cuts of tiny models by random scores, written and loaded as any checkpoint."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from optimum_ishrink.architectures.config_edit import edit_config
from optimum_ishrink.checkpoint.source import open_source, source_of_config
from optimum_ishrink.drafting.random_plan import random_plan as make_random_plan
from optimum_ishrink.report.plan import Plan
from optimum_ishrink.surgery.cut import write_checkpoint
from optimum_ishrink.surgery.zeroing import masked_state, unrouted
from tests.helpers.tiny import VOCAB

SHAPES: dict[str, dict[str, int]] = {
    "layers": {"num_hidden_layers": 2},
    "groups": {"num_key_value_heads": 2},
    "query heads": {"num_attention_heads": 4},
    "merged": {"num_key_value_heads": 2, "num_attention_heads": 8},
    "neurons": {"intermediate_size": 13},
    "experts": {"num_experts": 3},
    "all": {
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "num_attention_heads": 2,
        "intermediate_size": 7,
        "num_experts": 3,
    },
}
IDS = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


def random_plan(
    raw: dict[str, Any], shape: dict[str, int], seed: int, *, merge: bool = False
) -> tuple[Plan, Any, Any]:
    source = source_of_config(raw)
    return make_random_plan(source, shape, seed, merge=merge), source.config, source.binding


def load(folder: Path, **how: Any) -> Any:
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, **{"dtype": torch.float32, **how}, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(ids).logits
    return result


def exact_logits(folder: Path, ids: torch.Tensor = IDS, plan: Plan | None = None) -> torch.Tensor:
    """A checkpoint's logits with every step in float64; without the experts that a plan drops, if it is given.

    In float32, two orders of the same sum differ by more on one processor than on another. The models compute norms,
    positions and softmax in float32 whatever their dtype, and no product of a batch of experts takes float64.
    """
    # Some routers stay in float32 whatever the dtype.
    model = load(folder, dtype=torch.float64, experts_implementation="eager").double()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("float32", "float"):
            patch.setattr(torch, name, torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # some masks are made without a dtype
        try:
            with nullcontext() if plan is None else unrouted(model, plan):
                found = logits(model, ids)
        finally:
            torch.set_default_dtype(before)
    assert found.dtype == torch.float64
    return found


def masked_checkpoint(folder: Path, target: Path, binding: Any, plan: Plan) -> Path:
    """Write the original with the removed parts at zero."""
    shutil.copytree(folder, target)
    tensors = masked_state(binding, plan, load_file(folder / "model.safetensors"))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors", {"format": "pt"}
    )
    return target


def cut_to(folder: Path, target: Path, plan: Plan) -> Path:
    source = open_source(folder)
    edited = edit_config(source.raw_config, source.config, source.binding, plan.new_shape, plan.layers)
    target.mkdir()
    write_checkpoint(source.folder, source.tensors, source.binding, plan, edited, target)
    return target


def assert_exact(found: torch.Tensor, expected: torch.Tensor, what: str = "logits") -> None:
    """Equal but for the rounding of float64."""
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0, msg=lambda text: f"{what}: {text}")
