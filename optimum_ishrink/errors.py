"""The tree of exceptions, and messages about unknown names.

    IShrinkError                   anything this package raises on purpose
    ├── RequestError               the request cannot be met; the message says what is allowed (exit status 2)
    │   ├── ArchitectureError      no description, or a model that its description does not account for
    │   ├── ShapeError             a shape or target that the model or its config class cannot express
    │   ├── SourceError            weights that cannot be used: missing, corrupt, pickled, quantised
    │   ├── DataError              calibration or evaluation text that cannot be used
    │   │   └── NotFiniteError     a model gives NaN or infinite values on it
    │   ├── OutputError            the output folder cannot be written
    │   └── DeviceMemoryError      the device cannot hold one window of what is to be computed
    ├── VerificationError          the written checkpoint is not what was planned; it was removed
    ├── TrainingError              recovery stopped early; its last complete checkpoint is on disk
    └── PublishError               the upload failed; the local folder is complete

Every message is one line that says what is wrong, what is allowed, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IShrinkError(Exception):
    """Base of every error that this package raises on purpose."""


class RequestError(IShrinkError, ValueError):
    """The request cannot be met."""


class ArchitectureError(RequestError):
    """The architecture has no description, or the model has parameters that the description does not cover."""


class ShapeError(RequestError):
    """The shape or target cannot be expressed by this model and its config class."""


class SourceError(RequestError):
    """The source holds no usable weights."""


class DataError(RequestError):
    """The text cannot be used for its purpose."""


class NotFiniteError(DataError):
    """A model gives NaN or infinite values, so that nothing can be computed from them."""


class OutputError(RequestError):
    """The output folder cannot be written."""


class DeviceMemoryError(RequestError):
    """The device cannot hold what is to be computed, however few windows run at once."""


class VerificationError(IShrinkError):
    """The written checkpoint differs from what its config's model class expects."""


class TrainingError(IShrinkError):
    """Recovery stopped early; its last complete checkpoint is on disk."""


class PublishError(IShrinkError):
    """The upload failed; the local folder is complete and can be pushed again."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return what a library's error says as one line, for a message that quotes it.

    Args:
        error: The error; one without a text is named by its class.
        limit: Characters after which the rest is left out, at the end of a word. 200 hold the sentence that matters of
            nearly every error seen, and keep a message in sight that may quote a whole file.
    """
    text = " ".join(str(error).split())
    if len(text) <= limit:
        return text or type(error).__name__
    start = text[: limit - 4]
    whole_words = start.rpartition(" ")[0]
    return (whole_words if len(whole_words) > limit // 2 else start) + " ..."


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the nearest allowed name, or an empty string when none is close.

    Args:
        name: What was typed.
        allowed: The names that exist.
    """
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Return the one-line message for an unknown name: it suggests the nearest name and lists all.

    Args:
        kind: What the name refers to, such as `"importance"`.
        name: What was typed.
        allowed: The names that exist.
    """
    names = sorted(allowed)
    return f"unknown {kind} {name!r}{did_you_mean(name, names)}; allowed: {', '.join(names)}"
