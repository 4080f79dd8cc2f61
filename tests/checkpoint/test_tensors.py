from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from optimum_ishrink.checkpoint import tensors as tensor_files
from optimum_ishrink.checkpoint.tensors import (
    DTYPES,
    OutgoingTensor,
    read_header,
    read_index,
    read_tensor,
    stored_names,
    write_file,
)
from optimum_ishrink.errors import OutputError, SourceError


def outgoing(name: str, tensor: torch.Tensor) -> OutgoingTensor:
    dtype = next(key for key, value in DTYPES.items() if value == tensor.dtype)
    return OutgoingTensor(name, dtype, tuple(tensor.shape), make=lambda: tensor)


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=5),
    dtypes=st.lists(st.sampled_from(sorted(DTYPES)), min_size=5, max_size=5),
)
def test_the_library_reads_what_we_write_and_we_read_what_it_writes(
    shapes: list[list[int]], dtypes: list[str], tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("files")
    tensors = {
        f"t{i}": torch.randint(0, 2, shape).to(DTYPES[dtype]) for i, (shape, dtype) in enumerate(zip(shapes, dtypes))
    }
    write_file(folder / "ours.safetensors", [outgoing(name, tensor) for name, tensor in tensors.items()])
    read = load_file(folder / "ours.safetensors")
    assert all(
        torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    save_file(tensors, folder / "theirs.safetensors", {"format": "pt"})
    for name, info in read_header(folder / "theirs.safetensors").items():
        assert torch.equal(read_tensor(info), tensors[name])


@pytest.mark.parametrize("kernel", ["copies", "refuses", "copies nothing", "stops midway"])
def test_unchanged_tensors_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    copy = os.copy_file_range
    calls = []
    if kernel != "copies":

        def refuse(source: int, target: int, count: int, offset: int) -> int:
            calls.append(offset)
            if kernel == "refuses":
                raise OSError(errno.EXDEV, "across file systems")
            return copy(source, target, 1000, offset) if kernel == "stops midway" and len(calls) < 3 else 0

        monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    tensor = torch.randn(70, 30)
    save_file({"w": tensor}, tmp_path / "a.safetensors")
    info = read_header(tmp_path / "a.safetensors")["w"]
    write_file(tmp_path / "b.safetensors", [OutgoingTensor("v", "F32", (70, 30), source=info)])
    assert torch.equal(load_file(tmp_path / "b.safetensors")["v"], tensor)


@pytest.mark.parametrize("share", [0.999, 0.5, 0.001])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    save_file({"w": torch.randn(100, 100)}, tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SourceError, match="not a complete safetensors file"):
        read_index(tmp_path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.randn(100, 100)}, path)
    info = read_header(path)["w"]
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SourceError, match="ends before its last tensor"):
        read_tensor(info)
    with pytest.raises(SourceError, match="ends before its last tensor"):
        write_file(tmp_path / "b.safetensors", [OutgoingTensor("w", "F32", (100, 100), source=info)])


@pytest.mark.parametrize("makes", [False, True])
def test_an_unreadable_source_is_not_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, makes: bool
) -> None:
    save_file({"w": torch.randn(4)}, tmp_path / "a.safetensors")
    info = read_header(tmp_path / "a.safetensors")["w"]

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", fail)
    tensor = OutgoingTensor("w", "F32", (4,), source=info, make=(lambda: read_tensor(info)) if makes else None)
    with pytest.raises(SourceError, match="cannot read .*a.safetensors: Input/output error"):
        write_file(tmp_path / "b.safetensors", [tensor])


def test_a_full_disk_during_a_copy_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"w": torch.randn(4)}, tmp_path / "a.safetensors")
    info = read_header(tmp_path / "a.safetensors")["w"]
    write = os.write

    def full(target: int, data: bytes) -> int:
        if len(data) == 16:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(target, data)

    def full_copy(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_files.os, "write", full)
    monkeypatch.setattr(tensor_files.os, "copy_file_range", full_copy, raising=False)
    with pytest.raises(OutputError, match="cannot write .*b.safetensors: No space left on device"):
        write_file(tmp_path / "b.safetensors", [OutgoingTensor("w", "F32", (4,), source=info)])


def test_a_single_file_takes_precedence_over_shards(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    save_file({"w": torch.zeros(3)}, tmp_path / "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    assert read_index(tmp_path)["w"].file == tmp_path / "model.safetensors"


def test_quantised_dtypes_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(4, dtype=torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match="quantised format"):
        read_index(tmp_path)


def test_a_pickle_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(SourceError, match="can run code"):
        read_index(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="neither model.safetensors nor"):
        read_index(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"w": "../model.safetensors"}}, "not a safetensors file in the same folder"),
        ({"weight_map": {"w": "/etc/passwd"}}, "not a safetensors file in the same folder"),
        ({"weight_map": {"w": "model.bin"}}, "not a safetensors file in the same folder"),
        ({"weight_map": {"w": "missing.safetensors"}}, "which is missing"),
        ({"weight_map": {"v": "a.safetensors"}}, "which does not hold it"),
        ({"weights": {}}, "not a safetensors index"),
        ([], "not a safetensors index"),
    ],
)
def test_an_inconsistent_index_is_refused(tmp_path: Path, index: object, message: str) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match=message):
        read_index(tmp_path)


def test_no_space_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_files.os, "write", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_file(tmp_path / "b.safetensors", [outgoing("w", torch.ones(3))])


def test_names_without_the_base_models_prefix() -> None:
    expected = ["model.a.weight", "model.b.weight", "lm_head.weight", "model.lm_head.weight"]
    assert stored_names(expected, ["a.weight", "model.b.weight", "b.weight", "lm_head.weight"]) == {
        "model.a.weight": "a.weight",
        "model.b.weight": "model.b.weight",
        "lm_head.weight": "lm_head.weight",
        "model.lm_head.weight": "model.lm_head.weight",
    }
