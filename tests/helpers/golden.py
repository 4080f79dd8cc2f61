"""What golden files hold, read from today's code."""

from __future__ import annotations

import argparse

from optimum_ishrink.cli.parser import Parser, add_verbs


def flags() -> dict[str, list[str]]:
    """The flags and arguments of every verb."""
    parser = Parser(prog="ishrink")
    add_verbs(parser)
    (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {
        name: sorted(word for action in verb._actions for word in (action.option_strings or [action.dest]))
        for name, verb in verbs.choices.items()
    }
