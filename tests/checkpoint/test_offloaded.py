"""Models whose layers come from disk have the weights, buffers and logits of those in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from optimum_ishrink.architectures.axes import layer_module
from optimum_ishrink.checkpoint import offloaded
from optimum_ishrink.checkpoint.offloaded import SLOTS
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.core.paging import is_paged, present, release
from optimum_ishrink.errors import SourceError
from tests.helpers.offloaded import from_disk, page_everything
from tests.helpers.tiny import FIRST_VARIANTS, VOCAB, save_tiny, tiny_config

IDS = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
APPROXIMATE = ("qwen3_5_moe_text",)
"""Architectures whose logits are rounded otherwise, by 1e-6 of the largest: experts lie elsewhere in memory."""
CPU = torch.device("cpu")


@pytest.mark.parametrize(("model_type", "variant"), FIRST_VARIANTS)
def test_layers_from_disk_have_the_weights_that_from_pretrained_gives(
    model_type: str, variant: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page_everything(monkeypatch)
    source = open_source(save_tiny(tmp_path / "base", tiny_config(model_type, variant)))
    whole, paged = source.load_model(torch.float32, CPU), from_disk(source)
    assert is_paged(paged) and not is_paged(whole)
    state, buffers = whole.state_dict(), dict(paged.named_buffers())
    for name, buffer in whole.named_buffers():
        if name not in state:
            assert torch.equal(buffer, buffers[name]) and buffer.dtype == buffers[name].dtype, name
    for layer in range(source.binding.sizes["layers"]):
        name = layer_module(source.binding, layer)
        for key, tensor in present(paged.get_submodule(name)).state_dict().items():
            assert torch.equal(tensor, state[f"{name}.{key}"]) and tensor.dtype == state[f"{name}.{key}"].dtype
    with torch.no_grad():
        expected, found = whole(IDS).logits, paged(IDS).logits
    if model_type in APPROXIMATE:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    else:
        assert torch.equal(found, expected)


def resident(model: Any, count: int) -> list[int]:
    """The layers whose weights are in memory: the others are NaN."""
    return [i for i in range(count) if not model.model.layers[i].mlp.down_proj.weight.isnan().any()]


def test_at_most_two_layers_are_in_memory_and_none_after_release(tmp_path: Path) -> None:
    model = from_disk(open_source(save_tiny(tmp_path / "base", tiny_config("llama", num_hidden_layers=6))))
    assert resident(model, 6) == []
    seen = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *_: seen.append(resident(model, 6)))
    with torch.no_grad():
        model(IDS)
        model(IDS)
    assert all(index % 6 in layers and len(layers) <= SLOTS for index, layers in enumerate(seen))
    release(model)
    assert resident(model, 6) == []


def test_layers_are_read_ahead_in_both_directions(tmp_path: Path) -> None:
    source = open_source(save_tiny(tmp_path / "base", tiny_config("llama", num_hidden_layers=6)))
    model, expected = from_disk(source), source.load_model(torch.float32, CPU)
    for order in (range(6), reversed(range(6)), (0, 5, 2, 3, 2, 3, 4, 1)):
        for layer in order:
            found = present(model.model.layers[layer]).mlp.down_proj.weight
            assert torch.equal(found, expected.model.layers[layer].mlp.down_proj.weight)


def test_a_checkpoint_of_several_dtypes_is_computed_in_one(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("llama"))
    state = load_file(folder / "model.safetensors")
    mixed = {name: tensor.bfloat16() if "mlp" in name else tensor for name, tensor in state.items()}
    mixed["model.norm.weight"] = mixed["model.norm.weight"].half()
    save_file(mixed, folder / "model.safetensors", metadata={"format": "pt"})
    source = open_source(folder)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            found, expected = from_disk(source, dtype)(IDS).logits, source.load_model(dtype, CPU)(IDS).logits
        assert found.dtype == dtype and torch.equal(found, expected)


def test_a_file_that_is_cut_short_while_it_is_read_is_an_error_of_one_line(tmp_path: Path) -> None:
    source = open_source(save_tiny(tmp_path / "base", tiny_config("llama")))
    model = from_disk(source)
    present(model.model.layers[0])
    os.truncate(source.folder / "model.safetensors", 4096)
    with pytest.raises(SourceError, match=r"model.safetensors ends before its last tensor; download it again"):
        for layer in model.model.layers[1:]:
            present(layer)


def test_a_file_that_cannot_be_read_is_an_error_of_one_line(tmp_path: Path) -> None:
    source = open_source(save_tiny(tmp_path / "base", tiny_config("llama")))
    model = from_disk(source)
    (source.folder / "model.safetensors").unlink()
    with (
        pytest.raises(SourceError, match=r"cannot read .*model.safetensors: No such file or directory"),
        torch.no_grad(),
    ):
        model(IDS)


def test_experts_that_do_not_load_cleanly_are_an_error(tmp_path: Path) -> None:
    source = open_source(save_tiny(tmp_path / "base", tiny_config("mixtral")))
    tensors = dict(source.tensors)
    name = next(name for name in tensors if "layers.0" in name and ".experts.3." in name)
    vars(source)["tensors"] = {key: info for key, info in tensors.items() if key != name}
    model = from_disk(source)
    with pytest.raises(SourceError, match=r"the tensors of model.layers.0 do not load cleanly"):
        present(model.model.layers[0])


def test_a_weight_that_the_class_writes_itself_is_refused(tmp_path: Path) -> None:
    model = from_disk(open_source(save_tiny(tmp_path / "base", tiny_config("llama"))))
    named = {"model.norm.weight": torch.ones(3), "model.embed_tokens.weight": torch.zeros(2, 2)}
    with pytest.raises(SourceError, match=r"model.norm.weight is changed by the model class when it is loaded"):
        offloaded._zero_rows(model, named)


def test_a_tensor_that_the_class_lacks_is_an_error(tmp_path: Path) -> None:
    source = open_source(save_tiny(tmp_path / "base", tiny_config("llama")))
    tensors = dict(source.tensors)
    tensors["model.norm.weight"] = tensors["model.embed_tokens.weight"]
    vars(source)["tensors"] = tensors
    with pytest.raises(SourceError, match=r"the model class has no tensor model.norm.weight of shape \[300, 32\]"):
        from_disk(source)
