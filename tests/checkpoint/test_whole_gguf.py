from __future__ import annotations

from pathlib import Path

import pytest

from optimum_ishrink.checkpoint.whole_gguf import check_whole
from optimum_ishrink.errors import SourceError
from tests.helpers.app_site import write_tiny


def test_a_file_that_is_not_whole(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "a.gguf")
    check_whole(path)
    data = path.read_bytes()
    path.write_bytes(data[:-40])
    with pytest.raises(
        SourceError, match=rf"is cut short: its header tells of [\d,]+ bytes, and it has {len(data) - 40:,}"
    ):
        check_whole(path)
    path.write_bytes(data[:200])
    with pytest.raises(SourceError, match="its header is cut off.*download or export it again"):
        check_whole(path)
    path.write_bytes(data[:4] + (9).to_bytes(4, "little") + data[8:])
    with pytest.raises(SourceError, match="it is GGUF of version 9; 2 and 3 are read"):
        check_whole(path)


def test_a_type_that_is_not_known(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "a.gguf")
    data = path.read_bytes()
    name = b"blk.0.attn_q.weight"
    place = data.index(name) + len(name) + 4 + 16  # behind the number of its lengths, and the lengths
    path.write_bytes(data[:place] + (99).to_bytes(4, "little") + data[place + 4 :])
    with pytest.raises(SourceError, match=r"has blk\.0\.attn_q\.weight in the type number 99, which this"):
        check_whole(path)


def test_another_alignment(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "a.gguf", general__alignment=128)
    check_whole(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SourceError, match="is cut short"):
        check_whole(path)
