"""Exchanging two folders in one step, so that at no moment neither is at its place."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_CURRENT_FOLDER, _EXCHANGE = -100, 2
"""`AT_FDCWD` and `RENAME_EXCHANGE` of Linux."""


def exchange(first: Path, second: Path) -> bool:
    """Exchange two paths on one disk in one step.

    Args:
        first: An existing file or folder.
        second: Another one.

    Returns:
        Whether it was done; False where the system or the file system cannot, and nothing has changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a C library without it
        return False
    paths = [os.fsencode(path) for path in (first, second)]
    return bool(rename(_CURRENT_FOLDER, paths[0], _CURRENT_FOLDER, paths[1], _EXCHANGE) == 0)
