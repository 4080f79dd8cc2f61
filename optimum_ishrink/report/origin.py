"""Where a shrunk model comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Origin:
    """Where a shrunk model comes from, as its card presents it.

    Args:
        base_model: Hub id of the base, or None when it has none.
        license: The base's licence, or None when unknown.
        license_details: `license_name` and `license_link` of a licence that the Hub has no identifier for.
        languages: The base's languages, as its card lists them.
        notes: What was done to the base first, such as dequantization.
        command: The command lines that make the same model, one per line, with file names instead of paths.
    """

    base_model: str | None = None
    license: str | None = None
    license_details: Mapping[str, str] = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    command: str = ""
