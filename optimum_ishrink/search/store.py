"""What a search has measured so far, on disk: a search that was killed repeats nothing that was measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.durable import disk_errors, sync, write_whole
from ..core.progress import note
from ..errors import RequestError

_REQUEST, _MEASURED = "request.json", "measured.jsonl"

PROFILE = "profile.json"
"""What the device costs, where a search measured it itself."""

MEASUREMENTS = "measurements"
"""The folder in a search's output that holds what it measured."""

_SMALL = (_REQUEST, _MEASURED, PROFILE)


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
            _note_other(folder, found, wanted)
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


def save_measurements(folder: Path, target: Path) -> None:
    """Copy what a search measured: all that another budget needs but the models that were made.

    Args:
        folder: Where the search worked.
        target: The folder to write; it does not exist.
    """
    target.mkdir()
    for path in sorted(folder.iterdir()):
        if path.name in _SMALL or path.suffix == ".safetensors":
            shutil.copyfile(path, target / path.name)


def reuse_measurements(source: Path, folder: Path, request: Mapping[str, Any], *, asked: bool) -> None:
    """Copy what an earlier search measured to where a new one works, where both depend on the same.

    What an interrupted search of the same request left there has precedence.

    Args:
        source: The output folder of the earlier search.
        folder: Where the new one works.
        request: All that the new one's measurements depend on, as plain values.
        asked: Whether the user named the earlier search; otherwise one that does not fit is left alone.

    Raises:
        RequestError: The user named it, and it does not fit; the message says what differs.
    """
    wanted, place = json.loads(json.dumps(request)), source / MEASUREMENTS
    found = _read(place / _REQUEST)
    if found != wanted:
        if not asked:
            return
        if not isinstance(found, dict):
            raise RequestError(f"{source} holds no measurements of a search; name the output folder of one")
        raise RequestError(
            f"what was measured for {source} depends on other settings: {', '.join(_differences(found, wanted))} "
            "differ; give the same ones, or leave out --reuse"
        )
    there = _read(folder / _REQUEST)
    if there == wanted:
        return
    if there is not None:
        _note_other(folder, there, wanted)
    _empty(folder)
    with disk_errors(folder):
        for path in sorted(place.iterdir(), key=lambda each: each.name == _REQUEST):  # that makes the others valid
            shutil.copyfile(path, folder / path.name)
    note(f"using what was measured for {source}")


def _note_other(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Say that what is in a folder is of another request, and what differs."""
    changed = ", ".join(_differences(found, wanted))
    note(f"starting over: what is in {folder} is of another request ({changed} differ)")


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the names of settings that differ, those of `config` and `options` by their own names."""
    changed = []
    for key in sorted({*found, *wanted}):
        old, new = found.get(key), wanted.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            changed += [each for each in sorted({*old, *new}) if old.get(each) != new.get(each)]
        else:
            changed.append(key)
    return changed


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
