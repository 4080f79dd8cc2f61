"""Tiny random models of every architecture, and a tiny tokenizer."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from optimum_ishrink.architectures.binding import bind
from optimum_ishrink.architectures.description import descriptions
from optimum_ishrink.architectures.model_class import expected_tensors
from tests.helpers.decoder_variants import DECODERS
from tests.helpers.hybrid_variants import HYBRIDS

VOCAB = 300
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHARED = {"n_routed_experts": 4, "n_shared_experts": 2}
EIGHT = {"n_routed_experts": 8, "num_local_experts": 8, "num_experts": 8, "n_shared_experts": 1}
FULL = "full_attention"

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "afmoe": [
        {**MOE, "num_dense_layers": 1, "num_shared_experts": 1, "sliding_window": 3, "global_attn_every_n_layers": 2}
    ],
    "apertus": [{}],
    "arcee": [{"head_dim": None}, {"mlp_bias": True}],
    "cohere": [{"head_dim": None}, {"use_qk_norm": True}],
    "cohere2": [{"sliding_window": 3}],
    "cohere2_moe": [
        {
            **MOE,
            "num_shared_experts": 1,
            "sliding_window": 3,
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "prefix_dense_intermediate_size": 20,
        }
    ],
    "dots1": [{**MOE, **SHARED, "sliding_window": 3, "max_window_layers": 2, "first_k_dense_replace": 1}],
    "ernie4_5": [{}, {"use_bias": True}],
    "ernie4_5_moe": [{**MOE, "moe_num_shared_experts": 2}, {**MOE, "use_bias": True, "tie_word_embeddings": False}],
    "exaone4": [{"sliding_window": 3}],
    "exaone_moe": [{**MOE, "num_shared_experts": 1, "sliding_window": 3, "first_k_dense_replace": 1}],
    "flex_olmo": [{**MOE, "head_dim": None}],
    "flint": [{**MOE, "shared_expert_intermediate_size": 10, "sliding_window": 3, "mlp_only_layers": [0]}],
    "gemma": [{}],
    "gemma2": [{"query_pre_attn_scalar": 8, "sliding_window": 3}],
    "gemma3_text": [{"query_pre_attn_scalar": 8, "sliding_window": 3}],
    "glm": [{}],
    "glm4": [{}],
    "glm4_moe": [
        {**MOE, **SHARED, "first_k_dense_replace": 1},
        {**MOE, **EIGHT, "n_group": 2, "use_qk_norm": True, "attention_bias": True},
    ],
    "gpt2": [{"n_inner": 24, "head_dim": None}],
    "gpt_neox": [{"head_dim": None}],
    "gpt_oss": [{**MOE, "sliding_window": 3}],
    "granite": [{"attention_multiplier": 0.3, "residual_multiplier": 0.5, "logits_scaling": 2.0, "head_dim": None}],
    "granitemoe": [{**MOE, "head_dim": None}],
    "granitemoe_swa": [{**MOE, "shared_intermediate_size": 10, "sliding_window": 3}],
    "granitemoeshared": [{**MOE, "shared_intermediate_size": 10, "head_dim": None}],
    "helium": [{"head_dim": 4}],
    "hunyuan_v1_moe": [{**MOE, "eod_token_id": 2, "sep_token_id": 2}],
    "kolibri1": [{**MOE, "shared_expert_intermediate_size": 10, "sliding_window": 3}],
    "llama": [
        {},
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        {"head_dim": None},
    ],
    "minimax": [{**MOE, "block_size": 4}],
    "minimax_m2": [{**MOE}],
    "ministral": [{"sliding_window": 3}],
    "mistral": [{}, {"sliding_window": 3, "tie_word_embeddings": True, "head_dim": None}],
    "mixtral": [{**MOE}],
    "nemotron": [{}, {"attention_bias": True, "mlp_bias": True}],
    "olmo": [{"head_dim": None}, {"clip_qkv": 0.5}],
    "olmo2": [{"head_dim": None}],
    "olmo3": [{"sliding_window": 3, "head_dim": None}],
    "olmoe": [{**MOE, "head_dim": None}],
    "phi": [{"head_dim": None}, {"qk_layernorm": True, "head_dim": None}],
    "phi3": [{"head_dim": None}],
    "phimoe": [{**MOE, "lm_head_bias": True, "attention_bias": True, "head_dim": None}],
    "qwen2": [
        {"head_dim": None},
        {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2},
    ],
    "qwen2_moe": [{**MOE, "shared_expert_intermediate_size": 10, "mlp_only_layers": [1]}],
    "qwen3": [{}, {"attention_bias": True, "tie_word_embeddings": True}],
    "qwen3_moe": [{**MOE, "mlp_only_layers": [2]}],
    "seed_oss": [{}],
    "smollm3": [{"no_rope_layers": [1, 0, 1, 1], "use_sliding_window": True, "sliding_window": 3, "head_dim": None}],
    "solar_open": [{**MOE, **SHARED}],
    "stablelm": [{"head_dim": None}, {"head_dim": None, "use_qkv_bias": True, "qk_layernorm": True}],
    "starcoder2": [{}],
}
"""Config values of each architecture's variants, on top of `SMALL`."""

