"""Exporting a checkpoint in the format that its options name."""

from __future__ import annotations

from pathlib import Path

from ..architectures.composite import check_alone
from ..checkpoint.source import Source
from .gguf_export import GgufExport, export_gguf
from .options import ExportOptions
from .quantized_export import QuantizedExport, export_quantized


def export(
    source: Source, options: ExportOptions, output: Path, overwrite: bool = False
) -> GgufExport | QuantizedExport:
    """Write a checkpoint as a GGUF file, or as a folder with quantised linear layers.

    Args:
        source: The checkpoint.
        options: What to export it as.
        output: The file or folder. It appears whole or not at all.
        overwrite: Replace what exists there.

    Raises:
        SourceError: The checkpoint or its tokenizer is damaged.
        RequestError: The request cannot be met; the message says what is allowed.
        VerificationError: The export does not agree with the checkpoint, or cannot be read; nothing was written.
    """
    check_alone(
        source.raw_config,
        source.display_name,
        "an export",
        "llama.cpp's own convert_hf_to_gguf.py converts the folder: its decoder, and with --mmproj its vision tower",
    )
    if options.format == "safetensors":
        return export_quantized(source, options, output, overwrite=overwrite)
    return export_gguf(source, options, output, overwrite=overwrite)
