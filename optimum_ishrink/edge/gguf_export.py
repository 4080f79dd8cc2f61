"""Exporting a checkpoint as GGUF, and comparing it with the checkpoint before it is written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.source import Source
from ..core.output import check_output_file
from ..core.table import Row
from ..errors import RequestError, VerificationError
from .agreement import EXACT_LIMIT, Agreement, measure_agreement
from .gguf_file import read_gguf
from .gguf_quantizations import PROGRAM, GgufQuantization, parse_gguf_quantization
from .llama_server import check_runtime, default_threads
from .options import ExportOptions
from .row_fallbacks import check_rows, fallback_rows
from .torch_quantizations import TORCH_QUANTIZATIONS
from .write_gguf import check_tools, write_gguf


@dataclass(frozen=True)
class GgufExport:
    """A GGUF file that was written.

    Args:
        path: The file.
        model: Name of the checkpoint.
        params: Weights in all tensors.
        nbytes: Bytes of the file.
        quantization: Name of its quantisation.
        architecture: Its architecture, as llama.cpp names it.
        agreement: How well llama.cpp agrees with the checkpoint in transformers; None when not compared.
        fallbacks: Rows of a table, under `row_fallbacks.FALLBACK_HEADER`, of the matrices that do not fit the
            quantisation.
    """

    path: Path
    model: str
    params: int
    nbytes: int
    quantization: str
    architecture: str
    agreement: Agreement | None
    fallbacks: tuple[Row, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the export as a JSON object."""
        return {
            "output": str(self.path),
            "params": self.params,
            "bytes": self.nbytes,
            "quantization": self.quantization,
            "agreement": None if self.agreement is None else asdict(self.agreement),
        }


def export_gguf(source: Source, options: ExportOptions, output: Path, *, overwrite: bool = False) -> GgufExport:
    """Write a checkpoint as GGUF, after comparing it in llama.cpp with the checkpoint in transformers.

    Args:
        source: The checkpoint.
        options: What to export it as; its `format` is `gguf`.
        output: The file, which ends in `.gguf`. It appears whole or not at all.
        overwrite: Replace an existing file.

    Raises:
        RequestError: The quantisation does not fit, a tool is missing, or the file cannot be written.
        VerificationError: The file's predictions differ from the checkpoint's; nothing was written.
    """
    quantization = _quantization(options)
    check_output_file(output, overwrite)
    if output.suffix != ".gguf":
        raise RequestError(f"{output} does not end in .gguf, which llama.cpp's programs look for; name such a file")
    check_tools(quantization)
    if options.verify:
        try:
            check_runtime()
        except RequestError as error:
            raise RequestError(f"{error}; or pass --no-verify to export without comparing") from None
    check_rows(source.binding, quantization)
    agreements: list[Agreement] = []

    def check(path: Path) -> None:
        if options.verify:
            agreements.append(_verify(source, path, quantization, options.threads or default_threads()))

    name = source.display_name
    write_gguf(source.folder, quantization, output, name=name, overwrite=overwrite, check=check)
    file = read_gguf(output)
    binding = source.binding
    return GgufExport(
        path=output,
        model=name,
        params=file.params,
        nbytes=file.nbytes,
        quantization=quantization.name,
        architecture=file.architecture,
        agreement=agreements[0] if agreements else None,
        fallbacks=tuple(fallback_rows(binding, binding.shape, quantization.tensor_type))
        if quantization.written_by == PROGRAM
        else (),
    )


def _quantization(options: ExportOptions) -> GgufQuantization:
    name = options.quantization_name
    if name.lower() in TORCH_QUANTIZATIONS:
        raise RequestError(
            f"{name.lower()} is a quantization of safetensors: pass --format safetensors, or choose one of GGUF, "
            "such as q8_0"
        )
    return parse_gguf_quantization(name)


def _verify(source: Source, path: Path, quantization: GgufQuantization, threads: int) -> Agreement:
    model = source.load_model(torch.float32, torch.device("cpu"))
    found = measure_agreement(model, source.load_tokenizer(), path, threads=threads)
    if quantization.is_exact and not found.divergence.value < EXACT_LIMIT:
        raise VerificationError(
            "llama.cpp's predictions differ from those of transformers: the KL divergence is "
            f"{found.divergence.value:.4f} nats/token in {quantization.name}, where it should be below {EXACT_LIMIT}; "
            "nothing was written. Pass --no-verify to write the file anyway"
        )
    return found
