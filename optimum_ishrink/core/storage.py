"""Places at URLs of fsspec, such as `s3://bucket/model`.

URLs are written into reports and cards, so they hold no password.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..errors import IShrinkError, RequestError, SourceError, one_line
from .digest import digest

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True)
class Storage:
    """A place in a file system of fsspec.

    Args:
        files: The file system.
        path: The place, as the file system names it.
        shown: The URL, for messages, cards and reports.
    """

    files: Any
    path: str
    shown: str

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.shown.rpartition("/")[2]

    def inside(self, name: str) -> str:
        """Return the path of a file in it.

        Args:
            name: Its name, with `/` between folders.
        """
        return f"{self.path.rstrip('/')}/{name}"

    def make_folder_of(self, path: str) -> None:
        """Make the folder of a file, where the file system has folders.

        Object stores, whose paths begin with a bucket, have none; and some would make a bucket of a name that was
        mistyped.

        Args:
            path: The file's path.
        """
        if path.startswith("/") or urlsplit(self.shown).scheme in ("file", "local"):
            self.files.makedirs(path.rpartition("/")[0], exist_ok=True)

    def list_files(self, depth: int | None = None) -> dict[str, tuple[int, str]]:
        """Return the files in it, in folders too: their names, sizes in bytes, and keys that change with the contents.

        Args:
            depth: 1 for files of the place itself, 2 for those of its folders as well; None for all.

        Raises:
            SourceError: They cannot be listed.
        """
        with self.errors(SourceError, "cannot read"):
            self.files.invalidate_cache()
            found = self.files.find(self.path, maxdepth=depth, detail=True)
        start = len(self.path.rstrip("/")) + 1
        return {
            name[start:]: (int(info["size"]), digest({key: str(info[key]) for key in info.keys() - _read_times(info)}))
            for name, info in found.items()
        }

    @contextmanager
    def errors(self, kind: type[IShrinkError], what: str, hint: str = "") -> Iterator[None]:
        """Turn whatever a file system raises, of which each has its own kinds, into one line.

        Args:
            kind: What is raised.
            what: What went wrong; the URL and the file system's own words follow.
            hint: What to do next.

        Raises:
            IShrinkError: Of that kind.
        """
        try:
            yield
        except IShrinkError:
            raise
        except Exception as error:
            raise kind(f"{what} {self.shown}: {type(error).__name__}: {one_line(error)}{hint}") from None


def _read_times(info: Mapping[str, Any]) -> set[str]:
    """Return the keys of what a file system says of a file that change when the file is only read."""
    keys = {"atime", "accessTime", "last_accessed_on"}
    return keys | {"time"} if "mtime" in info else keys  # beside the time of a change it is that of the last reading


def is_url(name: object) -> bool:
    """Return whether a name is a URL rather than a path or a Hub id.

    Args:
        name: What a user named.
    """
    return isinstance(name, str) and _URL.match(name) is not None


def check_no_secret(name: str) -> None:
    """Check that a name is no URL with a password or a query, which may hold a token: names are written down.

    Args:
        name: What a user named.

    Raises:
        RequestError: It is; the message repeats neither.
    """
    parts = urlsplit(name) if is_url(name) else None
    if parts is not None and (parts.password is not None or parts.query):
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise RequestError(
            f"the URL of {shown} holds a password or a query, and names are written into reports; give credentials "
            "as the file system's package reads them, by the environment or its configuration file"
        )


def open_storage(url: str, kind: type[IShrinkError]) -> Storage:
    """Return the place that a URL names.

    Args:
        url: The URL.
        kind: What is raised.

    Raises:
        RequestError: The URL holds a password or a query.
        IShrinkError: Of that kind: it names nothing in the file system, no installed package knows the protocol, or
            the file system cannot be opened.
    """
    from fsspec import get_filesystem_class
    from fsspec.core import url_to_fs

    check_no_secret(url)
    shown = url.rstrip("/")
    if "::" in url:
        raise kind(
            f"{shown} chains file systems with ::, which is not supported; name one place, such as s3://bucket/x"
        )
    parts = urlsplit(url)
    if not (parts.netloc + parts.path).strip("/"):
        raise kind(f"{url} names no place; name a folder, such as s3://bucket/x")
    try:
        get_filesystem_class(parts.scheme)
    except ValueError:
        raise kind(
            f"{shown}: fsspec knows no {parts.scheme}; it knows s3, gs, abfs, hf, sftp, file and others"
        ) from None
    except ImportError as error:
        raise kind(f"{shown}: {one_line(error)} (pip install it)") from None
    with Storage(None, "", shown).errors(kind, "cannot open"):
        files, path = url_to_fs(url)
    return Storage(files, str(path), shown)
