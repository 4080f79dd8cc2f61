"""Options of exports and of timing in llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import RequestError
from ..options.base import Options
from ..options.gguf_types import PLAIN_TYPES
from ..options.option import option
from ..text.options import SOURCES
from .mixed_types import MIXED_TYPES, TYPES_HELP, check_quantizations

FORMATS = ("gguf", "safetensors")
NEAREST_ROUNDING, CALIBRATED_ROUNDING = ROUNDINGS = ("nearest", "calibrated")
RUNTIMES = ("pytorch", "llama.cpp")

EXPORT_QUANTIZATIONS = {"gguf": "f16", "safetensors": "int8"}
"""Default quantization of each format: the one that loses nothing, or least."""

BENCHMARK_QUANTIZATION = "q8_0"
"""What folders are exported as before llama.cpp times them: nearly lossless, and what people run."""

GROUP_SIZES = (32, 64, 128)
"""Weights that may share a scale in int4: the readers of the format have kernels for these. The first is the default:
it costs half a bit a weight more than the last and loses far less, and most 16-bit checkpoints have rows that are
multiples of 32."""

ANALYSIS_SHARE = 0.1
"""Share of the layers that stay in 16 bits with an analysis: a few layers carry most of the divergence."""

_SAFETENSORS_ONLY = ("group_size", "keep_layers", "analysis", "keep_share")


def _check_group_size(group_size: int) -> None:
    if group_size not in GROUP_SIZES:
        raise RequestError(f"group_size must be one of {', '.join(map(str, GROUP_SIZES))}, not {group_size}")


@dataclass(frozen=True, kw_only=True, repr=False)
class ExportOptions(Options):
    """What a checkpoint is exported as."""

    KIND = "option"

    format: str = option("gguf", choices=FORMATS, help="gguf for llama.cpp, safetensors for PyTorch")
    quantization: str | None = option(
        None,
        metavar="NAME",
        help="GGUF: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0; with llama.cpp's llama-quantize on the PATH also "
        "K-quants such as q4_k_m; mixed, with --target. safetensors: int8, int4, int8-dynamic",
        default_help=" or ".join(EXPORT_QUANTIZATIONS.values()),
    )
    target: str | None = option(
        None,
        metavar="LIMIT",
        help="mixed: the most bytes that the file may have, such as bytes=80MB",
        doc='With `quantization="mixed"`: the most bytes that the file may have, such as `bytes=80MB`. Every matrix '
        "gets its own of `types`, by what each costs in this model, measured on text that it samples.",
    )
    types: Sequence[str] | None = option(
        None,
        check=check_quantizations,
        metavar="NAME[,NAME...]",
        help=f"mixed: {TYPES_HELP}",
        doc='With `quantization="mixed"`: the types to choose from, as of `ishrink search --quantization`.',
        default_help=",".join(MIXED_TYPES),
    )
    rounding: str | None = option(
        None,
        choices=ROUNDINGS,
        help="GGUF: weights have the nearest values of their type; or calibrated: those that change least of what "
        "matrices compute on the calibration text",
        doc="How weights are rounded to a type of GGUF: to its `nearest` values, as llama.cpp does, or `calibrated`, "
        "so that what matrices compute on the calibration text changes least.",
        default_help="nearest; calibrated with mixed",
    )
    calibration: Sequence[str] | None = option(
        None,
        metavar="SRC[,SRC...]",
        path="text",
        help=f"mixed, or calibrated rounding: text to calibrate on: {SOURCES}",
        doc="With mixed types or calibrated rounding: text sources to calibrate on.",
        default_help="self",
    )
    verify: bool = option(
        True,
        help="do not compare the export's predictions with the checkpoint's",
        doc="Compare the export's predictions with the checkpoint's.",
    )
    pre_tokenizer: str | None = option(
        None,
        metavar="NAME",
        help="GGUF: what llama.cpp calls how a byte-level tokenizer splits text before its merges, such as llama-bpe; "
        "for one that its converter does not know",
        default_help="found by the tokenizer",
    )
    threads: int | None = option(None, metavar="N", help="threads to compare with", default_help="physical cores")
    group_size: int | None = option(
        None,
        check=_check_group_size,
        metavar="N",
        help=f"int4: weights that share a scale, {', '.join(map(str, GROUP_SIZES[:-1]))} or {GROUP_SIZES[-1]}",
        default_help=str(GROUP_SIZES[0]),
    )
    keep_layers: Sequence[int] | None = option(
        None,
        ge=0,
        metavar="N[,N...]",
        help="safetensors: layers that stay in 16 bits, from 0",
    )
    analysis: str | None = option(
        None,
        metavar="DIR",
        help="safetensors: output of analyze, whose most sensitive layers stay in 16 bits",
    )
    keep_share: float | None = option(
        None,
        gt=0,
        lt=1,
        metavar="S",
        help="share of the layers that stay in 16 bits with --analysis",
        default_help=f"{ANALYSIS_SHARE:g}",
    )

    def check_together(self) -> None:
        """Check that no option of another format is given, and that the share has an analysis to choose by.

        Raises:
            RequestError: One is, or it has none.
        """
        given = [name for name in _SAFETENSORS_ONLY if getattr(self, name) is not None]
        if self.format != "safetensors" and given:
            raise RequestError(f"--{given[0].replace('_', '-')} belongs to --format safetensors")
        if self.format != "gguf" and self.pre_tokenizer is not None:
            raise RequestError("--pre-tokenizer belongs to --format gguf")
        if (self.target is not None) != self.is_mixed or (self.is_mixed and self.format != "gguf"):
            raise RequestError(
                "--quantization mixed chooses a type for each matrix of a GGUF file under a budget, and needs one: "
                "--target bytes=80MB; other quantizations take none"
            )
        fits = self.format == "gguf" and self.quantization_name.lower() in PLAIN_TYPES
        if self.rounding == CALIBRATED_ROUNDING and not (fits or self.is_mixed):
            raise RequestError(
                f"--rounding calibrated rounds to {', '.join(PLAIN_TYPES)} of --format gguf, not to "
                f"{self.quantization_name}"
            )
        if self.calibration is not None and not (self.is_mixed or self.is_calibrated):
            raise RequestError("--calibration belongs to --rounding calibrated or --quantization mixed")
        if self.types is not None and not self.is_mixed:
            raise RequestError("--types belongs to --quantization mixed; name the one type with --quantization")
        if self.keep_share is not None and self.analysis is None:
            raise RequestError(
                "--keep-share sets how many of an analysis' layers stay in 16 bits; name the analysis with "
                "--analysis DIR"
            )

    @property
    def quantization_name(self) -> str:
        """The quantization, that of the format where none is given."""
        return self.quantization or EXPORT_QUANTIZATIONS[self.format]

    @property
    def is_mixed(self) -> bool:
        """Whether every matrix gets a type of its own."""
        return (self.quantization or "").lower() == "mixed"

    @property
    def is_calibrated(self) -> bool:
        """Whether weights are rounded for what matrices compute."""
        return (self.rounding or (CALIBRATED_ROUNDING if self.is_mixed else NEAREST_ROUNDING)) == CALIBRATED_ROUNDING

    @property
    def mixed_types(self) -> tuple[str, ...]:
        """The types that a mixed file is chosen from, in lower case."""
        return tuple(name.lower() for name in self.types or MIXED_TYPES)

    @property
    def analysis_share(self) -> float:
        """Share of the layers that stay in 16 bits because of the analysis."""
        return ANALYSIS_SHARE if self.keep_share is None else self.keep_share


@dataclass(frozen=True, kw_only=True, repr=False)
class RuntimeOptions(Options):
    """Where models are timed."""

    KIND = "option"

    runtime: str = option(
        "pytorch",
        choices=RUNTIMES,
        help="llama.cpp times GGUF files, or folders that it exports first, in fresh processes; by default with "
        "prompts of 64 and 256 tokens, 32 new ones, and 16 rounds",
    )
    quantization: str | None = option(
        None,
        metavar="NAME",
        help="what folders are exported as for llama.cpp",
        default_help=f"that of the other GGUF file, or {BENCHMARK_QUANTIZATION}",
    )
    threads: int | None = option(None, metavar="N", help="threads for llama.cpp", default_help="physical cores")

    def check_together(self) -> None:
        """Check that the options are those of the runtime.

        Raises:
            RequestError: `quantization` or `threads` is given for PyTorch, which reads neither.
        """
        if self.runtime == "pytorch" and (self.quantization or self.threads):
            raise RequestError(
                "quantization and threads are read by runtime='llama.cpp' alone; name it, or leave them out"
            )
