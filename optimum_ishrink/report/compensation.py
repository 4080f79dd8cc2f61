"""What compensation did to a cut checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.json_codec import rare_entry

COMPENSATIONS = ("none", "ridge")
"""The methods. Compensation and recovery both offer them."""


@dataclass(frozen=True)
class ProjectionRepair:
    """One projection that was re-fit, or tried.

    Args:
        name: Name of its weight in the new checkpoint.
        ridge: The ridge penalty with the lowest held-out error; None when the cut weight was better than every re-fit.
        error: Unexplained share of the target's energy on held-out text, after the cut.
        new_error: The same after the re-fit.
    """

    name: str
    ridge: float | None
    error: float
    new_error: float


@dataclass(frozen=True)
class CompensationRecord:
    """What compensation did.

    Args:
        method: `ridge`, or `none`.
        repairs: Every projection that was re-fit or tried, from the first layer to the last.
        rounded_for: Name of the type of GGUF that weights were rounded for afterwards; None for none.
    """

    method: str
    repairs: tuple[ProjectionRepair, ...] = ()
    rounded_for: str | None = rare_entry()