VARIANTS = dict(sorted({**DECODERS, **VARIANTS, **HYBRIDS}.items()))

CASES = [(model_type, i) for model_type, variants in VARIANTS.items() for i in range(len(variants))]

# fmt: off
IN_FULL = {
    "apertus", "arcee", "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "glm", "glm4",
    "gpt2", "gpt_neox", "gpt_oss", "granite", "granitemoe", "helium", "llama", "ministral", "mistral", "mixtral",
    "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
    "seed_oss", "smollm3", "stablelm", "starcoder2",
}
"""Architectures that every test runs on, `make test` those that are fast."""

IN_TEST_ALL = IN_FULL | {
    "bloom", "deepseek_v3", "falcon", "gemma3n_text", "gemma4_text", "glm4_moe", "granitemoehybrid", "lfm2",
    "nemotron_h", "opt", "qwen3_5_text",
}
# fmt: on
"""With these, all ways of laying out a layer: `make test-all` runs every test on them. The others repeat their
layouts: `make test-all` proves their cuts, and `make test-nightly` runs the rest of the tests on them."""

CASES_IN_FULL = [case for case in CASES if case[0] in IN_FULL]


def graded(model_type: str, variant: int, *, fast: bool) -> Any:
    """A case as parameters of a test: slow unless it is fast, and nightly unless its architecture is `IN_TEST_ALL`."""
    marks = [] if fast and model_type in IN_FULL else [pytest.mark.slow]
    if model_type not in IN_TEST_ALL:
        marks.append(pytest.mark.nightly)
    return pytest.param(model_type, variant, marks=marks) if marks else (model_type, variant)


