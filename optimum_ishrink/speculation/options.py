"""Options of a draft: which shapes are tried, what runs them, and on what they are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..edge.gguf_quantizations import parse_gguf_quantization
from ..edge.options import BENCHMARK_QUANTIZATION
from ..errors import RequestError
from ..options.base import Options
from ..options.option import option
from ..planning.limits import DECODE, parse_limits
from ..text.options import SOURCES

RUNTIMES = ("pytorch", "llama.cpp")
DTYPES = ("bfloat16", "float32")

DRAFT_QUANTIZATION = "q4_0"
"""A draft's errors cost time and no quality, so its file is as small as the plain types go."""

LAYER_SHARES = (1 / 6, 1 / 3, 1 / 2, 5 / 6)
"""Depths that are tried, as shares of the base's layers. Depth first: a draft's step waits for its layers one after
another, so few wide ones take less time than many narrow ones of the same size."""

WIDTH_SHARES = (1.0, 0.5)
"""Widths of the MLP that are tried at each depth, as shares of the base's."""


def _check_target(text: str) -> None:
    speed_of(text)


def speed_of(text: str) -> float:
    """Return the decode speed that a target asks for, relative to the base alone: 1.3 for `decode=+30%`.

    Args:
        text: The target.

    Raises:
        RequestError: It is not one relative limit on the decode speed.
    """
    limits = parse_limits(text)
    limit = limits[0]
    if len(limits) != 1 or limit.metric != DECODE or limit.change is None:
        raise RequestError(
            f"a draft has one target, its speed beside the base alone, such as decode=+30%, not {text!r}"
        )
    return 1 + limit.change


@dataclass(frozen=True, kw_only=True, repr=False)
class DraftOptions(Options):
    """Which drafts are tried, what runs them, and on what they are measured."""

    KIND = "option"

    target: str | None = option(
        None,
        check=_check_target,
        metavar="decode=+N%",
        help="the speed to reach beside the base alone, such as decode=+30%; where no draft does, nothing is written",
        doc="The decode speed to reach, relative to the base alone, such as `decode=+30%`. Where no draft reaches it, "
        "nothing is written, and the message has the nearest.",
        default_help="the fastest, whatever its speed",
    )
    draft_layers: Sequence[int] | None = option(
        None,
        metavar="N[,N...]",
        help="depths to try",
        doc="Depths to try, in layers.",
        default_help="a sixth, a third, a half and five sixths of the base's",
    )
    draft_intermediate_size: Sequence[int] | None = option(
        None,
        metavar="N[,N...]",
        help="MLP widths to try at each depth",
        default_help="the base's, and half of it",
    )
    candidates: int = option(
        2,
        metavar="N",
        help="drafts that are recovered and timed, the best expected ones",
        doc="Drafts that are recovered, where that is asked, and timed: those that are expected to be the fastest as "
        "they were cut. Recovery helps the smallest most, so name the shape with `draft_layers` where one is trained.",
    )
    draft_model: Sequence[str] | None = option(
        None,
        metavar="M[,M...]",
        help="make nothing: measure these models as drafts",
        doc="Make nothing: measure these models, by Hub id or folder, as drafts of the model.",
        default_help="drafts are made",
    )
    early_exit: Sequence[int] | None = option(
        None,
        metavar="N[,N...]",
        help="make nothing: measure the model's own first N layers as drafts (assistant_early_exit of transformers)",
        doc="Make nothing: measure the model's own first layers as drafts, as `assistant_early_exit` of transformers "
        "runs them. They have to be trained for it: `recovery_early_exit`.",
        default_help="drafts are made",
    )
    runtime: str = option("pytorch", choices=RUNTIMES, help="what runs both models")
    draft_dtype: str | None = option(
        None,
        choices=DTYPES,
        help="PyTorch: dtype of drafts; the base alone decides what is written, so they may have fewer bits",
        default_help="the base's",
    )
    quantization: str | None = option(
        None,
        check=parse_gguf_quantization,
        metavar="NAME",
        help="llama.cpp: what the base is exported as",
        default_help=BENCHMARK_QUANTIZATION,
    )
    draft_quantization: str | None = option(
        None,
        check=parse_gguf_quantization,
        metavar="NAME",
        help="llama.cpp: what drafts are exported as",
        default_help=DRAFT_QUANTIZATION,
    )
    threads: int | None = option(None, metavar="N", help="threads for llama.cpp", default_help="physical cores")
    draft_text: Sequence[str] | None = option(
        None,
        metavar="SRC[,SRC...]",
        path="text",
        help=f"text that prompts are taken from: {SOURCES}",
        doc="Text sources that prompts are taken from. By default Python's reference topics, which every machine has. "
        "Acceptance depends on the text: measure on what the model will write about.",
        default_help="Python's reference topics",
    )
    draft_prompts: int = option(6, metavar="N", help="prompts that the base continues")
    prompt_length: int = option(64, ge=2, metavar="N", help="tokens of each prompt")
    new_tokens: int = option(64, ge=16, metavar="N", help="tokens decoded after each prompt, at most")
    rounds: int = option(
        12,
        metavar="N",
        help="measured rounds, one prompt each; at least 9 are needed to find a difference",
        doc="Measured rounds, one prompt each, in which the base alone and every draft have two turns.",
    )

    def check_together(self) -> None:
        """Check that the options fit each other and the runtime.

        Raises:
            RequestError: They do not.
        """
        if self.early_exit is not None and self.draft_model is not None:
            raise RequestError("--early-exit and --draft-model both name what drafts; give one of them")
        if self.measures_only and (self.draft_layers is not None or self.draft_intermediate_size is not None):
            raise RequestError(
                "--draft-layers and --draft-intermediate-size are shapes to make, and --early-exit and --draft-model "
                "make nothing; leave them out"
            )
        if self.runtime == "pytorch":
            given = [name for name in ("quantization", "draft_quantization", "threads") if getattr(self, name)]
            if given:
                raise RequestError(
                    f"--{given[0].replace('_', '-')} belongs to --runtime llama.cpp; name it, or leave the option out"
                )
        elif self.early_exit is not None:
            raise RequestError("llama.cpp has no early exit: measure --early-exit with --runtime pytorch")
        elif self.draft_dtype is not None:
            raise RequestError(
                "--draft-dtype belongs to --runtime pytorch; llama.cpp reads files: name --draft-quantization"
            )
        if self.early_exit is not None and self.draft_dtype is not None:
            raise RequestError("an early exit runs in the model's own dtype; leave out --draft-dtype")

    @property
    def measures_only(self) -> bool:
        """Whether no draft is made."""
        return self.early_exit is not None or self.draft_model is not None

    @property
    def wanted_speed(self) -> float | None:
        """The speed that is asked for, relative to the base alone; None for the fastest."""
        return None if self.target is None else speed_of(self.target)
