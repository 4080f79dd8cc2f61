"""Flags made from options: their names, types, placeholders and help are defined in the options alone."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from typing import Any

from ..options.option import Option, options_of, own_options

_TYPES: Mapping[str, Any] = {"int": int, "float": float}


def add_options(
    group: argparse.ArgumentParser | argparse._ArgumentGroup,
    cls: type,
    *,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    defaults: Mapping[str, str] | None = None,
    hide: Collection[str] = (),
) -> None:
    """Add a flag for each option that a class defines itself. A flag that is not given is None in the namespace.

    Args:
        group: Where the flags go.
        cls: The options class.
        only: Names of the options to add; all when None.
        without: Names of the options to leave out.
        defaults: Defaults in words that this verb shows instead of the option's own.
        hide: Other spellings of flags that this verb does not have.
    """
    for name, entry in own_options(cls).items():
        if (only is None or name in only) and name not in without:
            add_flag(group, entry, default=(defaults or {}).get(name), hide=hide)


def add_flag(
    group: argparse.ArgumentParser | argparse._ArgumentGroup,
    entry: Option,
    *,
    default: str | None = None,
    hide: Collection[str] = (),
) -> None:
    """Add the flag of one option.

    Args:
        group: Where it goes.
        entry: The option.
        default: The default in words; the option's own when None.
        hide: Other spellings that this verb does not have.
    """
    spec = entry.spec
    names = [*(flag for flag in spec.flags if flag not in hide), entry.flag]
    text = spec.help.replace("%", "%%")
    if entry.kind == "bool":
        group.add_argument(*names, dest=entry.name, action="store_const", const=not entry.default, help=text)
        return
    more: dict[str, Any] = {"nargs": "?", "const": spec.const} if spec.const is not None else {}
    group.add_argument(
        *names,
        dest=entry.name,
        type=_TYPES.get(entry.kind, str),
        metavar=spec.metavar,
        help=f"{text} (default: {(default or entry.default_text).replace('%', '%%')})",
        **more,
    )


def given(args: argparse.Namespace, cls: type) -> dict[str, Any]:
    """Return the options of a class that were given as flags, by name.

    Args:
        args: Parsed arguments.
        cls: The options class.
    """
    return {name: value for name in options_of(cls) if (value := getattr(args, name, None)) is not None}
