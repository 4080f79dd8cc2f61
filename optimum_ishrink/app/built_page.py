"""The built page: what `make app` puts into this package, and a wheel holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..core.json_files import read_json
from ..errors import RequestError, SourceError

PAGE = Path(__file__).parent / "page"

FACTS, LICENCES = "page.json", "licences.txt"

POLICY = "content_security_policy"

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; connect-src 'self'; "
    "style-src 'self'; img-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'"
)
"""What the page may load and run, where its own facts do not say: its own files alone."""


@dataclass(frozen=True)
class BuiltPage:
    """The built page.

    Args:
        folder: Its folder.
        version: The version of this package that it was built from.
        files: Its files, and the SHA-256 of those whose hash is known.
    """

    folder: Path
    version: str
    files: Mapping[str, str | None]

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum((self.folder / name).stat().st_size for name in self.files)

    def copy(self, site: Path) -> None:
        """Copy the page.

        Args:
            site: An existing folder.

        Raises:
            SourceError: A file is missing, or is not what was built.
        """
        for name, expected in self.files.items():
            try:
                data = (self.folder / name).read_bytes()
            except FileNotFoundError:
                raise SourceError(f"the built page lacks {name}: run make app again") from None
            if expected is not None and hashlib.sha256(data).hexdigest() != expected:
                raise SourceError(f"{name} of the built page is not the file that was built: run make app again")
            target = site / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def find_page() -> BuiltPage:
    """Return the built page.

    Raises:
        RequestError: It is not built.
        SourceError: Its list of files is damaged.
    """
    if not (PAGE / FACTS).is_file():
        raise RequestError("the page is not built: run make app in a clone, or install the wheel")
    facts = read_json(PAGE / FACTS)
    try:
        files: dict[str, str | None] = {_inside(each["path"]): str(each["sha256"]) for each in facts["files"]}
        version = str(facts["version"])
    except (KeyError, TypeError, ValueError):
        raise SourceError(f"{FACTS} of the built page is damaged: run make app again") from None
    files |= {name: None for name in (FACTS, LICENCES) if name not in files and (PAGE / name).is_file()}
    return BuiltPage(PAGE, version, files)


def security_policy(facts: Any) -> str:
    """Return the content security policy of a site.

    Args:
        facts: What its `page.json` holds.
    """
    found = facts.get(POLICY) if isinstance(facts, Mapping) else None
    return found if isinstance(found, str) and found.isprintable() else CONTENT_SECURITY_POLICY


def _inside(path: Any) -> str:
    """Return the path of a file in the page's folder.

    Raises:
        ValueError: It leads elsewhere.
    """
    place = PurePosixPath(path)
    if place.is_absolute() or ".." in place.parts or not place.parts:
        raise ValueError(path)
    return place.as_posix()
