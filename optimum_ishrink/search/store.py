"""What a search has measured so far, on disk: a search that was killed repeats nothing that was measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.durable import disk_errors, sync, write_whole
from ..core.progress import note

_REQUEST, _MEASURED = "request.json", "measured.jsonl"


class Store:
    """Measurements by name, each written as soon as it exists.

    Args:
        folder: Where they are stored; it is made if it does not exist.
        request: All that they depend on, as plain values. What is on disk is used only when its request is the same.
    """

    def __init__(self, folder: Path, request: Mapping[str, Any]) -> None:
        self.folder = folder
        self._values: dict[str, Any] = {}
        self.resumed = 0
        """Measurements that were there already."""
        wanted = json.loads(json.dumps(request))
        path = folder / _REQUEST
        found = _read(path)
        if found is not None and found != wanted:
            changed = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
            note(f"starting over: what is in {folder} is of another request ({', '.join(changed)} differ)")
        if found != wanted:
            _empty(folder)  # files and models that were made for another request, or left by a kill
            write_whole(path, json.dumps(wanted, indent=2).encode())
        else:
            self._load()
        self.resumed = len(self._values)

    def _load(self) -> None:
        path = self.folder / _MEASURED
        if not path.is_file():
            return
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the search was killed while it wrote this line
            self._values[entry["name"]] = entry["value"]

    def measured(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return a measurement: the stored one, or a new one that is stored.

        Args:
            name: Its name.
            measure: Measures it; returns plain values.

        Raises:
            OutputError: It cannot be stored.
        """
        if name not in self._values:
            self.add(name, measure())
        return self._values[name]

    def add(self, name: str, value: Any) -> None:
        """Store a measurement.

        Args:
            name: Its name.
            value: Plain values.

        Raises:
            OutputError: It cannot be stored.
        """
        line = json.dumps({"name": name, "value": value})
        path = self.folder / _MEASURED
        # A line that a killed search left unfinished is closed first.
        begin = "\n" if path.is_file() and path.stat().st_size and path.read_bytes()[-1:] != b"\n" else ""
        with disk_errors(path):
            with path.open("a", encoding="utf-8") as file:
                file.write(begin + line + "\n")
            sync(path)
        self._values[name] = json.loads(json.dumps(value))

    def value(self, name: str) -> Any:
        """Return a measurement that is there.

        Args:
            name: Its name.
        """
        return self._values[name]

    def has(self, name: str) -> bool:
        """Whether a measurement is there.

        Args:
            name: Its name.
        """
        return name in self._values


def _empty(folder: Path) -> None:
    """Remove all that a search left in its working folder."""
    if not folder.is_dir():
        return
    with disk_errors(folder):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
