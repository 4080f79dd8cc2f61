"""The verb `export --format safetensors`: from parsed arguments to a quantised checkpoint and its table."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.source import Source
from ..core.output import check_not_inside, check_output, staged_folder
from ..core.table import Row, print_table
from ..errors import RequestError
from ..report.measurement import Measurement
from .agreement import agreement_rows, measure_checkpoints
from .gguf_verbs import print_line
from .linears import LinearLayer, check_columns, chosen_layers, linear_layers
from .quantize import half_dtype, read_quantized, write_quantized
from .schemes import Scheme, check_group_size, check_library, parse_scheme
from .unquantized_layers import kept_layers

DEFAULT_SCHEME = "int8"


@dataclass(frozen=True)
class Export:
    """What was written.

    Args:
        scheme: How linear layers were quantised.
        group_size: Weights that share a scale; None for whole rows.
        params: Parameters of the model.
        quantized_params: Those that are quantised.
        kept_layers: Layers that stay in 16 bits by request.
        nbytes: Bytes of the weight files.
        nbytes_16_bit: Bytes of all parameters in 16 bits.
        agreement: KL divergence from the checkpoint's predictions and top-1 agreement; None when not compared.
    """

    scheme: Scheme
    group_size: int | None
    params: int
    quantized_params: int
    kept_layers: tuple[int, ...]
    nbytes: int
    nbytes_16_bit: int
    agreement: tuple[Measurement, Measurement] | None


def export_checkpoint(args: Namespace, source: Source) -> Any:
    """Write a checkpoint with quantised linear layers, compare it with the original, and print what came of it.

    Args:
        args: Parsed arguments of `export`.
        source: The checkpoint.

    Raises:
        RequestError: The quantisation does not fit, its library is missing, or the folder cannot be written.
        VerificationError: What was written cannot be read again; nothing was kept.
    """
    scheme = parse_scheme(args.quantization or DEFAULT_SCHEME)
    output = Path(args.output)
    if output.suffix in (".gguf", ".safetensors"):
        raise RequestError(f"{output} is named like a file; name a folder, which gets config, tokenizer and weights")
    if args.threads is not None and args.threads < 1:
        raise RequestError(f"--threads must be 1 or more, not {args.threads}")
    group_size = check_group_size(scheme, args.group_size)
    check_output(output, args.overwrite)
    check_not_inside(output, [source.folder, *([Path(args.analysis)] if args.analysis else [])])
    check_library(scheme)
    binding = source.binding
    kept = kept_layers(binding, args.keep_layers, args.analysis, args.keep_share)
    linears = linear_layers(source.config, binding)
    chosen = chosen_layers(linears, kept)
    check_columns(chosen, group_size, binding)
    with staged_folder(output, overwrite=args.overwrite) as folder:
        write_quantized(source, scheme, group_size, linears, chosen, folder)
        found = _export(args, source, scheme, group_size, chosen, kept, folder)
    if not args.json:
        _print(source, found)
        print_line(f"Written to {output}")
        print_line(
            f"Load it:  AutoModelForCausalLM.from_pretrained({output.name!r}), with {scheme.library.name} installed"
        )
    return {"output": str(output), **_facts(found)}


def _export(
    args: Namespace,
    source: Source,
    scheme: Scheme,
    group_size: int | None,
    chosen: Sequence[LinearLayer],
    kept: tuple[int, ...],
    folder: Path,
) -> Export:
    """Measure what lies in the folder before it takes its place."""
    agreement = _verify(source, folder, args.threads) if args.verify else None
    if agreement is None:
        read_quantized(folder, half_dtype(source))
    params = source.binding.num_parameters()
    return Export(
        scheme,
        group_size,
        params,
        sum(linear.rows * linear.columns for linear in chosen),
        kept,
        sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        2 * params,
        agreement,
    )


def _verify(source: Source, folder: Path, threads: int | None) -> tuple[Measurement, Measurement]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return measure_checkpoints(
            lambda: source.load_model(torch.float32, torch.device("cpu")),
            lambda: read_quantized(folder, half_dtype(source)),
            source.load_tokenizer(),
        )
    finally:
        torch.set_num_threads(before)


def _facts(found: Export) -> dict[str, Any]:
    """Return what was written as plain values."""
    agreement = None
    if found.agreement is not None:
        agreement = dict(zip(("divergence", "top1"), map(asdict, found.agreement), strict=True))
    return {
        "params": found.params,
        "quantized_params": found.quantized_params,
        "bytes": found.nbytes,
        "bytes_16_bit": found.nbytes_16_bit,
        "quantization": found.scheme.name,
        "group_size": found.group_size,
        "library": found.scheme.library.name,
        "kept_layers": list(found.kept_layers),
        "agreement": agreement,
    }


def _print(source: Source, found: Export) -> None:
    share, sizes = found.quantized_params / found.params, source.binding.sizes
    how = found.scheme.meaning + (f" of {found.group_size}" if found.group_size else "")
    parts = ["embedding", "head", "norms"] + ["routers", "experts that are one matrix"] * ("experts" in sizes)
    layers = ", ".join(map(str, found.kept_layers))
    named = f", all of layer{'s' * (len(found.kept_layers) > 1)} {layers}" if layers else ""
    bits = 8 * found.nbytes / found.params
    rows: list[Row] = [
        ("parameters", f"{found.params:,}"),
        ("quantised", f"{found.quantized_params:,} ({share:.1%}): {how}"),
        ("kept in 16 bits", f"{', '.join(parts)}{named}: {found.params - found.quantized_params:,}"),
        ("weight files", f"{found.nbytes:,} bytes, {bits:.2f} bits a parameter"),
        (
            "in 16 bits",
            f"{found.nbytes_16_bit:,} bytes: the export is {found.nbytes / found.nbytes_16_bit:.3f} of that",
        ),
    ]
    if found.agreement is not None:
        rows += agreement_rows(*found.agreement, dtypes="the checkpoint in float32")
    print_table(f"{source.display_name} as {found.scheme.name}", ("", ""), rows)
