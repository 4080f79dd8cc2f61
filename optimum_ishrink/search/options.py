"""Options of a search: the budget, the runtime, the types to choose from, and how much is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..edge.mixed_types import MIXED_TYPES, TYPES_HELP, check_quantizations
from ..errors import RequestError
from ..options.base import Options
from ..options.option import option
from ..planning.limits import DECODE, EXAMPLES, TTFT, parse_families, parse_limits
from ..text.options import SOURCES

RUNTIMES = ("llama.cpp",)


def _check_target(text: str) -> None:
    parse_families(text)


@dataclass(frozen=True, kw_only=True, repr=False)
class ProfileOptions(Options):
    """What is timed, and on what."""

    KIND = "option"

    runtime: str = option("llama.cpp", choices=RUNTIMES, help="what will run the model")
    quantization: Sequence[str] = option(
        MIXED_TYPES,
        check=check_quantizations,
        metavar="NAME[,NAME...]",
        help=TYPES_HELP,
        doc="Types that matrices can have, each its own: `q8_0`, `q5_1`, `q5_0`, `q4_1`, `q4_0`; with llama.cpp's "
        "`llama-quantize` on the PATH also `q6_k`, `q5_k`, `q4_k`, `q3_k`, `q2_k`, `iq4_nl` and `iq4_xs`, where rows "
        "fit their blocks; `bf16` or `f16` for the checkpoint's own bits. Relative limits refer to the unpruned model "
        "in the first one.",
    )
    threads: int | None = option(None, metavar="N", help="threads for the runtime", default_help="physical cores")
    prompt_length: int = option(128, metavar="N", help="tokens of the timed prompt")
    context: int = option(2048, metavar="N", help="tokens that the KV cache has room for, in the memory that counts")
    timing_rounds: int = option(5, metavar="N", help="turns of each timed file")

    @property
    def types(self) -> tuple[str, ...]:
        """The types in lower case."""
        return tuple(name.lower() for name in self.quantization)


@dataclass(frozen=True, kw_only=True, repr=False)
class SearchOptions(ProfileOptions):
    """What a search looks for, and how much it measures."""

    target: str = option(
        "bytes=-50%",
        check=_check_target,
        metavar="LIMIT[,LIMIT...]",
        help="the budget: bytes=80MB, memory=200MB, decode=+20%, ttft=-20%, params=-15%; several joined by commas; "
        "several budgets, for a family of models, joined by semicolons",
        doc="The budget: limits on `bytes` of the file, `memory`, `decode` (tokens per second), `ttft` (time to the "
        "first token) and `params`, absolute (`bytes=80MB`) or relative to the unpruned model in the first of "
        "`quantization` (`decode=+20%`), joined by commas. Several budgets joined by semicolons give a family.",
    )
    candidates: int = option(
        4,
        metavar="N",
        help="models that are made and measured for each budget, at most",
        doc="Models that are made and measured for each budget, at most. Fewer are where the best expected one is "
        "the best measured one.",
    )
    search_text: Sequence[str] | None = option(
        None,
        metavar="SRC[,SRC...]",
        path="text",
        help=f"text to choose on: {SOURCES}",
        doc="Text sources to choose on. By default further windows of the calibration's sources.",
        default_help="further windows of the calibration text",
    )
    search_samples: int = option(8, metavar="N", help="windows of the text to choose on")
    search_length: int = option(128, ge=2, metavar="N", help="tokens in each of them")
    profile: str | None = option(
        None,
        metavar="FILE",
        help="costs of another device, as `ishrink profile` measured them there; without it this machine is measured",
        doc="Costs of another device, as `ishrink profile` measured them there. Without it this machine is measured.",
    )
    reuse: str | None = option(
        None,
        metavar="DIR",
        help="output of an earlier search of this model with the same settings, for another budget: nothing that it "
        "measured is measured again",
        doc="Output folder of an earlier search of this model with the same settings, for another budget: nothing "
        "that it measured is measured again. Where the output is the earlier one's, it is used without being named.",
        default_help="the output folder, with --overwrite",
    )
    max_time: float | None = option(
        None,
        gt=0,
        metavar="MINUTES",
        help="stop making candidates after so long, and take the best that was measured",
        default_help="no limit",
    )


SCENARIOS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "phone": ("bytes=100MB", ("q8_0", "q5_0", "q4_0")),
    "embedded": ("params=-30%", ("q4_0",)),
    "server": ("params=-15%", ("bf16",)),
}
"""Budgets of the field: a phone's app, a device with 4-bit kernels, and a server at the edge that runs 16 bits."""


@dataclass(frozen=True, kw_only=True, repr=False)
class AdviceOptions(Options):
    """What is asked of the advisor."""

    KIND = "option"

    target: str | None = option(
        None,
        check=_check_target,
        metavar="LIMIT[,LIMIT...]",
        help="the budget, as of search",
        default_help="that of the scenario",
    )
    scenario: str | None = option(
        None,
        choices=tuple(SCENARIOS),
        help="phone: under 100 MB; embedded: q4_0 and 30 % fewer parameters; server: 16 bits and 15 % fewer",
        doc="A budget of the field: `phone` (under 100 MB), `embedded` (q4_0 and 30 % fewer parameters) or `server` "
        "(16 bits and 15 % fewer parameters).",
    )
    quantization: Sequence[str] | None = option(
        None,
        check=check_quantizations,
        metavar="NAME[,NAME...]",
        help="types that matrices can have",
        default_help=",".join(MIXED_TYPES),
    )
    prompt_length: int = option(128, metavar="N", help="tokens of the prompt that times are expected of")
    context: int = option(2048, metavar="N", help="tokens that the KV cache has room for, in the memory that counts")

    def check_together(self) -> None:
        """Check that there is a budget.

        Raises:
            RequestError: There is none, or several.
        """
        if self.target is None and self.scenario is None:
            raise RequestError("name a budget, such as --target bytes=80MB, or a --scenario")
        if self.target is not None and len(parse_families(self.target)) > 1:
            raise RequestError("advise takes one budget; ask again for each further one")
        for limit in parse_limits(self.budget):
            if limit.value is not None and limit.metric in (DECODE, TTFT):
                raise RequestError(
                    f"advise knows no device, and so not what {limit.text} takes; ask for a change, such as "
                    f"{EXAMPLES[limit.metric].split()[0]}, or search, which measures"
                )

    @property
    def budget(self) -> str:
        """The budget's text."""
        return self.target or SCENARIOS[self.scenario or "phone"][0]

    @property
    def types(self) -> tuple[str, ...]:
        """The types in lower case."""
        named = self.quantization or (SCENARIOS[self.scenario][1] if self.scenario else MIXED_TYPES)
        return tuple(name.lower() for name in named)
