"""Options of a search: the budget, the runtime, the types to choose from, and how much is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..edge.mixed_types import MIXED_TYPES, TYPES_HELP, check_quantizations
from ..edge.options import CALIBRATED_ROUNDING, ROUNDINGS
from ..errors import RequestError
from ..options.base import Options
from ..options.option import option
from ..planning.limits import DECODE, EXAMPLES, TTFT, parse_families, parse_limits
from ..planning.profile_schema import TORCH
from ..planning.target import CONTEXT
from ..text.options import SOURCES
from .turns import Workload

DEFAULT_RUNTIME = "llama.cpp"

RUNTIMES = (DEFAULT_RUNTIME, TORCH)
"""llama.cpp runs GGUF files; torch stands for transformers, which runs safetensors checkpoints."""

TORCH_TYPES = ("bf16", "f16", "f32")
"""What a checkpoint's matrices can be stored in: torch runs it as it is."""


def _check_target(text: str) -> None:
    parse_families(text)


@dataclass(frozen=True, kw_only=True, repr=False)
class ProfileOptions(Options):
    """What is timed, and on what."""

    KIND = "option"

    runtime: str = option(
        DEFAULT_RUNTIME,
        choices=RUNTIMES,
        help="what will run the model: llama.cpp for GGUF files, torch for safetensors in transformers",
        doc="What will run the model: `llama.cpp`, which reads GGUF files, or `torch`, for safetensors in "
        "transformers on the device of the run.",
    )
    quantization: Sequence[str] | None = option(
        None,
        metavar="NAME[,NAME...]",
        help=f"{TYPES_HELP}; with torch its own dtype alone",
        doc="Types that matrices can have, each its own: `q8_0`, `q5_1`, `q5_0`, `q4_1`, `q4_0`; with llama.cpp's "
        "`llama-quantize` on the PATH also `q6_k`, `q5_k`, `q4_k`, `q3_k`, `q2_k`, `iq4_nl` and `iq4_xs`, where rows "
        "fit their blocks; `bf16` or `f16` for the checkpoint's own bits. Relative limits refer to the unpruned model "
        "in the first one. With the runtime `torch` the only one is the checkpoint's own dtype.",
        default_help=f"{','.join(MIXED_TYPES)}; the checkpoint's own with torch",
    )
    threads: int | None = option(None, metavar="N", help="threads for the runtime", default_help="physical cores")
    prompt_length: int = option(128, metavar="N", help="tokens of the timed prompt")
    context: int = option(
        CONTEXT, metavar="N", help="tokens that the KV cache has room for, in the memory that counts"
    )
    timing_rounds: int = option(5, metavar="N", help="turns of each timed file")

    @property
    def workload(self) -> Workload:
        """What is timed."""
        return Workload(prompt=self.prompt_length, context=self.context)

    def check_together(self) -> None:
        """Check that the runtime can run every type.

        Raises:
            RequestError: It cannot.
        """
        if self.quantization is None:
            return
        if self.runtime != TORCH:
            check_quantizations(self.quantization)
        elif len(self.quantization) != 1 or self.quantization[0].lower() not in TORCH_TYPES:
            raise RequestError(
                f"the runtime torch runs a checkpoint in its own dtype, one of {', '.join(TORCH_TYPES)}, not in "
                f"{', '.join(self.quantization)}: leave out --quantization; --runtime llama.cpp chooses among "
                "quantizations"
            )


@dataclass(frozen=True, kw_only=True, repr=False)
class SearchOptions(ProfileOptions):
    """What a search looks for, and how much it measures."""

    target: str = option(
        "bytes=-50%",
        check=_check_target,
        metavar="LIMIT[,LIMIT...]",
        help="the budget: bytes=80MB, memory=200MB, decode=+20%, ttft=-20%, params=-15%; several joined by commas; "
        "several budgets, for a family of models, joined by semicolons",
        doc="The budget: limits on `bytes` of the file or checkpoint, `memory`, `decode` (tokens per second), `ttft` "
        "(time to the first token) and `params`, absolute (`bytes=80MB`) or relative to the unpruned model in the "
        "first of `quantization` (`decode=+20%`), joined by commas. Several budgets joined by "
        "semicolons give a family.",
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
    rounding: str = option(
        CALIBRATED_ROUNDING,
        choices=ROUNDINGS,
        help="how weights are rounded to their types: calibrated, so that what matrices compute on the calibration "
        "text changes least, or to the nearest values; with torch nothing is rounded",
    )
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

    def check_together(self) -> None:
        """Check that the runtime can run every type, and rounds weights where that is asked.

        Raises:
            RequestError: It cannot.
        """
        super().check_together()
        if self.runtime == TORCH and self.rounding != CALIBRATED_ROUNDING:
            raise RequestError(
                "the runtime torch runs a checkpoint in its own dtype, and rounds no weight: leave out --rounding, "
                "or pass --runtime llama.cpp"
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
    context: int = option(
        CONTEXT, metavar="N", help="tokens that the KV cache has room for, in the memory that counts"
    )

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
    def workload(self) -> Workload:
        """What times are expected of."""
        return Workload(prompt=self.prompt_length, context=self.context)

    @property
    def budget(self) -> str:
        """The budget's text."""
        return self.target or SCENARIOS[self.scenario or "phone"][0]

    @property
    def types(self) -> tuple[str, ...]:
        """The types in lower case."""
        named = self.quantization or (SCENARIOS[self.scenario][1] if self.scenario else MIXED_TYPES)
        return tuple(name.lower() for name in named)
