"""Binding a folder from its headers: what it accepts, the config class accepts too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from optimum_ishrink.architectures.headers import bind_folder
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.errors import ShapeError
from optimum_ishrink.planning.options import ShapeOptions
from optimum_ishrink.planning.shape import resolve_shape
from optimum_ishrink.planning.stage import check_shape
from tests.helpers.tiny import FIRST_VARIANTS, edit_json, save_tiny, tiny_config


def _shape(call: Any) -> Any:
    try:
        return call()
    except ShapeError:
        return None


@pytest.mark.parametrize(("model_type", "variant"), FIRST_VARIANTS)
def test_headers_accept_what_the_config_class_accepts(
    tmp_path_factory: pytest.TempPathFactory, model_type: str, variant: int
) -> None:
    folder = save_tiny(tmp_path_factory.mktemp("m"), tiny_config(model_type, variant))
    source, binding = open_source(folder), bind_folder(folder)
    if binding is None:
        return
    assert binding.num_parameters() == source.binding.num_parameters()

    @settings(max_examples=12)
    @given(
        st.sampled_from((None, 1, 3)),
        st.sampled_from((None, 1, 2, 3)),
        st.sampled_from((None, 1, 3, 4, 6)),
        st.sampled_from((None, 8, 13)),
        st.booleans(),
    )
    def agree(layers: int | None, groups: int | None, heads: int | None, neurons: int | None, change: bool) -> None:
        options = ShapeOptions(
            num_hidden_layers=layers,
            num_key_value_heads=groups,
            num_attention_heads=heads,
            intermediate_size=neurons,
            intermediate_multiple=1,
            keep_first_layers=0,
            keep_last_layers=0,
            allow_class_change=change,
        )
        assert _shape(lambda: resolve_shape(binding, options)) == _shape(lambda: check_shape(source, options))

    agree()


def test_what_the_headers_leave_open_is_left_to_the_model_class(llama_folder: Path, tmp_path: Path) -> None:
    assert bind_folder(llama_folder) is not None
    folder = shutil.copytree(llama_folder, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")

    def store(changed: dict[str, torch.Tensor]) -> None:
        save_file(changed, folder / "model.safetensors", {"format": "pt"})

    store({name: tensor for name, tensor in tensors.items() if name != "model.layers.2.mlp.down_proj.weight"})
    assert bind_folder(folder) is None  # a tensor is missing
    store({name: tensor.to(torch.float8_e4m3fn) if "mlp" in name else tensor for name, tensor in tensors.items()})
    assert bind_folder(folder) is None  # quantised
    store(tensors)
    assert bind_folder(folder) is not None
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-8])
    assert bind_folder(folder) is None  # truncated
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "adapter_config.json").write_text("{}")
    assert bind_folder(folder) is None


def test_lists_of_another_length_are_left_to_the_config_class(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", tiny_config("exaone4"))
    kinds = json.loads((folder / "config.json").read_text())["layer_types"]
    assert bind_folder(folder) is not None
    edit_json(folder / "config.json", layer_types=kinds[:-1])
    assert bind_folder(folder) is None


def test_a_head_that_is_missing_or_tied_by_default_is_left_to_the_class(llama_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    edit_json(folder / "config.json", tie_word_embeddings=None)
    assert bind_folder(folder) is None
    edit_json(folder / "config.json", tie_word_embeddings=False)
    assert bind_folder(folder) is not None
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert bind_folder(folder) is None
    edit_json(folder / "config.json", tie_word_embeddings=True)
    assert bind_folder(folder) is not None
