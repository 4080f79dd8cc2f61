"""The tables of a model's zeros: in the terminal and, from the same rows, in the card."""

from __future__ import annotations

from ..core.table import Row
from .sparsity import SparsityPlan, SparsityRecord

SPARSITY_HEADER: Row = ("matrices", "n", "weights", "zeros", "change of their outputs")


def sparsity_rows(record: SparsityRecord) -> list[Row]:
    """Return (kind, count, weights, zeros, share of the outputs' energy that changed) for every kind of matrix.

    Args:
        record: The zeros.
    """
    return [
        (
            kind.name,
            f"{kind.count:,}",
            f"{kind.weights:,}",
            f"{kind.zeros / kind.weights:.2%}",
            "" if kind.error is None else f"{kind.error:.2%}",
        )
        for kind in record.kinds
    ]


PLANNED_HEADER: Row = ("matrices", "zeros")


def planned_rows(planned: SparsityPlan) -> list[Row]:
    """Return (kind, pattern or why it has none) for every kind of matrix.

    Args:
        planned: Which matrices get zeros.
    """
    covered: list[Row] = [(kind, planned.pattern) for kind in planned.matrices]
    return covered + [(kind, f"none: {reason}") for kind, reason in planned.skipped.items()]
