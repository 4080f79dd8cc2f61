"""Model files in parts: plain pieces of the file in order, each with its hash. Memory is bounded by one chunk."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..errors import SourceError, VerificationError

MODELS = "models"
"""The folder of the parts in a site."""

_CHUNK = 2**20

_NAME_LENGTH = 12


@dataclass(frozen=True)
class Part:
    """A piece of a model file.

    Args:
        path: Where it is in the site.
        bytes: Its bytes.
        sha256: Its SHA-256.
    """

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class PartedFile:
    """A model file in parts.

    Args:
        sha256: SHA-256 of the whole file.
        parts: The parts in their order.
    """

    sha256: str
    parts: tuple[Part, ...]


def write_parts(source: Path, nbytes: int, site: Path, part_bytes: int) -> PartedFile:
    """Write a file's parts into a folder that is named by its hash.

    Args:
        source: The file.
        nbytes: Its bytes, as they were checked.
        site: The site's folder.
        part_bytes: Bytes of every part but the last.

    Raises:
        SourceError: The file changed in the meantime.
    """
    staging = site / MODELS / "partial"
    staging.mkdir(parents=True)
    whole = hashlib.sha256()
    sizes: list[int] = []
    hashes: list[str] = []
    with source.open("rb") as file:
        while chunk := file.read(min(_CHUNK, part_bytes)):
            number, found, size = len(sizes), hashlib.sha256(), 0
            with (staging / _name(number)).open("wb") as part:
                while chunk:
                    part.write(chunk)
                    found.update(chunk)
                    whole.update(chunk)
                    size += len(chunk)
                    chunk = file.read(min(_CHUNK, part_bytes - size)) if size < part_bytes else b""
            sizes.append(size)
            hashes.append(found.hexdigest())
    if sum(sizes) != nbytes:
        raise SourceError(f"{source} changed while it was read; run the same command again")
    digest = whole.hexdigest()
    folder = f"{MODELS}/{digest[:_NAME_LENGTH]}"
    if (site / folder).is_dir():  # base and shrunk model have the same bytes
        shutil.rmtree(staging)
    else:
        staging.rename(site / folder)
    parts = (
        Part(f"{folder}/{_name(number)}", size, found)
        for number, (size, found) in enumerate(zip(sizes, hashes, strict=True))
    )
    return PartedFile(digest, tuple(parts))


def verify_parts(site: Path, written: PartedFile) -> None:
    """Read parts again, and compare them with what was written.

    Args:
        site: The site's folder.
        written: What was written.

    Raises:
        VerificationError: They differ.
    """
    whole = hashlib.sha256()
    for part in written.parts:
        found, size = hashlib.sha256(), 0
        with (site / part.path).open("rb") as file:
            while chunk := file.read(_CHUNK):
                found.update(chunk)
                whole.update(chunk)
                size += len(chunk)
        if (size, found.hexdigest()) != (part.bytes, part.sha256):
            raise VerificationError(
                f"{part.path} does not read back as it was written; the disk or its file system fails: nothing was "
                "written, name a folder on another disk"
            )
    if whole.hexdigest() != written.sha256:
        raise VerificationError("the parts of a model are not the file that they were cut from; nothing was written")


def _name(number: int) -> str:
    return f"part-{number:03d}"
