"""Tables and lines of `export`, and of `benchmark --runtime llama.cpp`."""

from __future__ import annotations

from ..core.table import Row
from ..edge.gguf_export import GgufExport
from ..edge.llama_cpp import LlamaCppBenchmark
from ..edge.quantized_export import QuantizedExport
from ..edge.row_fallbacks import FALLBACK_HEADER
from ..report.measurement import Measurement
from ..report.tables import speed_header, speed_rows
from .show import print_table, say


def show_export(found: GgufExport | QuantizedExport) -> None:
    """Print what an export is, and how to use it.

    Args:
        found: The export.
    """
    if isinstance(found, GgufExport):
        show_gguf_export(found)
    else:
        show_quantized_export(found)


def show_gguf_export(found: GgufExport) -> None:
    """Print what a GGUF export is, and how to time it.

    Args:
        found: The export.
    """
    bits = 8 * found.nbytes / found.params
    rows: list[Row] = [
        ("parameters", f"{found.params:,}"),
        ("file", f"{found.nbytes:,} bytes, {bits:.2f} bits a parameter"),
        ("architecture", found.architecture),
    ]
    agreement = found.agreement
    if agreement is not None:
        candidates = agreement.divergence.candidates
        merged = "" if agreement.coverage == 1 else f"; its {candidates:,} most likely tokens, all others as one"
        rows += _agreement_rows(agreement.divergence, agreement.top1, merged=merged, dtypes="in float32")
        rows.append(("tokenizer", f"{agreement.same_lines} of {agreement.lines} lines split as the checkpoint's does"))
    print_table(f"{found.model} as {found.quantization}", ("", ""), rows)
    if found.fallbacks:
        print_table(f"Rows that do not fit {found.quantization}", FALLBACK_HEADER, found.fallbacks)
    say(f"Written to {found.path}")
    say(f"Time it:  ishrink benchmark --runtime llama.cpp --model {found.path} --base BASE.gguf")


def show_quantized_export(found: QuantizedExport) -> None:
    """Print what an export for PyTorch is, and how to load it.

    Args:
        found: The export.
    """
    quantization = found.quantization
    meaning = quantization.meaning + (f" of {found.group_size}" if found.group_size else "")
    parts = ["embedding", "head", "norms"] + ["routers", "experts that are one matrix"] * found.has_experts
    layers = ", ".join(map(str, found.layers_in_16_bits))
    named = f", all of layer{'s' * (len(found.layers_in_16_bits) > 1)} {layers}" if layers else ""
    share, bits = found.quantized_params / found.params, 8 * found.nbytes / found.params
    rows: list[Row] = [
        ("parameters", f"{found.params:,}"),
        ("quantised", f"{found.quantized_params:,} ({share:.1%}): {meaning}"),
        ("left in 16 bits", f"{', '.join(parts)}{named}: {found.params - found.quantized_params:,}"),
        ("weight files", f"{found.nbytes:,} bytes, {bits:.2f} bits a parameter"),
        (
            "all in 16 bits",
            f"{found.nbytes_16_bit:,} bytes: the export is {found.nbytes / found.nbytes_16_bit:.3f} of that",
        ),
    ]
    if found.agreement is not None:
        rows += _agreement_rows(found.agreement.divergence, found.agreement.top1, dtypes="the checkpoint in float32")
    print_table(f"{found.model} as {quantization.name}", ("", ""), rows)
    say(f"Written to {found.path}")
    library = quantization.library.name
    say(f"Load it:  AutoModelForCausalLM.from_pretrained({found.path.name!r}), with {library} installed")


def show_llama_cpp(found: LlamaCppBenchmark) -> None:
    """Print timings in llama.cpp, and how they were measured.

    Args:
        found: The timings.
    """
    report = found.report
    print_table(f"{report.shrunk.name} in llama.cpp", speed_header(report), speed_rows(report))
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    for line in (f"{threads}, {found.build}", *found.notes):
        say(line)


def _agreement_rows(divergence: Measurement, top1: Measurement, *, merged: str = "", dtypes: str) -> list[Row]:
    """Return the rows of a comparison with the checkpoint.

    Args:
        divergence: KL divergence from the checkpoint's predictions.
        top1: Share of predictions whose most likely token is the same.
        merged: Which tokens count as one, if any do.
        dtypes: The dtypes that were compared.
    """
    where = f"{divergence.n} windows x {divergence.predicted} predictions of {divergence.dataset}"
    return [
        (
            "KL divergence from the checkpoint",
            f"{divergence.value:.5f} ± {divergence.stderr or 0:.5f} nats/token{merged}",
        ),
        ("top-1 agreement with it", f"{top1.value:.3f} ± {top1.stderr or 0:.3f}"),
        ("measured on", f"{where}, {dtypes}"),
    ]
