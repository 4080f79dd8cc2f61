from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from optimum_ishrink import IShrinker
from optimum_ishrink.architectures.config_edit import changed_keys
from optimum_ishrink.cli.program import main
from optimum_ishrink.errors import ShapeError
from optimum_ishrink.pipeline import tying
from optimum_ishrink.report.plan import Plan
from tests.helpers.cutting import load, logits
from tests.helpers.embeddings import save_with_head
from tests.helpers.tiny import VOCAB, edit_json, save_tiny, tiny_config, tiny_tokenizer

QUIET: dict[str, Any] = {
    "evaluate": False,
    "benchmark": False,
    "compensation": "none",
    "importance": "l2-norm",
    "layer_importance": "l2-norm",
    "calibration_samples": 4,
    "calibration_length": 16,
}
HEAD = VOCAB * 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose head equals its embedding, untied."""
    return save_with_head(tmp_path / "base", tiny_config("llama"))


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_head_is_tied_and_nothing_else_changes(folder: Path, tmp_path: Path) -> None:
    result = IShrinker.from_pretrained(folder).shrink(tie_embeddings=True, save_directory=tmp_path / "tied", **QUIET)
    tied = load(tmp_path / "tied")
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert torch.equal(logits(tied), logits(load(folder)))
    before, after = _json(folder / "config.json"), _json(tmp_path / "tied" / "config.json")
    assert changed_keys(before, after) == {"tie_word_embeddings": (False, True)} == result.plan.config_changes
    plan = result.plan
    assert plan.shape == plan.new_shape
    assert plan.num_parameters - plan.new_num_parameters == HEAD
    assert plan.num_parameters == sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    assert plan.new_num_parameters == sum(
        tensor.numel() for tensor in load_file(tmp_path / "tied" / "model.safetensors").values()
    )
    assert plan.tied_head is not None and plan.tied_head.tied and plan.tied_head.same
    assert Plan.from_json(_json(tmp_path / "tied" / "ishrink_plan.json")) == plan
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "tied" / name).read_bytes() == (folder / name).read_bytes()
    card = (tmp_path / "tied" / "README.md").read_text()
    assert "lm_head.weight and model.embed_tokens.weight are equal to the bit. The head is tied" in card
    assert "| head | its own | the embedding | 9,600 parameters |" in card
    assert "--tie-embeddings" in card


def test_what_is_tied_is_scored_and_cut(folder: Path, tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 3, "intermediate_size": 16, "intermediate_multiple": 1, "keep_first_layers": 0}
    shrinker = IShrinker.from_pretrained(folder)
    plain = shrinker.shrink(**shape, **QUIET, save_directory=tmp_path / "plain")
    tied = shrinker.shrink(**shape, **QUIET, tie_embeddings=True, save_directory=tmp_path / "tied")
    assert torch.equal(logits(load(tmp_path / "tied")), logits(load(tmp_path / "plain")))
    assert tied.plan.layers == plain.plan.layers and tied.plan.units == plain.plan.units
    assert plain.plan.new_num_parameters - tied.plan.new_num_parameters == HEAD
    assert tied.plan.num_parameters == plain.plan.num_parameters
    assert tied.plan.config_changes == {**plain.plan.config_changes, "tie_word_embeddings": (False, True)}
    again = IShrinker.from_pretrained(tmp_path / "tied").source
    assert again.binding.num_parameters() == tied.plan.new_num_parameters


def test_rows_and_head_together(folder: Path, tmp_path: Path) -> None:
    how = {"vocab_size": 259, "vocab_multiple": 1, "num_hidden_layers": 3, "keep_first_layers": 0}
    result = IShrinker.from_pretrained(folder).shrink(
        **how, **QUIET, tie_embeddings=True, calibration="self", save_directory=tmp_path / "cut"
    )
    stored = load_file(tmp_path / "cut" / "model.safetensors")
    assert "lm_head.weight" not in stored and stored["model.embed_tokens.weight"].shape == (259, 32)
    assert sum(tensor.numel() for tensor in stored.values()) == result.plan.new_num_parameters
    assert result.plan.config_changes["tie_word_embeddings"] == (False, True)
    assert result.plan.config_changes["vocab_size"] == (VOCAB, 259)
    load(tmp_path / "cut")


def test_a_target_counts_the_head(folder: Path) -> None:
    shrinker = IShrinker.from_pretrained(folder)
    whole = shrinker.source.binding.num_parameters()
    share = 100 * HEAD / whole
    # What the head gives is enough: nothing else is cut.
    assert shrinker.resolve_shape(target=f"params=-{share:.3f}%", tie_embeddings=True) == shrinker.source.binding.shape
    alone = shrinker.plan(target=f"params=-{share:.3f}%", tie_embeddings=True, prune=None, **QUIET)
    assert alone.new_num_parameters == whole - HEAD and alone.shape == alone.new_shape
    more = shrinker.plan(
        target=f"params=-{share + 15:.3f}%", tie_embeddings=True, keep_first_layers=0, keep_last_layers=0, **QUIET
    )
    assert more.shape != more.new_shape
    assert abs(more.removed_share - (share + 15) / 100) <= 0.005
    with pytest.raises(ShapeError, match="requests .* parameters; the model has"):
        shrinker.plan(target=f"params={2 * whole}", tie_embeddings=True)


def test_a_head_that_could_be_tied_is_reported(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = IShrinker.from_pretrained(folder).shrink(
        num_hidden_layers=3, keep_first_layers=0, save_directory=tmp_path / "cut", **QUIET
    )
    line = "lm_head.weight and model.embed_tokens.weight are equal to the bit; tie_embeddings would remove 9,600"
    assert line in " ".join(capsys.readouterr().err.split())
    assert result.plan.tied_head is not None and not result.plan.tied_head.tied
    assert "--tie-embeddings would remove 9,600 parameters." in (tmp_path / "cut" / "README.md").read_text()
    assert result.plan.config_changes == {"num_hidden_layers": (4, 3)}
    assert "lm_head.weight" in load_file(tmp_path / "cut" / "model.safetensors")


@pytest.mark.parametrize("config", [tiny_config("llama", 1), tiny_config("llama"), tiny_config("gpt2")])
def test_other_models_are_not_mentioned(config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny(tmp_path / "base", config)
    plan = IShrinker.from_pretrained(tmp_path / "base").plan(num_hidden_layers=3, keep_first_layers=0, **QUIET)
    assert plan.tied_head is None
    assert "tie_embeddings" not in capsys.readouterr().err
    assert "tied_head" not in plan.to_json()


def test_quantised_heads_are_tied_to_the_finer_one(tmp_path: Path) -> None:
    folder = save_with_head(tmp_path / "base", tiny_config("llama"), error=0.3, swap=True)
    result = IShrinker.from_pretrained(folder).shrink(tie_embeddings=True, save_directory=tmp_path / "tied", **QUIET)
    head = load_file(folder / "model.safetensors")["lm_head.weight"]
    assert torch.equal(load_file(tmp_path / "tied" / "model.safetensors")["model.embed_tokens.weight"], head)
    assert result.plan.tied_head is not None and result.plan.tied_head.retained == "lm_head.weight"
    card = (tmp_path / "tied" / "README.md").read_text()
    assert "Both are lm_head.weight now: of 16 consecutive weights" in card


@pytest.mark.parametrize(
    ("model_type", "variant", "message"),
    [
        ("llama", 1, "tie_embeddings: the config of base ties the head to the embedding already; leave"),
        (
            "llama",
            0,
            r"head of base is another matrix than its embedding \(lm_head.weight and model.embed_tokens.weight are "
            r"1\d\d.\d% apart, 1\d\d.\d% in the row that differs most, cosine -?0.0\d+\), and quantisation "
            "explains at most 15%, 30% in a row; leave tie_embeddings out",
        ),
    ],
)
def test_another_head_is_refused(model_type: str, variant: int, message: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config(model_type, variant))
    edit_json(folder / "config.json", tie_word_embeddings=bool(variant))
    with pytest.raises(ShapeError, match=message):
        IShrinker.from_pretrained(folder).shrink(tie_embeddings=True, save_directory=tmp_path / "tied", **QUIET)
    assert not (tmp_path / "tied").exists()


def test_an_architecture_without_the_key_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tying, "_tied", lambda source: (source, 0))
    shrinker = IShrinker.from_pretrained(folder)
    with pytest.raises(ShapeError, match="the class of llama has no head that tie_word_embeddings ties"):
        shrinker.plan(tie_embeddings=True)
    assert shrinker.plan(num_hidden_layers=3, keep_first_layers=0, **QUIET).tied_head is None


def test_a_shape_alone_counts_the_head(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", str(folder), "--tie-embeddings", "--shape-only", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["shape"] == shown["new_shape"]
    assert shown["num_parameters"] - shown["new_num_parameters"] == HEAD
    assert main(["plan", "--model", str(folder), "--tie-embeddings"]) == 0
    assert "The head is tied to the embedding." in " ".join(capsys.readouterr().out.split())


def test_a_gguf_file_with_both_is_read_as_untied_and_tied_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    config = tiny_config("llama", 2, tie_word_embeddings=True)
    save_tiny(tmp_path / "whole", config)
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    writer = GGUFWriter(tmp_path / "both.gguf", "llama")
    for add, value in (
        (writer.add_context_length, 512),
        (writer.add_embedding_length, 32),
        (writer.add_block_count, 4),
        (writer.add_feed_forward_length, 24),
        (writer.add_head_count, 8),
        (writer.add_head_count_kv, 4),
        (writer.add_layer_norm_rms_eps, 1e-6),
        (writer.add_vocab_size, VOCAB),
        (writer.add_token_list, [chr(0x100 + i) for i in range(VOCAB)]),
    ):
        add(value)  # type: ignore[operator]
    names = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for layer in range(4):
        for name, short in names.items():
            writer.add_tensor(
                f"blk.{layer}.{short}.weight", tensors[f"model.layers.{layer}.{name}.weight"].float().numpy()
            )
    writer.add_tensor("output_norm.weight", tensors["model.norm.weight"].float().numpy())
    weight = tensors["model.embed_tokens.weight"].float().numpy()
    for name, kind in (("token_embd", GGMLQuantizationType.Q4_0), ("output", GGMLQuantizationType.Q8_0)):
        writer.add_tensor(f"{name}.weight", quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(
        "optimum_ishrink.checkpoint.gguf_reading.AutoTokenizer.from_pretrained", lambda *_, **__: tiny_tokenizer()
    )
    shrinker = IShrinker.from_pretrained(tmp_path, gguf_file="both.gguf")
    assert not shrinker.source.config.tie_word_embeddings
    result = shrinker.shrink(tie_embeddings=True, save_directory=tmp_path / "tied", **QUIET)
    found = result.plan.tied_head
    assert found is not None and 0.05 < found.relative_error < 0.13
    assert found.retained == "lm_head.weight"
    tied = load_file(tmp_path / "tied" / "model.safetensors")["model.embed_tokens.weight"].float()
    assert float((tied - tensors["model.embed_tokens.weight"]).norm() / tied.norm()) < 0.01
