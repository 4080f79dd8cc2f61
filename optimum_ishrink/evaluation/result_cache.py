"""Results cached on disk, each with everything that it depends on, so that nothing is measured twice.

The cache has two purposes. An interrupted run resumes at the first text or task without a result, and a base that many
models are compared with is measured once.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.digest import as_json, digest
from ..core.json_files import read_json, without_non_finite, write_json
from ..errors import SourceError


@dataclass(frozen=True)
class ResultCache:
    """Cached results of one model.

    Args:
        folder: Folder of the cached results; None disables the cache.
    """

    folder: Path | None

    def read(self, key: Mapping[str, Any]) -> Any:
        """Return the result cached under this key, or None.

        A file that cannot be read, or that holds another key, is ignored.

        Args:
            key: Everything that the result depends on, as plain values; `kind` and `name` say what it is.
        """
        if self.folder is None:
            return None
        try:
            found = read_json(self._path(self.folder, key))
        except (SourceError, OSError):
            return None
        if not isinstance(found, dict) or found.get("key") != as_json(key):
            return None
        result = found.get("result")
        # A result with NaN or inf, from a version that stored such, is measured again, so that its cause is named.
        return result if without_non_finite(result) == result else None

    def write(self, key: Mapping[str, Any], result: Any) -> None:
        """Cache a result. A cache that cannot be written is not an error: the caller has the result anyway.

        Args:
            key: Everything that it depends on, as plain values; `kind` and `name` say what it is.
            result: The result, as plain values.
        """
        if self.folder is not None:
            with suppress(OSError):
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(self._path(self.folder, key), {"key": as_json(key), "result": result})

    def _path(self, folder: Path, key: Mapping[str, Any]) -> Path:
        return folder / f"{key['kind']}-{digest(as_json(key))}.json"


def result_folder(cache: Path, fingerprint: str) -> Path:
    """Return the folder of a model's cached results.

    Args:
        cache: The package's cache folder.
        fingerprint: Fingerprint of the model.
    """
    return cache / fingerprint / "results"
