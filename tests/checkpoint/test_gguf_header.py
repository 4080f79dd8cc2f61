from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.checkpoint.gguf_header import CHUNK, read_header, read_values
from optimum_ishrink.checkpoint.gguf_reading import gguf_metadata, save_gguf_config
from optimum_ishrink.errors import SourceError

VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**31), 2**31 - 1),
    st.floats(allow_nan=False, width=32),
    st.text(max_size=20),
    st.lists(st.integers(-9, 9), min_size=1, max_size=5),
    st.lists(st.text(max_size=5), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=2), min_size=1, max_size=3),
)


def write(path: Path, values: dict[str, object], tensors: int = 2) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in values.items():
        kind = gguf.GGUFValueType.get_type(value)
        writer.add_key_value(name, value, kind)
    for number in range(tensors):
        writer.add_tensor(f"t{number}.weight", np.full((2, 32), number, np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    return path


@given(values=st.dictionaries(st.text("abc", min_size=1, max_size=4), VALUES, max_size=5), tensors=st.integers(0, 3))
def test_the_header_is_all_before_the_weights(
    values: dict[str, object], tensors: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("header") / "a.gguf", values, tensors)
    data = path.read_bytes()
    header = read_header(lambda start, stop: data[start : min(stop, start + 7)])  # in parts that cut values through
    assert data.startswith(header)
    whole = gguf.GGUFReader(path)
    last = max((tensor.data_offset for tensor in whole.tensors), default=len(data))
    assert len(header) <= last
    # What follows is padding and weights: a file with a hole there has the same header.
    path.write_bytes(header + bytes(len(data) - len(header)))
    found = gguf.GGUFReader(path)
    assert {name: field.contents() for name, field in found.fields.items()} == {
        name: field.contents() for name, field in whole.fields.items()
    }
    assert [tensor.name for tensor in found.tensors] == [tensor.name for tensor in whole.tensors]


@given(
    values=st.dictionaries(st.text("abc", min_size=1, max_size=4), VALUES, max_size=5), prefix=st.sampled_from("abc")
)
def test_values_are_those_that_the_gguf_package_reads(
    values: dict[str, object], prefix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("texts") / "a.gguf", values)
    data = path.read_bytes()
    found = read_values(lambda start, stop: data[start:stop], prefix)
    expected = {}
    for name, field in gguf.GGUFReader(path).fields.items():
        value = field.contents()
        if name.startswith(prefix) and len(field.types) < 3:  # no arrays of arrays
            expected[name] = value
    assert found == expected


def test_no_more_is_fetched_than_the_header_needs(tmp_path: Path) -> None:
    data = write(tmp_path / "a.gguf", {"tokens": ["x" * 40] * 60_000}).read_bytes()
    asked = []

    def fetch(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return data[start:stop]

    assert read_header(fetch) == data[: len(read_header(lambda start, stop: data[start:stop]))]
    assert asked == [(i * CHUNK, (i + 1) * CHUNK) for i in range(len(asked))]
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: b"GGML" + data[4:], "it is not a GGUF file"),
        (lambda data: data[:4] + bytes([9]) + data[5:], "it is GGUF of version 9; 2 and 3 are read"),
        (lambda data: data[:40], "its header is cut off"),
        (lambda data: b"", "its header is cut off"),
        (lambda data: data[:24] + bytes([1]) + bytes(7) + b"k" + bytes([77, 0, 0, 0]), "of the unknown type 77"),
    ],
)
def test_a_damaged_header_is_refused(damage: object, words: str, tmp_path: Path) -> None:
    assert callable(damage)
    data = damage(write(tmp_path / "a.gguf", {"a": 1}).read_bytes())
    with pytest.raises(ValueError, match=words):
        read_header(lambda start, stop: data[start:stop])
    (tmp_path / "damaged.gguf").write_bytes(data)
    if "cut off" not in words or not data:  # what is asked for may come before
        with pytest.raises(SourceError, match=f"cannot read .*damaged.gguf as GGUF .*{words}"):
            gguf_metadata(tmp_path / "damaged.gguf")


def test_a_file_without_a_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(SourceError, match=r"cannot read .*a.gguf as GGUF"):
        save_gguf_config(tmp_path, "a.gguf", tmp_path)
