"""The option that compiles what a recovery runs."""

from __future__ import annotations

from dataclasses import dataclass

from ..options.option import option
from ..options.run import RunOptions


@dataclass(frozen=True, kw_only=True, repr=False)
class CompileOptions(RunOptions):
    """Whether a recovery runs compiled layers."""

    torch_compile: bool = option(
        False,
        help="compile the layers of student and teacher for recovery with torch.compile",
        doc="Compile the layers of student and teacher with `torch.compile` while a recovery trains, as the option of "
        "this name of transformers' `TrainingArguments` does: a minute at the start, and fewer and longer kernels "
        "after it. The result is the same within rounding. It takes a C++ compiler, and on a GPU Triton. Scoring and "
        "sampling are not compiled: one reads what is inside of layers, the other reads one token at a time.",
    )
