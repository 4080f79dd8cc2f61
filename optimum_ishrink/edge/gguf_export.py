"""Exporting a checkpoint as GGUF, and comparing it with the checkpoint before it is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..architectures.runtime_limits import ignored_window, layer_limit, model_limit, size_limit, unknown_to_converter
from ..checkpoint.source import Source
from ..core.output import check_output_file
from ..core.progress import note
from ..core.table import Row
from ..errors import RequestError, VerificationError
from ..report.files import PLAN_FILE
from .agreement import EXACT_LIMIT, Agreement, measure_agreements
from .gguf_file import read_gguf
from .gguf_quantizations import PROGRAM, GgufQuantization, parse_gguf_quantization
from .gguf_tokenizer import GgufTokenizer, find_gguf_tokenizer
from .llama_server import check_runtime, default_threads
from .options import ExportOptions
from .recovered_for import note_recovered_for
from .row_fallbacks import check_rows, fallback_rows
from .same_model import check_same_model
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
            "agreement": None if self.agreement is None else self.agreement.to_json(),
        }


def export_gguf(source: Source, options: ExportOptions, output: Path, *, overwrite: bool = False) -> GgufExport:
    """Write a checkpoint as GGUF, after comparing it in llama.cpp with the checkpoint in transformers.

    Args:
        source: The checkpoint.
        options: What to export it as; its `format` is `gguf`.
        output: The file, which ends in `.gguf`. It appears whole or not at all.
        overwrite: Replace an existing file.

    Raises:
        RequestError: The quantisation does not fit, a tool is missing, llama.cpp would run the model otherwise, or the
            file cannot be written.
        SourceError: Nothing says what llama.cpp calls the tokenizer's pre-tokenizer.
        VerificationError: The predictions of the file, or of the 16 bits that it is quantised from, differ from the
            checkpoint's; the quantised file is not the model of those; or its tokens differ where the tokenizer is not
            one that the converter knows. Nothing was written.
    """
    quantization = _quantization(options)
    check_export(options, quantization, output, overwrite=overwrite)
    source.check()
    opened = source.load_tokenizer()  # the converter takes long to say that it is damaged
    check_rows(source.binding, quantization)
    check_runs(source)
    note_recovered_for(source, options)
    ignored = ignored_window(source.binding.description.model_type, source.config)
    if ignored is not None:
        note(f"{ignored}; up to there they are compared")
    tokenizer = find_gguf_tokenizer(source.folder, opened, options.pre_tokenizer)
    agreements: list[Agreement] = []

    def check(path: Path, exact: Path) -> None:
        agreements.append(verify_file(source, opened, path, exact, tokenizer, options.threads))

    name, checked = source.display_name, check if options.verify else None
    write_gguf(source.folder, quantization, output, name=name, tokenizer=tokenizer, overwrite=overwrite, check=checked)
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


def check_export(
    options: ExportOptions, quantization: GgufQuantization, output: Path, *, overwrite: bool = False
) -> None:
    """Check the output file, and that the tools are installed that write and compare it.

    Args:
        options: Whether it is compared.
        quantization: What it is written as.
        output: The file.
        overwrite: Replace an existing file.

    Raises:
        RequestError: A tool is missing, or the file's name is another kind's.
        OutputError: The file exists or cannot be written.
    """
    check_output_file(output, overwrite)
    if output.suffix != ".gguf":
        raise RequestError(f"{output} does not end in .gguf, which llama.cpp's programs look for; name such a file")
    check_tools(quantization)
    if options.verify:
        try:
            check_runtime()
        except RequestError as error:
            raise RequestError(f"{error}; or pass --no-verify to export without comparing") from None


def check_runs(source: Source) -> None:
    """Check that llama.cpp runs a checkpoint as transformers does, as far as its config tells.

    What layers are is checked in every checkpoint: those of published models are where llama.cpp takes them to be. The
    rest is checked in those that were cut. A model that llama.cpp runs without its sliding windows, as published, can
    be exported as it is. An architecture that the package does not describe is the converter's to judge.

    Args:
        source: The checkpoint.

    Raises:
        RequestError: It does not; the message names the config key.
    """
    binding, config = source.binding, source.config
    model_type = binding.description.model_type
    missing = unknown_to_converter(model_type)
    if missing is not None:
        raise RequestError(f"{missing}; run this model in PyTorch, or shrink a model of another family")
    reason = layer_limit(model_type, config)
    if (source.folder / PLAN_FILE).is_file():
        reason = reason or model_limit(model_type, config) or size_limit(model_type, config, binding.sizes)
    if reason is not None:
        raise RequestError(
            f"{reason}; run this model in PyTorch, or cut its base with --for-runtime llama.cpp, which plans what "
            "llama.cpp runs"
        )


def _quantization(options: ExportOptions) -> GgufQuantization:
    name = options.quantization_name
    if name.lower() in TORCH_QUANTIZATIONS:
        raise RequestError(
            f"{name.lower()} is a quantization of safetensors: pass --format safetensors, or choose one of GGUF, "
            "such as q8_0"
        )
    return parse_gguf_quantization(name)


def verify_file(
    source: Source, opened: Any, path: Path, exact: Path, tokenizer: GgufTokenizer, threads: int | None = None
) -> Agreement:
    """Compare a file with its checkpoint, a quantised one by way of the checkpoint in 16 bits, which must equal it.

    Args:
        source: The checkpoint.
        opened: Its tokenizer.
        path: The file.
        exact: The file of 16 bits that it was quantised from, or the same file.
        tokenizer: What the converter was told.
        threads: Threads for llama.cpp; the physical cores by default.

    Raises:
        VerificationError: The predictions of the 16 bits differ from the checkpoint's, the quantised file is not the
            model of those, or its tokens differ where the tokenizer is not one that the converter knows.
    """
    paths = [exact] if path == exact else [exact, path]
    if len(paths) > 1:
        check_same_model(exact, path)
    model = source.load_model(torch.float32, torch.device("cpu"))
    found = measure_agreements(model, opened, paths, threads=threads or default_threads())
    check_lines(found[-1], tokenizer)
    divergence = found[0].divergence.value
    if not divergence < EXACT_LIMIT:
        where = "" if len(paths) == 1 else " before it is quantised"
        raise VerificationError(
            "llama.cpp's predictions differ from those of transformers: the KL divergence is "
            f"{divergence:.4f} nats/token in {read_gguf(exact).quantization}{where}, where it should be below "
            f"{EXACT_LIMIT}; nothing was written. Pass --no-verify to write the file anyway"
        )
    return found[-1]


def check_lines(found: Agreement, tokenizer: GgufTokenizer) -> None:
    """Check that llama.cpp splits lines of text into the checkpoint's tokens, where it was told how to.

    Tokenizers that the converter knows are published ones; their differences are reported, not refused.

    Args:
        found: What was compared.
        tokenizer: What the converter was told.

    Raises:
        VerificationError: It does not.
    """
    different = [line for line in found.different if not tokenizer.may_differ(line)]
    if tokenizer.is_own and different:
        told = "" if tokenizer.pre_tokenizer is None else f" as {tokenizer.pre_tokenizer}"
        raise VerificationError(
            f"llama.cpp splits {len(different)} of {found.lines} lines{told} into other tokens than transformers, "
            f"the first {different[0][:40]!r}; nothing was written. Name its pre-tokenizer with --pre-tokenizer, or "
            "pass --no-verify to write the file anyway"
        )
