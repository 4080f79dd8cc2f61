"""Drafts are compared with the descriptions that were written by hand, and proved for families that have none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, AutoConfig

from optimum_ishrink.architectures.description import DIMENSIONS, describe
from optimum_ishrink.drafting.draft import Draft, draft_description
from optimum_ishrink.drafting.proof import CACHE, TOGETHER
from optimum_ishrink.errors import ArchitectureError, SourceError
from tests.helpers.tiny import in_full, tiny_raw_config

FOLDER = Path(describe.__code__.co_filename).parent

ALIKE = (
    *("apertus", "arcee", "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "glm", "glm4"),
    *("gpt2", "gpt_neox", "gpt_oss", "granite", "granitemoe", "llama", "ministral", "mistral", "mixtral", "nemotron"),
    *("olmo", "olmo2", "olmo3", "olmoe", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss"),
    *("smollm3", "stablelm", "starcoder2"),
)
"""Families whose draft says what their description says. That of helium names the width of a head otherwise: its
class reads head_dim for queries, but not for the output projection, so that both fix the heads."""


@pytest.mark.parametrize("model_type", in_full(ALIKE, "gpt_oss"))
def test_a_draft_says_what_was_written_by_hand(model_type: str) -> None:
    raw = tiny_raw_config(model_type)
    draft = draft_description(raw)
    written = json.loads((FOLDER / f"{model_type}.json").read_text(encoding="utf-8"))
    ours, theirs = _said(draft.data), _said(written)
    assert ours["tensors"] == theirs["tensors"]
    assert ours["dimensions"] == theirs["dimensions"]
    assert ours["rules"] == theirs["rules"]
    assert ours["sizes"] == {name: theirs["sizes"].get(name) for name in ours["sizes"]}
    assert ours["transposed"] == theirs["transposed"]
    assert theirs["memory"].items() <= ours["memory"].items()
    # A list that the class does not derive for this config is in no draft.
    lists = {key for key, value in AutoConfig.for_model(**raw).to_dict().items() if isinstance(value, list)}
    assert set(ours["per_layer"]) == set(theirs["per_layer"]) & lists
    assert all(proof.holds or "inexact" in draft.data["dimensions"][proof.claim] for proof in draft.proofs)
    assert {TOGETHER, CACHE} <= {proof.claim for proof in draft.proofs}


def _said(data: dict[str, Any]) -> dict[str, Any]:
    """Return what a description says, in one spelling where two mean the same."""
    names = CONFIG_MAPPING[data["model_type"]].attribute_map
    sizes = data["sizes"]

    def spelled(text: str) -> str:
        text = text.replace(" ", "")
        if sizes["kv"] == sizes["heads"]:
            text = text.replace("kv*", "heads*")
        if sizes["head_dim"] == f"{sizes['hidden']} // {sizes['heads']}":
            text = text.replace("heads*head_dim", "hidden")
        return text

    def kind(entry: dict[str, Any]) -> Any:
        return "fixed" if "fixed" in entry else ("inexact" if "inexact" in entry else "exact", entry["writes"])

    own = ("num_hidden_layers", "num_key_value_heads", "num_attention_heads", "intermediate_size", "vocab_size")
    return {
        "tensors": {pattern: spelled(axes) for pattern, axes in data["tensors"].items()},
        "memory": {pattern: spelled(axes) for pattern, axes in data.get("memory", {}).items()},
        "dimensions": {key: kind(data["dimensions"][key]) for key in own},
        "rules": sorted(rule["require"] for rule in data["rules"]),
        "sizes": {size: re.sub(r"\w+", lambda key: names.get(key[0], key[0]), text) for size, text in sizes.items()},
        "transposed": sorted(data.get("transposed", ())),
        "per_layer": data.get("per_layer", ()),
    }


def test_a_class_that_keeps_no_cache_is_drafted_without_one() -> None:
    assert draft_description(tiny_raw_config("openai-gpt")).data["sizes"]["cache"] == "0"


NEW = (
    "lara_mini",
    "hyperclovax",
    "kolibri1",
    "iquestcoder",
    "bitnet",
    "youtu",
    "mpt",
    "codegen",
    "doge",
    "qwen3_next",
)


@pytest.fixture(scope="module")
def drafts() -> dict[str, Draft]:
    """Drafts of families, each made once."""
    return {}


def _draft(drafts: dict[str, Draft], model_type: str) -> Draft:
    if model_type not in drafts:
        drafts[model_type] = draft_description(
            {**AutoConfig.for_model(model_type).to_dict(), "model_type": model_type}
        )
    return drafts[model_type]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", NEW)
def test_a_family_without_a_description_is_drafted(model_type: str, drafts: dict[str, Draft]) -> None:
    draft = _draft(drafts, model_type)
    assert draft.description.dimensions.keys() == DIMENSIONS.keys()
    claims = {proof.claim: proof for proof in draft.proofs}
    assert claims[TOGETHER].holds and claims[CACHE].holds
    for key, proof in claims.items():
        if not proof.holds:  # what does not hold is not claimed, and named
            assert {"fixed", "inexact"} & draft.data["dimensions"][key].keys()
            assert any(sentence.startswith(f"{key} does not hold") for sentence in draft.unknown)
    exact = {"lara_mini", "hyperclovax", "kolibri1", "iquestcoder", "youtu", "qwen3_next"}
    assert (model_type in exact) == (not draft.unknown and all("writes" in e for e in _dimensions(draft)))


def _dimensions(draft: Draft) -> list[dict[str, Any]]:
    own = ("num_hidden_layers", "num_key_value_heads", "num_attention_heads", "intermediate_size", "vocab_size")
    return [draft.data["dimensions"][key] for key in own]


@pytest.mark.slow
def test_what_does_not_hold_is_measured_and_named(drafts: dict[str, Draft]) -> None:
    norm = _draft(drafts, "bitnet").data["dimensions"]["intermediate_size"]
    assert re.search(r"mlp\.ffn_sub_norm\.weight spans all of them.*largest difference \d\.\de-0\d", norm["inexact"])
    depth = _draft(drafts, "doge").data["dimensions"]["num_hidden_layers"]
    assert depth["fixed"].startswith("not proved: largest difference")
    width = _draft(drafts, "mpt").data["dimensions"]["intermediate_size"]
    assert "no config key of its own holds the width of the MLP" in width["fixed"]
    (rows,) = _draft(drafts, "codegen").unknown
    assert rows.startswith("axis 0 of transformer.h.*.attn.qkv_proj.weight: which rows belong to which head")


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        ({}, SourceError, "no model_type"),
        (
            {"model_type": "mine", "auto_map": {"AutoConfig": "x.y"}},
            ArchitectureError,
            "needs remote code, which is nev",
        ),
        ({"model_type": "tomorrow"}, ArchitectureError, "no class for 'tomorrow'; upgrade transformers"),
        ({"model_type": "gemma3", "text_config": {}}, ArchitectureError, r"combines several models \(text_config\)"),
        ({"model_type": "bart", "is_encoder_decoder": True}, ArchitectureError, "an encoder with a decoder"),
        ({"model_type": "vit"}, ArchitectureError, "has no causal language model"),
        ({"model_type": "llama", "hidden_size": 100}, SourceError, "the llama config class refuses this"),
        ({"model_type": "mamba"}, ArchitectureError, "the mamba config has no num_attention_heads"),
        ({"model_type": "dory"}, SourceError, "no tiny dory .* since num_hidden_layers=4 cannot be small"),
    ],
)
def test_what_cannot_be_drafted(raw: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        draft_description(raw)
