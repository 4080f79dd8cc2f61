"""The teachers of a recovery as people write them: one, or several with the weights of their predictions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ..core.storage import check_no_secret
from ..errors import RequestError


@dataclass(frozen=True)
class NamedTeacher:
    """One teacher.

    Args:
        name: Hub id or folder.
        weight: Its share of the mixture of all teachers; they add up to 1.
    """

    name: str
    weight: float = 1.0


def parse_teachers(text: str) -> tuple[NamedTeacher, ...]:
    """Parse the teachers of a recovery.

    Args:
        text: A Hub id or folder, or several joined by commas: `A,B`, or with weights `A:0.7,B:0.3`. A path that exists
            is one teacher, whatever characters it has.

    Raises:
        RequestError: A name is empty or a URL with a password, a weight is not a positive number, or some teachers
            have one and others do not.
    """
    if _exists(text):
        return (NamedTeacher(text),)
    found: list[tuple[str, float | None]] = []
    for part in text.split(","):
        name, weight = _parts(part.strip())
        if not name:
            raise RequestError(f"recovery_teacher {text!r} has a teacher without a name; write A,B or A:0.7,B:0.3")
        check_no_secret(name)
        found.append((name, weight))
    weights = [weight for _, weight in found if weight is not None]
    if not weights:
        return tuple(NamedTeacher(name, 1 / len(found)) for name, _ in found)
    if len(weights) < len(found):
        bare = next(name for name, weight in found if weight is None)
        raise RequestError(
            f"teacher {bare!r} has no weight, and others have; give all of them one, or none: A:0.7,B:0.3"
        )
    return tuple(NamedTeacher(name, weight / sum(weights)) for name, weight in found if weight is not None)


def without_folders(text: str) -> str:
    """Return the same teachers, local ones without the folders that they are in.

    Args:
        text: What `parse_teachers` takes.
    """
    if _exists(text):
        return Path(text).expanduser().resolve().name
    parts = []
    for part in text.split(","):
        name, weight = _parts(part.strip())
        known = Path(name).expanduser().resolve().name if name and _exists(name) else name
        parts.append(known + part.strip()[len(name) :] if weight is not None else known)
    return ",".join(parts)


def describe_teachers(named: tuple[NamedTeacher, ...], names: tuple[str, ...]) -> str:
    """Return teachers in words, for reports: `A and B`, or `0.7 A + 0.3 B` where they have different weights.

    Args:
        named: The teachers.
        names: What reports call each.
    """
    if len({teacher.weight for teacher in named}) == 1:
        return " and ".join(names)
    return " + ".join(f"{teacher.weight:.3g} {name}" for teacher, name in zip(named, names, strict=True))


def _exists(text: str) -> bool:
    return bool(text) and Path(text).expanduser().exists()


def _parts(part: str) -> tuple[str, float | None]:
    """Return a teacher's name and weight; None where it has none."""
    name, colon, weight_text = part.rpartition(":")
    if not colon or weight_text.startswith("//") or _exists(part):  # a URL has a colon of its own
        return part, None
    try:
        weight = float(weight_text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise RequestError(
            f"the weight of teacher {name!r} must be a positive number, not {weight_text!r}: {name}:0.5"
        )
    return name.strip(), weight
