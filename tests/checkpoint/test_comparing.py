from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from optimum_ishrink.checkpoint import comparing
from optimum_ishrink.checkpoint.comparing import same_bytes, same_values
from optimum_ishrink.checkpoint.tensors import OutgoingTensor, TensorInfo, read_header
from optimum_ishrink.errors import SourceError


def _stored(folder: Path, name: str, tensor: torch.Tensor) -> TensorInfo:
    save_file({"before": torch.ones(3), "w": tensor}, folder / name)
    return read_header(folder / name)["w"]


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 40), piece=st.integers(1, 50), changed=st.integers(-1, 39), pieces=st.integers(1, 5))
def test_any_byte_that_differs_is_found(
    length: int, piece: int, changed: int, pieces: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("compare")
    tensor = torch.arange(length, dtype=torch.uint8)
    other = tensor.clone()
    if 0 <= changed < length:
        other[changed] += 1
    same = torch.equal(tensor, other)
    first, second = _stored(folder, "a.safetensors", tensor), _stored(folder, "b.safetensors", other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparing, "_PIECE", piece)
        assert same_bytes(first, second) is same
        made = OutgoingTensor("w", "U8", (length,), make=lambda: tensor)
        in_pieces = OutgoingTensor("w", "U8", (length,), pieces=lambda: tensor.split(pieces))
        copied = OutgoingTensor("w", "U8", (length,), source=first)
        assert [same_values(each, second) for each in (made, in_pieces, copied)] == [same] * 3


def test_another_shape_or_dtype_is_not_the_same(tmp_path: Path) -> None:
    one = _stored(tmp_path, "a.safetensors", torch.zeros(4, 2))
    assert not same_bytes(one, _stored(tmp_path, "b.safetensors", torch.zeros(2, 4)))
    assert not same_bytes(one, _stored(tmp_path, "c.safetensors", torch.zeros(4, 2, dtype=torch.int32)))
    assert same_bytes(one, one)


def test_a_truncated_file_is_reported(tmp_path: Path) -> None:
    one = _stored(tmp_path, "a.safetensors", torch.zeros(400))
    other = _stored(tmp_path, "b.safetensors", torch.zeros(400))
    with (tmp_path / "b.safetensors").open("r+b") as file:
        file.truncate(other.end - 5)
    with pytest.raises(SourceError, match="b.safetensors ends before its last tensor"):
        same_bytes(one, other)
