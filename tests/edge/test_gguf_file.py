from __future__ import annotations

from pathlib import Path

import pytest

from optimum_ishrink.checkpoint.whole_gguf import check_is_gguf
from optimum_ishrink.edge.gguf_file import read_gguf
from optimum_ishrink.errors import SourceError


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"0123456789")
    with pytest.raises(SourceError, match="is not a GGUF file; name one, or a checkpoint folder"):
        check_is_gguf(path)
    with pytest.raises(SourceError, match="cannot read .*missing.gguf: No such file"):
        check_is_gguf(tmp_path / "missing.gguf")
    path.write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(SourceError, match="as GGUF"):
        read_gguf(path)
