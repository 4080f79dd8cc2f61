"""The files that a site's server hands out: those that the site has when it starts, and no others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core.json_files import read_json
from ..errors import RequestError, SourceError
from .parts import MODELS
from .site import MODELS_FILE

INDEX = "index.html"

_UNSERVED = ("_headers", "README.md")
"""Files for hosts."""

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".wasm": "application/wasm",
    ".txt": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}
"""Content types by ending; browsers run no script and no WebAssembly of another type."""

_OTHER = "application/octet-stream"


@dataclass(frozen=True)
class ServedFile:
    """A file of a site.

    Args:
        path: The file.
        nbytes: Its bytes.
        kind: Its content type.
        tag: A name of its contents.
        immutable: Whether its address holds its hash.
        changed: When it was last changed, in nanoseconds.
    """

    path: Path
    nbytes: int
    kind: str
    tag: str
    immutable: bool
    changed: int

    @property
    def is_unchanged(self) -> bool:
        """Whether the file is still the one that the server began with."""
        try:
            now = self.path.stat()
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns) == (self.nbytes, self.changed)

    @property
    def is_page(self) -> bool:
        """Whether it is a page that people open."""
        return self.path.suffix == ".html"


def served_files(site: Path) -> dict[str, ServedFile]:
    """Return a site's files by the path of their address.

    Args:
        site: The site's folder.

    Raises:
        RequestError: It is not a site that `ishrink app` wrote.
        SourceError: Its list of models is damaged, or a file is missing.
    """
    if not ((site / MODELS_FILE).is_file() and (site / INDEX).is_file()):
        raise RequestError(
            f"{site} is not a site of `ishrink app`; name its folder with --output, or a model with --model to write "
            "one"
        )
    hashes = _hashes(site)
    for name in hashes:
        if not (site / name).is_file():
            raise SourceError(f"{site} lacks {name}; write the site again")
    found = {}
    for path in sorted(site.rglob("*")):
        name = path.relative_to(site).as_posix()
        # A link could lead anywhere.
        if not path.is_file() or path.is_symlink() or name in _UNSERVED:
            continue
        tag = hashes.get(name) or hashlib.sha256(path.read_bytes()).hexdigest()
        kind = _KINDS.get(path.suffix, _OTHER)
        now, immutable = path.stat(), name.startswith(f"{MODELS}/")
        found[f"/{name}"] = ServedFile(path, now.st_size, kind, tag[:32], immutable, now.st_mtime_ns)
    found["/"] = found[f"/{INDEX}"]
    return found


def _hashes(site: Path) -> Mapping[str, str]:
    """Return the hashes of the models' parts, which are too large to be read once more."""
    try:
        models = read_json(site / MODELS_FILE)["models"]
        return {str(part["path"]): str(part["sha256"]) for model in models for part in model["parts"]}
    except (KeyError, TypeError):
        raise SourceError(f"{site / MODELS_FILE} is damaged; write the site again") from None