PROOF_CASES = [case if case[0] in IN_FULL else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
"""All of `CASES` for the proof of a cut, which no architecture goes without: slow but for those `IN_FULL`."""

ALL_VARIANTS = [graded(*case, fast=True) for case in CASES]
"""All of `CASES`, slow but for those `IN_FULL`, and nightly but for those `IN_TEST_ALL`."""

FIRST_VARIANTS = [graded(*case, fast=not case[1]) for case in CASES]
"""The same, of which the variants after each architecture's first are slow."""


LAYOUTS = (
    "llama",
    "apertus",  # no gate
    "cohere",  # attention and MLP side by side
    "deepseek_v3",  # latent attention, shared experts as wide as the others
    "gemma3_text",  # norms around both, layers of two kinds
    "glm4_moe",  # shared experts as wide as the others
    "gpt2",  # fused and transposed
    "gpt_neox",  # fused head by head
    "gpt_oss",  # experts in one tensor, with biases
    "granitemoe",
    "lfm2",  # layers without attention
    "nemotron_h",  # layers without attention or without an MLP, modules named otherwise than tensors
    "olmo2",  # one norm over all heads
    "olmoe",
    "phi",
    "phi3",  # fused part by part
    "qwen2_moe",  # an expert that all tokens share, and a dense layer
    "qwen3",  # a norm for each head
    "stablelm",
)
"""An architecture of every way in which a layer's tensors are laid out; the others repeat these."""


def adds_to_the_stream(model_type: str) -> bool:
    """Whether all that a layer does is to add to what enters it, so that at zero it is the identity."""
    description = descriptions()[model_type]
    depth = description.dimensions["num_hidden_layers"]
    return depth.fixed is None and depth.inexact is None and description.joined_layers is None


LAYOUT_CASES = [
    graded(*case, fast=case[0] in LAYOUTS and not case[1]) for case in CASES if adds_to_the_stream(case[0])
]
"""All of `CASES` whose layers only add to the stream: slow but for the first variant of each of `LAYOUTS`, and nightly
but for those `IN_TEST_ALL`."""


def in_full(names: Iterable[str], *fast: str) -> list[Any]:
    """All of the names as parameters of a test, slow but for those that `make test` runs.

    Those that begin with an architecture are nightly unless it is `IN_TEST_ALL`.
    """
    assert {*fast} <= {*names}
    others = [name for name in names if name.split()[0] in VARIANTS and name.split()[0] not in IN_TEST_ALL]
    marks = {name: [pytest.mark.slow] + [pytest.mark.nightly] * (name in others) for name in names}
    return [name if name in fast else pytest.param(name, marks=marks[name]) for name in names]


def tiny_config(model_type: str, variant: int = 0, **changes: Any) -> Any:
    values = {**SMALL, **VARIANTS[model_type][variant], **changes}
    if values["head_dim"] is None:
        del values["head_dim"]
    if values.get("vocab_size_per_layer_input") == VOCAB:  # a second embedding, of the same tokens
        values["vocab_size_per_layer_input"] = values["vocab_size"]
    return AutoConfig.for_model(model_type, **values)


def tiny_raw_config(model_type: str = "llama", variant: int = 0, **changes: Any) -> dict[str, Any]:
    """The config.json of a tiny model."""
    values = {**tiny_config(model_type, variant).to_dict(), "model_type": model_type, **changes}
    given = VARIANTS[model_type][variant].keys() - {"head_dim"}
    return {key: value for key, value in values.items() if value is not None or key in given}


def supported_shape(config: Any, shape: dict[str, int]) -> dict[str, int]:
    """The part of a shape that a model can change, neurons as wide as its experts allow."""
    description = bind(descriptions()[config.model_type], config, expected_tensors(config)).description
    possible = {key: value for key, value in shape.items() if not description.dimensions[key].fixed}
    if getattr(config, "qk_layernorm", False):
        possible = {key: value for key, value in possible.items() if "heads" not in key}
    if "experts" in description.sizes and "intermediate_size" in possible:
        possible["intermediate_size"] = 16
    if getattr(config, "n_group", None) == 2 and "num_experts" in possible:
        possible["num_experts"] = 4  # two in each group
    return possible


def tiny_model(config: Any, seed: int = 0) -> Any:
    """A random model whose every tensor, norms and biases included, is far from its initial value."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    stored = model.state_dict().keys()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        for name, buffer in model.named_buffers():
            if name in stored and "bias" in name:  # corrections of a router's choice
                buffer.add_(torch.rand_like(buffer) * 0.2)
    return model


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: every text has tokens, and there is nothing to train."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=128
    )


def save_tiny(folder: Path, config: Any, *, seed: int = 0, **how: Any) -> Path:
    """Save a tiny model with its tokenizer, and return the folder. Each is made once and copied after that."""
    key = (type(config), config.to_json_string(use_diff=False), seed, tuple(how.items()))
    if key not in _SAVED:
        made = _place() / str(len(_SAVED))
        tiny_model(config, seed).save_pretrained(made, **how)
        tiny_tokenizer().save_pretrained(made)
        _SAVED[key] = made
    shutil.copytree(_SAVED[key], folder, dirs_exist_ok=True)
    return folder


_SAVED: dict[Any, Path] = {}


@cache
def _place() -> Path:
    place = Path(tempfile.mkdtemp(prefix="tiny-models-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes a key."""
    data = json.loads(path.read_text())
    data.update(changes)
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None or key not in changes}))
