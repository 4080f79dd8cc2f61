"""Options of sparsity: zeros in the matrices of the layers."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import RequestError
from ..options.option import option
from ..report.sparsity import SPARSITY_CRITERIA, parse_pattern
from ..text.options import CalibrationOptions


@dataclass(frozen=True, kw_only=True, repr=False)
class SparsityOptions(CalibrationOptions):
    """Whether weights of the layers' matrices become zero, and which."""

    sparsity: str | None = option(
        None,
        metavar="PATTERN",
        check=parse_pattern,
        help="zeros in the matrices of the layers: 2:4, 4:8, or a share such as 50%",
        doc="Zeros in the matrices of the layers: `2:4` and `4:8`, two of every four or four of every eight "
        "consecutive weights of a row, or a share such as `50%`, anywhere. It needs no target, and follows the cut "
        "and its repair where there is one. The files keep their size.",
        default_help="none",
    )
    sparsity_criterion: str = option(
        "sparsegpt",
        metavar="NAME",
        choices=SPARSITY_CRITERIA,
        help="which weights become zero: sparsegpt, wanda or magnitude",
        doc="Which weights become zero. `sparsegpt` takes those whose loss the other weights can best make up for, "
        "and updates these in closed form; `wanda` takes the least product of weight and input, `magnitude` the least "
        "weight. The first two read the calibration text.",
    )

    def check_together(self) -> None:
        """Check that a criterion has zeros to choose.

        Raises:
            RequestError: There are none.
        """
        if self.sparsity is None and self.sparsity_criterion != "sparsegpt":
            raise RequestError(
                f"sparsity_criterion={self.sparsity_criterion!r} chooses zeros, and none were requested; add "
                "sparsity, such as 2:4"
            )

    @property
    def sparsifies(self) -> bool:
        """Whether weights become zero."""
        return self.sparsity is not None

    @property
    def sparsity_reads_text(self) -> bool:
        """Whether the calibration text says which."""
        return self.sparsifies and self.sparsity_criterion != "magnitude"
