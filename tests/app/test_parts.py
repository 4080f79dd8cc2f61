from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.app.parts import verify_parts, write_parts
from optimum_ishrink.errors import SourceError, VerificationError


@given(st.binary(min_size=1, max_size=4000), st.integers(1, 1500))
def test_the_parts_joined_are_the_file(data: bytes, size: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        source, site = Path(place) / "a.gguf", Path(place) / "site"
        source.write_bytes(data)
        found = write_parts(source, len(data), site, size)
        assert b"".join((site / part.path).read_bytes() for part in found.parts) == data
        assert found.sha256 == hashlib.sha256(data).hexdigest()
        assert [part.bytes for part in found.parts[:-1]] == [size] * (len(found.parts) - 1)
        assert 1 <= found.parts[-1].bytes <= size
        for part in found.parts:
            assert part.sha256 == hashlib.sha256((site / part.path).read_bytes()).hexdigest()
            assert part.path.startswith(f"models/{found.sha256[:12]}/part-")
        verify_parts(site, found)
        # The same bytes once more, as of a base that is the shrunk model: one folder.
        assert write_parts(source, len(data), site, size) == found
        assert len(list((site / "models").iterdir())) == 1


def test_a_chunk_smaller_than_a_part(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000  # more than two chunks
    (tmp_path / "a.gguf").write_bytes(data)
    found = write_parts(tmp_path / "a.gguf", len(data), tmp_path / "site", 2_300_000)
    assert [part.bytes for part in found.parts] == [2_300_000, 260_000]
    verify_parts(tmp_path / "site", found)


def test_what_does_not_read_back(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(bytes(1000))
    found = write_parts(tmp_path / "a.gguf", 1000, tmp_path / "site", 300)
    part = tmp_path / "site" / found.parts[1].path
    part.write_bytes(bytes(299) + b"x")
    with pytest.raises(VerificationError, match="part-001 does not read back as it was written"):
        verify_parts(tmp_path / "site", found)
    part.write_bytes(bytes(300))
    with pytest.raises(VerificationError, match="are not the file that they were cut from"):
        verify_parts(tmp_path / "site", type(found)("0" * 64, found.parts))


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(bytes(1000))
    with pytest.raises(SourceError, match="changed while it was read; run the same command again"):
        write_parts(tmp_path / "a.gguf", 1001, tmp_path / "site", 300)
