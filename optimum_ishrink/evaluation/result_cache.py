"""Results kept on disk, each with everything that it depends on: what was measured once is not measured again.

One cache serves two ends. A run that was interrupted goes on at the first text or task without a result, and a base
that many models are compared with is measured once.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.digest import digest, plain
from ..core.json_files import read_json, write_json
from ..errors import SourceError


@dataclass(frozen=True)
class ResultCache:
    """Results of one model.

    Args:
        folder: Where they are kept; None keeps and gives none.
    """

    folder: Path | None

    def read(self, key: Mapping[str, Any]) -> Any:
        """Return the result that was kept with this key, or None.

        A file that cannot be read, or that holds another key, counts as none.

        Args:
            key: Everything that the result depends on, as plain values; `kind` and `name` say what it is.
        """
        if self.folder is None:
            return None
        try:
            found = read_json(self._path(self.folder, key))
        except (SourceError, OSError):
            return None
        return found.get("result") if isinstance(found, dict) and found.get("key") == plain(key) else None

    def write(self, key: Mapping[str, Any], result: Any) -> None:
        """Keep a result. A cache that cannot be written to is no error: the result is there all the same.

        Args:
            key: Everything that it depends on, as plain values; `kind` and `name` say what it is.
            result: The result, as plain values.
        """
        if self.folder is not None:
            with suppress(OSError):
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(self._path(self.folder, key), {"key": plain(key), "result": result})

    def _path(self, folder: Path, key: Mapping[str, Any]) -> Path:
        return folder / f"{key['kind']}-{digest(plain(key))}.json"


def result_folder(cache: Path, fingerprint: str) -> Path:
    """Return where a model's results are kept.

    Args:
        cache: The package's cache folder.
        fingerprint: The model's.
    """
    return cache / fingerprint / "results"
