from __future__ import annotations

from pathlib import Path

import pytest

from optimum_ishrink.edge.worker_process import WorkerProcess, run_worker
from optimum_ishrink.errors import SourceError


def test_an_error_has_the_reason_of_llama_cpp(tmp_path: Path, gguf_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf_path.read_bytes()[:2000])
    request = {
        "task": "measure",
        "model": str(broken),
        "threads": 1,
        "lengths": [],
        "new_tokens": 1,
        "vocabulary": 3,
        "context": 64,
    }
    with pytest.raises(SourceError, match=r"llama.cpp cannot run broken.gguf: .*failed to load model"):
        run_worker(request)
    with pytest.raises(SourceError, match=r"took more than 0.01 s with broken.gguf; it was killed"):
        run_worker(request, limit=0.01)
    request |= {"task": "predict", "model": str(gguf_path), "windows": [[1, 99999]], "predicted": 1, "candidates": 3}
    with pytest.raises(SourceError, match="llama.cpp refuses the request: Prompt contains invalid tokens"):
        run_worker({**request, "lines": []})


def test_a_process_answers_turn_by_turn_until_it_ends(gguf_path: Path) -> None:
    request = {"task": "measure", "model": str(gguf_path), "threads": 1, "lengths": [4, 8], "new_tokens": 2}
    with WorkerProcess({**request, "vocabulary": 300, "context": 64}) as worker:
        assert worker.first["load_seconds"] > 0 and "xllamacpp" in worker.first["build"]
        for length in (4, 8, 8, 4):
            found = worker.ask({"length": length})
            assert found["first"] > 0 and found["decode"] > 0
            assert found["processor"]["first"] > 0 and found["processor"]["decode"] > 0
        worker._process.kill()
        with pytest.raises(SourceError, match=r"llama.cpp cannot run .*gguf: its process was killed by signal 9"):
            worker.ask({"length": 4})
