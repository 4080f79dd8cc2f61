"""Names to functions, one file each: a criterion is found because its file exists."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ..errors import RequestError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """The objects that the modules of one package registered, by name.

    The package's modules are imported at the first look-up, not before, so that a new file is enough to add a name.

    Args:
        kind: What the names stand for; it is used in error messages.
        package: Dotted name of the package whose modules register objects.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._objects: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files an object under `name`.

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
            RequestError: There is none; the message names the nearest and all that exist.
        """
        self._load()
        if name not in self._objects:
            raise RequestError(unknown_name(self.kind, name, self._objects))
        return self._objects[name]
