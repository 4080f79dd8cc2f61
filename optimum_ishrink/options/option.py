"""One option in one place: a typed dataclass field with its default, help, allowed values and bounds."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

Kind = Literal["int", "float", "bool", "str", "strings", "ints", "floats"]
Place = Literal["text", "folder", "model", "teachers"]

_METADATA = "option"

_KNOWN: dict[type, Mapping[str, Option]] = {}


@dataclass(frozen=True)
class Spec:
    """The properties of an option besides its name, type and default.

    Args:
        help: One line for `--help`, without the default.
        doc: Full sentences for the reference page; `help` when empty.
        choices: The allowed values, or a function that returns them, for lists that are slow to load.
        check: Raises `RequestError` for a value that is not allowed. It is not called for the default.
        ge: Lowest allowed number.
        gt: The number has to be greater than this.
        lt: The number has to be less than this.
        le: Highest allowed number.
        metavar: Placeholder of the value in `--help`.
        flags: Other spellings of the flag.
        const: The value if the flag is given without one.
        default_help: The default in words, for defaults that depend on the model.
        path: What kind of local path the value can be: a `text` source, a `folder`, a `model` (folder or id), or
            `teachers` (models with weights). Local folders are removed from what is published.
        label: Name of a value of the option in messages; the option's name if None.
    """

    help: str
    doc: str = ""
    choices: Sequence[str] | Callable[[], Iterable[str]] | None = None
    check: Callable[[Any], object] | None = None
    ge: float | None = None
    gt: float | None = None
    lt: float | None = None
    le: float | None = None
    metavar: str | None = None
    flags: tuple[str, ...] = ()
    const: Any = None
    default_help: str | None = None
    path: Place | None = None
    label: str | None = None

    @property
    def allowed(self) -> tuple[str, ...] | None:
        """The allowed values, or None when `choices` does not limit them."""
        if self.choices is None:
            return None
        return tuple(self.choices() if callable(self.choices) else self.choices)


def option(
    default: T,
    *,
    help: str,
    doc: str = "",
    choices: Sequence[str] | Callable[[], Iterable[str]] | None = None,
    check: Callable[[Any], object] | None = None,
    ge: float | None = None,
    gt: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    metavar: str | None = None,
    flags: tuple[str, ...] = (),
    const: Any = None,
    default_help: str | None = None,
    path: Place | None = None,
    label: str | None = None,
) -> T:
    """Return the dataclass field of an option. Its type is the annotation of the field.

    Types are `int`, `float`, `bool`, `str`, and `Sequence` of `str`, `int` or `float`, each optionally `| None`. A
    `Sequence` also takes comma-separated text, and one of numbers also takes a single number.

    Args:
        default: The default, always valid.
        help: One line for `--help`, without the default.
        doc: Full sentences for the reference page; `help` when empty.
        choices: The allowed values, or a function that returns them.
        check: Raises `RequestError` for a value that is not allowed.
        ge: Lowest allowed number. Whole numbers have to be at least 1 unless this says otherwise.
        gt: The number has to be greater than this.
        lt: The number has to be less than this.
        le: Highest allowed number.
        metavar: Placeholder of the value in `--help`.
        flags: Other spellings of the flag.
        const: The value if the flag is given without one.
        default_help: The default in words.
        path: What kind of local path the value can be: a `text` source, a `folder`, a `model` (folder or id), or
            `teachers` (models with weights). Local folders are removed from what is published.
        label: Name of a value of the option in messages; the option's name if None.
    """
    spec = Spec(help, doc, choices, check, ge, gt, lt, le, metavar, flags, const, default_help, path, label)
    made: T = field(default=default, metadata={_METADATA: spec})
    return made


@dataclass(frozen=True)
class Option:
    """One option of an options class.

    Args:
        name: Its name: attribute, YAML key and key of `ishrink_config.json`.
        kind: Type of its value, or of the items of its value.
        optional: Whether None is allowed.
        default: Its default.
        spec: Everything else.
    """

    name: str
    kind: Kind
    optional: bool
    default: Any
    spec: Spec

    @property
    def flag(self) -> str:
        """Its flag. For a boolean that is true by default, the flag turns it off."""
        prefix = "--no-" if self.kind == "bool" and self.default else "--"
        return prefix + self.name.replace("_", "-")

    @property
    def label(self) -> str:
        """Name of one of its values in messages."""
        return self.spec.label or self.name.replace("_", " ")

    @property
    def text(self) -> str:
        """What it means, in whole sentences."""
        return self.spec.doc or f"{self.spec.help[0].upper()}{self.spec.help[1:]}."

    @property
    def default_text(self) -> str:
        """Its default for help and documentation."""
        if self.spec.default_help is not None:
            return self.spec.default_help
        if self.default is None or self.default == ():
            return "none"
        if isinstance(self.default, tuple):
            return ",".join(map(str, self.default))
        return str(self.default).lower() if isinstance(self.default, bool) else f"{self.default}"


def options_of(cls: type) -> Mapping[str, Option]:
    """Return the options of a class by name: first those it defines, then those of its bases, in definition order.

    Args:
        cls: A dataclass whose fields were made by `option`.
    """
    if cls in _KNOWN:
        return _KNOWN[cls]
    hints = get_type_hints(cls)
    by_name = {entry.name: entry for entry in fields(cls)}
    found: dict[str, Option] = {}
    for base in cls.__mro__:
        for name in inspect.get_annotations(base):
            entry = by_name.get(name)
            if entry is not None and _METADATA in entry.metadata and name not in found:
                kind, optional = _kind(hints[name])
                found[name] = Option(name, kind, optional, entry.default, entry.metadata[_METADATA])
    _KNOWN[cls] = found
    return found


def own_options(cls: type) -> Mapping[str, Option]:
    """Return the options that a class defines, without those of its bases.

    Args:
        cls: The options class.
    """
    names = inspect.get_annotations(cls)
    return {name: entry for name, entry in options_of(cls).items() if name in names}


def argument_lines(cls: type) -> str:
    """Return the options of a class as the `Args:` of its docstring, for `help()`.

    Args:
        cls: The options class.
    """
    return "\n".join(
        f"        {name}: {entry.text} Default: {entry.default_text}." for name, entry in options_of(cls).items()
    )


def _kind(hint: Any) -> tuple[Kind, bool]:
    """Return the kind of an annotation, and whether it allows None."""
    optional = False
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        optional, hint = len(parts) < len(get_args(hint)), parts[0]
    if get_origin(hint) is Literal:
        return "str", optional
    kinds: dict[Any, Kind] = {
        int: "int",
        float: "float",
        bool: "bool",
        str: "str",
        Sequence[str]: "strings",
        Sequence[int]: "ints",
        Sequence[float]: "floats",
    }
    if hint not in kinds:
        raise TypeError(f"an option cannot have the type {hint}")
    return kinds[hint], optional
