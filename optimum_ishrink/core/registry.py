"""A registry of named functions, one file each: adding a criterion or a loss means adding its file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ..errors import RequestError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """The objects that the modules of one package registered, by name.

    The package's modules are imported at the first look-up, so that a new file is enough to add a name.

    Args:
        kind: What the names refer to, for error messages.
        package: Dotted name of the package whose modules register objects.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._objects: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers an object under `name`.

        Raises:
            ValueError: The name is taken.
        """

        def add(entry: T) -> T:
            if name in self._objects:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._objects[name] = entry
            return entry

        return add

    def _load(self) -> None:
        if not self._loaded:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
            self._loaded = True

    def names(self) -> list[str]:
        """Return all names in alphabetical order."""
        self._load()
        return sorted(self._objects)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __getitem__(self, name: str) -> T:
        """Return the object of that name.

        Raises:
            RequestError: The name is unknown; the message suggests the nearest name and lists all.
        """
        self._load()
        if name not in self._objects:
            raise RequestError(unknown_name(self.kind, name, self._objects))
        return self._objects[name]
