"""Zeros in the matrices of the layers: which pattern, chosen how, and how many there are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..core.json_codec import rare_entry
from ..errors import RequestError

SPARSITY_CRITERIA = ("sparsegpt", "wanda", "magnitude")
"""How the weights that become zero are chosen."""

_GROUPS = {"2:4": (2, 4), "4:8": (4, 8)}
"""Patterns of groups: how many of how many consecutive weights of a row are zero."""

_SHARE = re.compile(r"(\d{1,2}(?:\.\d+)?)%")


@dataclass(frozen=True)
class Pattern:
    """Which weights may be zero.

    Args:
        share: Share of the weights that is zero, between 0 and 1.
        zeros: Zeros in every group; 0 where zeros may be anywhere.
        group: Consecutive weights of a row in a group; 0 where zeros may be anywhere.
    """

    share: float
    zeros: int = 0
    group: int = 0


def parse_pattern(text: str) -> Pattern:
    """Return the pattern that a text names.

    Args:
        text: `2:4` or `4:8`, that many zeros among that many consecutive weights of a row; or a share such as `50%`,
            anywhere.

    Raises:
        RequestError: It names none.
    """
    if text in _GROUPS:
        zeros, group = _GROUPS[text]
        return Pattern(zeros / group, zeros, group)
    found = _SHARE.fullmatch(text)
    share = float(found.group(1)) / 100 if found else 0.0
    if not 0 < share < 1:
        raise RequestError(f"unknown sparsity {text!r}; it can be {', '.join(_GROUPS)}, or a share such as 50%")
    return Pattern(share)


@dataclass(frozen=True)
class SparsityPlan:
    """Which matrices get zeros, and how they are chosen.

    Args:
        pattern: `2:4`, `4:8` or a share such as `50%`.
        criterion: How the weights that become zero are chosen.
        matrices: The kinds of matrices, by their names within a layer of a loaded model, `*` for an index.
        skipped: Tensors of the layers with two axes or more that get none, in the same way, and why.
    """

    pattern: str
    criterion: str
    matrices: tuple[str, ...]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class KindOfMatrix:
    """The matrices of one kind, over all layers and experts.

    Args:
        name: Their name within a layer.
        count: How many there are in the files.
        weights: Weights in all of them.
        zeros: How many of these are zero, counted in the files.
        error: Share of the energy of the matrices' outputs on the calibration text that the change makes up, before
            recovery, mean over matrices; None where the criterion reads no text, or only the size of inputs.
    """

    name: str
    count: int
    weights: int
    zeros: int
    error: float | None = rare_entry()


@dataclass(frozen=True)
class SparsityRecord:
    """The zeros of a checkpoint.

    Args:
        pattern: `2:4`, `4:8` or a share such as `50%`.
        criterion: How the weights that became zero were chosen.
        kinds: The matrices that have them, by kind.
    """

    pattern: str
    criterion: str
    kinds: tuple[KindOfMatrix, ...]

    @property
    def weights(self) -> int:
        """Weights in all of these matrices."""
        return sum(kind.weights for kind in self.kinds)

    @property
    def zeros(self) -> int:
        """How many of them are zero."""
        return sum(kind.zeros for kind in self.kinds)
