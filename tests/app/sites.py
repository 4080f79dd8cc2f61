"""A site for tests: the built page, models.json and the parts of the models' files."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from tests.app.scripted import CONTEXT


def write_site(
    page: Path, models: Sequence[tuple[str, Path]], folder: Path, *, part: int = 1 << 16, **changes: Any
) -> Path:
    """Write a site of the models, each with its role, and return its folder. `changes` are made in every entry."""
    shutil.copytree(page, folder, dirs_exist_ok=True)
    entries = [{**_entry(role, path, folder, part), **changes} for role, path in models]
    site = {"schema": 1, "title": "small beside base", "models": entries, "probes": None}
    (folder / "models.json").write_text(json.dumps(site))
    return folder


def _entry(role: str, path: Path, folder: Path, part: int) -> dict[str, Any]:
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    place = Path("models") / sha256[:12]
    (folder / place).mkdir(parents=True, exist_ok=True)
    parts = []
    for index, start in enumerate(range(0, len(content), part)):
        piece = content[start : start + part]
        name = place / f"part-{index:03d}"
        (folder / name).write_bytes(piece)
        parts.append({"path": name.as_posix(), "bytes": len(piece), "sha256": hashlib.sha256(piece).hexdigest()})
    return {
        "role": role,
        "name": path.stem,
        "file": path.name,
        "bytes": len(content),
        "sha256": sha256,
        "parts": parts,
        "architecture": "llama",
        "quantization": "f32",
        "parameters": 100000,
        "context": _context(path),
        "vocabulary": 300,
        "kv_cache_bytes_per_token": 128,
        "chat_template": True,
        "template_sha256": "0" * 64,
        "generation": {"temperature": 0.2},
    }


def _context(path: Path) -> int:
    """Return the context that a file names; a damaged one names none."""
    from gguf import GGUFReader

    try:
        fields = GGUFReader(path).fields
    except ValueError:
        return CONTEXT
    return int(next(field.contents() for name, field in fields.items() if name.endswith(".context_length")))


class _Isolated(SimpleHTTPRequestHandler):
    extensions_map: ClassVar = {
        **SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class _Plain(_Isolated):
    def end_headers(self) -> None:
        SimpleHTTPRequestHandler.end_headers(self)


@contextmanager
def serve(folder: Path, *, isolated: bool = True) -> Iterator[str]:
    """Serve a folder on 127.0.0.1 and yield its address."""
    handler = functools.partial(_Isolated if isolated else _Plain, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
