"""Layers of unlike sizes, and sizes that follow another."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from optimum_ishrink.architectures.config_edit import edit_config
from optimum_ishrink.architectures.description import describe
from optimum_ishrink.architectures.expressions import parse_axes
from optimum_ishrink.architectures.layer_sizes import SizesOfKind, number_of, renamed, sizes_by_layer
from optimum_ishrink.architectures.model_class import bind_config, parse_config
from optimum_ishrink.errors import ArchitectureError, ShapeError
from tests.helpers.tiny import tiny_config, tiny_raw_config

EXPRESSIONS = {"head_dim": "head_size", "ffn": "width"}


def test_a_size_of_some_layers_is_read_from_their_config() -> None:
    large = SimpleNamespace(head_size=16)
    config = SimpleNamespace(
        types=["near", "far", "far"], head_size=8, width=24, per_layer_config=[None, large, large]
    )
    sizes = {"head_dim": 8, "ffn": 24}
    kinds = [SizesOfKind("types", "far", {"head_dim": "far_head_dim", "ffn": "2*ffn"})]
    found = sizes_by_layer(kinds, EXPRESSIONS, sizes, config, lambda key: getattr(config, key))
    other = {"head_dim": ("far_head_dim",), "ffn": ("2", "ffn")}
    assert (found, sizes["far_head_dim"]) == ({1: other, 2: other}, 16)
    assert renamed(parse_axes("heads*head_dim, ffn"), other) == parse_axes("heads*far_head_dim, 2*ffn")


@pytest.mark.parametrize(("head_size", "when"), [(8, ""), (16, "wide == 1")])
def test_a_size_that_is_the_same_or_not_meant_stays(head_size: int, when: str) -> None:
    config = SimpleNamespace(types=["far"], per_layer_config=[SimpleNamespace(head_size=head_size)], wide=0)
    sizes = {"head_dim": 8, "ffn": 24}
    kinds = [SizesOfKind("types", "far", {"head_dim": "far_head_dim"}, when)]
    assert sizes_by_layer(kinds, EXPRESSIONS, sizes, config, lambda key: getattr(config, key)) == {}
    assert "far_head_dim" not in sizes


def test_a_list_of_equal_numbers_is_a_number() -> None:
    assert [number_of(value) for value in ([4, 4], [4, 5], [], 4, ["a"], None)] == [4, [4, 5], [], 4, ["a"], None]


def test_widths_that_differ_from_layer_to_layer_are_refused() -> None:
    with pytest.raises(
        ArchitectureError, match=r"^intermediate_size differs from layer to layer in this model \(\[24, 24, 16, 24\]\)"
    ):
        bind_config(tiny_raw_config("gemma3n_text", intermediate_size=[24, 24, 16, 24]))


def test_a_list_of_widths_becomes_a_number() -> None:
    raw = tiny_raw_config("gemma3n_text", 1)
    config, binding = bind_config(raw)
    assert (raw["intermediate_size"], binding.shape["intermediate_size"]) == ([24] * 4, 24)
    narrower = edit_config(raw, config, binding, {**binding.shape, "intermediate_size": 16}, range(4))
    assert narrower["intermediate_size"] == 16


def test_other_sizes_of_layers_are_kept_with_their_layers() -> None:
    raw = tiny_raw_config("gemma4_text", num_kv_shared_layers=0)
    assert sorted(raw["per_layer_config"]) in (["1", "2", "3"], [1, 2, 3])
    config, binding = bind_config(raw)
    assert (binding.sizes["head_dim"], binding.sizes["global_head_dim"]) == (8, 16)
    edited = edit_config(raw, config, binding, {**binding.shape, "num_hidden_layers": 2}, (0, 3))
    assert edited["per_layer_config"] == {"1": {"head_dim": 16}}
    assert [layer.head_dim for layer in parse_config(edited).per_layer_config] == [8, 16]


def test_a_layer_that_the_config_class_changes_is_refused() -> None:
    """Its last layer sees all tokens, whatever the list says."""
    raw = tiny_raw_config("gemma4_text", 1)
    config, binding = bind_config(raw)
    vars(binding)["required_layers"] = ()
    with pytest.raises(
        ShapeError, match="with layer 2 in place 1: its config class makes layer_types full_attention there, and the"
    ):
        edit_config(raw, config, binding, {**binding.shape, "num_hidden_layers": 2}, (0, 2))


def test_the_rows_of_a_second_embedding_follow_the_vocabulary() -> None:
    binding = bind_config(tiny_raw_config("gemma3n_text"))[1]
    table = binding.tensors["model.embed_tokens_per_layer.weight"]
    assert table.axes == parse_axes("vocab, layers*per_layer")
    assert binding.config_changes({"vocab_size": 200}) == {"vocab_size": 200, "vocab_size_per_layer_input": 200}
    other = bind_config(tiny_raw_config("gemma3n_text", vocab_size_per_layer_input=90))[1]
    assert other.tensors[table.name].axes == parse_axes("per_layer_vocab, layers*per_layer")
    assert "another number of rows" in str(other.refusal({"vocab_size": 200}))
    assert binding.refusal({"vocab_size": 200}) is None


def test_a_dimension_is_fixed_or_inexact_where_its_condition_holds() -> None:
    heads = {"num_key_value_heads": 2}
    uniform, mixed = (bind_config(tiny_raw_config("gemma4_text", variant))[1] for variant in (1, 2))
    assert uniform.refusal(heads) is None
    assert "other numbers of KV heads" in str(mixed.refusal(heads))
    before, behind = (bind_config(tiny_raw_config("opt", variant))[1] for variant in (0, 1))
    assert before.inexact({"num_hidden_layers": 2}) == []
    assert len(behind.inexact({"num_hidden_layers": 2})) == 1
    assert describe("opt").dimensions["num_hidden_layers"].when  # the description itself is as it was


def test_a_list_that_a_config_holds_as_runs() -> None:
    raw = tiny_raw_config("gpt_neo")
    config, binding = bind_config(raw)
    assert config.attention_layers == ["global", "local"] * 2
    edited = edit_config(raw, config, binding, {**binding.shape, "num_hidden_layers": 3}, (1, 2, 3))
    assert parse_config(edited).attention_layers == ["local", "global", "local"]


def test_modules_that_are_numbered_in_a_layer_have_their_own_entries() -> None:
    binding = bind_config(tiny_raw_config("ctrl"))[1]
    for index, axes in ((0, "ffn, hidden"), (2, "hidden, ffn")):
        bound = binding.tensors[f"transformer.h.1.ffn.{index}.weight"]
        assert (bound.axes, bound.layer, bound.expert) == (parse_axes(axes), 1, None)
        assert bound.in_layer(0) == f"transformer.h.0.ffn.{index}.weight"


def test_a_numbered_module_outside_the_layers_is_no_layer() -> None:
    binding = bind_config(tiny_raw_config("gemma3n_text"))[1]
    assert binding.tensors["model.altup_projections.1.weight"].layer is None
    assert tiny_config("gemma3n_text").altup_num_inputs == 3
