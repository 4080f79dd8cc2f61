"""What is written is opened again before it takes its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from optimum_ishrink import IShrinker
from optimum_ishrink.errors import VerificationError
from optimum_ishrink.pipeline import opening
from tests.helpers.tiny import edit_json, save_tiny, tiny_config

STREAMED = {"importance": "l2-norm", "layer_importance": "l2-norm", "compensation": "none"}
STREAMED |= {"evaluate": False, "benchmark": False}
IDS = torch.arange(3, 40)[None]


def test_code_beside_the_weights_is_neither_needed_nor_named(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", tiny_config("phi3"))
    names = {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}
    edit_json(folder / "config.json", auto_map=names)
    (folder / "modeling_x.py").write_text("raise SystemExit\n")
    out = tmp_path / "out"
    plan = IShrinker.from_pretrained(folder).shrink(num_hidden_layers=3, save_directory=out, **STREAMED).plan
    assert plan is not None and "auto_map" not in plan.config_changes
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    with torch.no_grad():
        trusted, plain = (
            AutoModelForCausalLM.from_pretrained(out, trust_remote_code=trust)(IDS).logits for trust in (True, False)
        )
    assert torch.equal(trusted, plain)


@pytest.mark.parametrize("model_type", ["qwen2_moe", "qwen3_moe"])
def test_experts_in_every_other_layer_stay_where_they_were(tmp_path: Path, model_type: str) -> None:
    changes = {"decoder_sparse_step": 2, "mlp_only_layers": [], "num_hidden_layers": 6}
    folder = save_tiny(tmp_path / "m", tiny_config(model_type, **changes))
    shape = {"num_hidden_layers": 4, "keep_first_layers": 1, "keep_last_layers": 1}
    result = IShrinker.from_pretrained(folder).shrink(save_directory=tmp_path / "out", **shape, **STREAMED)
    assert result.plan is not None
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    base.model.layers = torch.nn.ModuleList([base.model.layers[layer] for layer in result.plan.layers])
    base.config.num_hidden_layers = 4
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = base(IDS, use_cache=False).logits
        assert torch.allclose(small(IDS, use_cache=False).logits, expected, atol=1e-5)


def _second_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _adapter(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(
        folder
    )


@pytest.mark.parametrize(
    ("damage", "message"), [(_second_head, "lm_head.weight is unexpected"), (_adapter, "adapter")]
)
def test_a_result_that_opens_as_something_else_does_not_take_its_place(
    damage: Callable[[Path], None],
    message: str,
    tmp_path: Path,
    quick: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if a writer had left it."""
    check_files = opening.check_files

    def check(folder: Path, source: Path) -> Any:
        damage(folder)
        return check_files(folder, source)

    monkeypatch.setattr(opening, "check_files", check)
    folder = save_tiny(tmp_path / "m", tiny_config("llama", 1))
    with pytest.raises(VerificationError, match=message):
        IShrinker.from_pretrained(folder).shrink(num_hidden_layers=3, save_directory=tmp_path / "out", **quick)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_weights_without_a_tokenizer_are_cut_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny(tmp_path / "m", tiny_config("llama"))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    IShrinker.from_pretrained(folder).shrink(num_hidden_layers=3, save_directory=tmp_path / "out", **STREAMED)
    assert "m has no tokenizer that AutoTokenizer opens" in capsys.readouterr().err
