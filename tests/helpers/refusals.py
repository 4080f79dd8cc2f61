"""Requests that are refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from optimum_ishrink.cli.program import main


def refusal(words: Sequence[str], capsys: pytest.CaptureFixture[str], *, notes: bool = False) -> str:
    """Run a command that has to end with status 2 and one line on standard error, and return that line.

    Args:
        words: The command, from its verb on.
        capsys: pytest's fixture.
        notes: Whether notes and progress bars may precede the line.
    """
    capsys.readouterr()
    try:
        status = main(list(words))
    except SystemExit as leaving:  # argparse leaves by itself
        status = int(leaving.code or 0)
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert status == 2, (words, status, captured.err)
    assert captured.out == "", words
    assert lines and ": error: " in lines[-1], (words, captured.err)
    assert "Traceback" not in captured.err, words
    assert notes or len(lines) == 1, (words, captured.err)
    return lines[-1].split(": error: ", 1)[1]
