"""The base of every options class: unknown names are errors, and every value is checked on construction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import RequestError, unknown_name
from .checks import clean
from .option import options_of

if TYPE_CHECKING:
    from typing_extensions import Self


class Options:
    """Base of frozen dataclasses whose fields are options.

    Subclasses are declared with `@dataclass(frozen=True, kw_only=True)`; one can inherit from several others and then
    has the options of all. A subclass checks combinations of values in `check_together`.
    """

    KIND: ClassVar[str] = "config key"
    """What messages call an option of this class."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse unknown names before the generated `__init__` does, and suggest the nearest name.

        Raises:
            RequestError: A name is unknown.
        """
        for name in kwargs:
            if name not in options_of(cls):
                raise RequestError(unknown_name(cls.KIND, name, options_of(cls)))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Check every value, then their combinations.

        Raises:
            RequestError: A value is not allowed; the message says which are.
        """
        for name, entry in options_of(type(self)).items():
            object.__setattr__(self, name, clean(entry, getattr(self, name)))
        for base in type(self).__mro__:
            if "check_together" in base.__dict__:
                base.__dict__["check_together"](self)

    def to_dict(self) -> dict[str, Any]:
        """Return all options as plain values: tuples become lists."""
        values = {name: getattr(self, name) for name in options_of(type(self))}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, as plain values."""
        entries = options_of(type(self))
        return {name: value for name, value in self.to_dict().items() if getattr(self, name) != entries[name].default}

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some values changed, checked again.

        Args:
            **changes: The new values by name.

        Raises:
            RequestError: A name is unknown or a value is not allowed.
        """
        return type(self)(**{**self._values(), **changes})

    def _values(self) -> Mapping[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}  # type: ignore[arg-type]

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self.to_diff_dict().items())
        return f"{type(self).__name__}({inner})"
