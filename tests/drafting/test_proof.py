"""The proof finds what is wrong with a description, and names it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.architectures.description import Description, describe, registered
from optimum_ishrink.architectures.expressions import parse_axes
from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.drafting.checking import check_description, in_words
from optimum_ishrink.drafting.proof import CACHE, TOGETHER, Proof, make_subject, prove
from optimum_ishrink.errors import ArchitectureError, SourceError, VerificationError
from tests.helpers.tiny import CASES, tiny_raw_config

WITHOUT_CACHE = ("openai-gpt",)
FAST = ("bloom", "lfm2", "olmo2", "qwen3_moe")
IN_TEST_ALL = (*FAST, "gemma3_text", "gpt2", "nemotron_h", "phi3", "qwen2_moe", "smollm3")


def _graded(model_type: str, variant: int) -> Any:
    if variant or model_type not in IN_TEST_ALL:
        return pytest.param(model_type, variant, marks=[pytest.mark.slow, pytest.mark.nightly])
    return pytest.param(model_type, 0, marks=[] if model_type in FAST else pytest.mark.slow)


@pytest.mark.parametrize(("model_type", "variant"), [_graded(*case) for case in CASES])
def test_the_packages_descriptions_prove_true(model_type: str, variant: int) -> None:
    raw = tiny_raw_config(model_type, variant)
    check = check_description(raw)
    claims = {proof.claim: proof for proof in check.proofs}
    dimensions = bind_config(raw)[1].description.dimensions
    fixed = {key for key, entry in dimensions.items() if entry.fixed}
    assert {"num_hidden_layers", "intermediate_size", "vocab_size", TOGETHER} <= claims.keys() | fixed
    assert "num_experts" in claims or "num_experts" not in dimensions or "num_experts" in fixed
    assert CACHE in claims or model_type in WITHOUT_CACHE
    assert all(proof.holds or proof.claim in check.inexact for proof in check.proofs)
    assert check.to_json()["proofs"][0] == check.proofs[0].to_json()
    # What is marked as inexact is not exact: the proof can tell.
    assert all(not claims[key].holds and (claims[key].difference or 0) > 1e-3 for key in check.inexact)


def test_a_description_that_is_false_names_the_axis_and_the_difference() -> None:
    raw = tiny_raw_config("phi3")
    right = describe("phi3")
    pattern = "model.layers.*.mlp.gate_up_proj.weight"
    false = replace(right, tensors={**right.tensors, pattern: parse_axes("ffn*2, hidden")})
    with (
        registered(false),
        pytest.raises(
            VerificationError,
            match=r"proves false for this config: intermediate_size: largest difference \d\.\de[+-]\d\d .* a draft "
            r"differs in axis 0 of model.layers.\*.mlp.gate_up_proj.weight: described as ffn\*2, drafted as \[ffn; ",
        ),
    ):
        check_description(raw)
    assert describe("phi3") is right  # nothing stays registered


def test_a_tensor_without_an_entry_is_named() -> None:
    right = describe("llama")
    false = replace(right, tensors={k: v for k, v in right.tensors.items() if "v_proj" not in k})
    with registered(false), pytest.raises(ArchitectureError, match=r"does not account for 4 .*v_proj\.weight"):
        check_description(tiny_raw_config("llama"))
    with pytest.raises(ArchitectureError, match="unknown architecture 'mamba'"):
        check_description({"model_type": "mamba"})


def test_a_cut_that_cannot_be_written_or_computed_is_no_proof() -> None:
    raw = tiny_raw_config("helium", head_dim=4)
    values = {key: value for key, value in raw.items() if key != "model_type"}
    data = json.loads((Path(describe.__code__.co_filename).parent / "helium.json").read_text())
    keys = {"num_key_value_heads": "kv", "num_attention_heads": "heads"}
    data["dimensions"]["num_key_value_heads"] = {"writes": keys}
    subject = make_subject(Description.from_json(Path("a test"), data), values)
    (proof,) = prove(subject, ("num_key_value_heads",))
    assert not proof.holds and proof.difference is None and proof.failure
    assert "cannot" in proof.words or "expects" in proof.words


def test_a_cut_that_changes_nothing_is_no_proof() -> None:
    assert not Proof("intermediate_size", 0.0, 0.0).holds
    assert "changes nothing" in Proof("intermediate_size", 0.0, 0.0).words
    assert Proof("intermediate_size", 1e-7, 0.5).holds
    assert Proof("vocab_size", 0.0).holds  # of the rows that stay, the logits are those of the original
    assert not Proof("num_hidden_layers", 1e-3, 0.5).holds


def test_axes_in_words_are_those_that_were_read() -> None:
    for text in ("hidden", "[ffn; ffn]", "heads*3*head_dim", "1"):
        assert in_words(parse_axes(text)[0]) == text


def test_a_model_that_cannot_compute_is_refused() -> None:
    values = {key: value for key, value in tiny_raw_config("llama").items() if key != "model_type"}
    with pytest.raises(SourceError, match="cannot compute with these values|refuses"):
        make_subject(describe("llama"), {**values, "head_dim": 7})


def test_a_rule_that_forbids_every_smaller_value_is_no_false_claim() -> None:
    check = check_description(tiny_raw_config("phi", 1))
    assert "num_key_value_heads" not in {proof.claim for proof in check.proofs}
    assert "num_key_value_heads: no smaller value can be written to the config" in check.notes


def test_a_class_that_cannot_be_made_smaller_is_proved_at_its_own_size_if_that_is_small() -> None:
    raw = tiny_raw_config("nemotron_h")  # its layers are counted by a pattern, and no key says how many there are
    assert any("the proof is on the model's own sizes" in note for note in check_description(raw).notes)
    large = {**raw, "intermediate_size": 2**22}
    with pytest.raises(ArchitectureError, match="the nemotron_h config has no num_hidden_layers"):
        check_description(large)
