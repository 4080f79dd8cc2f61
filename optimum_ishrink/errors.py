"""What can go wrong, as a tree.

    IShrinkError                   anything this package raises on purpose
    ├── RequestError               the request cannot be met; the message says what is allowed (exit status 2)
    │   ├── ArchitectureError      no description, or a model that its description does not account for
    │   ├── ShapeError             a shape or target that the model or its config class cannot express
    │   ├── SourceError            weights that cannot be used: missing, corrupt, pickled, quantised
    │   ├── DataError              calibration or evaluation text that cannot be used
    │   └── OutputError            the output folder cannot be written
    ├── VerificationError          the written checkpoint is not what was planned; nothing was kept
    ├── TrainingError              recovery stopped before its end; its last whole checkpoint is kept
    └── PublishError               the upload failed; the local folder is whole

Every message is one line that says what is wrong, what is allowed, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IShrinkError(Exception):
    """Base of every error that this package raises on purpose."""


class RequestError(IShrinkError, ValueError):
    """The request cannot be met as it was made."""


class ArchitectureError(RequestError):
    """The architecture has no description, or the model has parameters that the description does not cover."""


class ShapeError(RequestError):
    """The shape or target cannot be expressed by this model and its config class."""


class SourceError(RequestError):
    """The source holds no usable weights."""


class DataError(RequestError):
    """The text cannot be used for what it was given for."""


class OutputError(RequestError):
    """The output folder cannot be written."""


class VerificationError(IShrinkError):
    """The written checkpoint differs from what its config's model class expects."""


class TrainingError(IShrinkError):
    """Recovery stopped before its end; its last whole checkpoint is kept."""


class PublishError(IShrinkError):
    """The upload failed; the local folder is whole and can be pushed again."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the nearest allowed name, or an empty string when none is near.

    Args:
        name: What was typed.
        allowed: The names that exist.
    """
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Return the one-line message for a name that does not exist, with the nearest and all that do.

    Args:
        kind: What the name stands for, such as `"importance"`.
        name: What was typed.
        allowed: The names that exist.
    """
    names = sorted(allowed)
    return f"unknown {kind} {name!r}{did_you_mean(name, names)}; allowed: {', '.join(names)}"
