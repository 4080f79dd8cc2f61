"""Exporting a quantised checkpoint for PyTorch, and comparing it with the original before it is written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.reopening import check_tokenizer
from ..checkpoint.source import Source
from ..core.output import check_not_inside, check_output, staged_folder
from ..errors import RequestError
from .agreement import CheckpointAgreement, measure_checkpoints
from .linear_layers import check_columns, layers_to_quantize, linear_layers
from .options import ExportOptions
from .recovered_for import note_recovered_for
from .torch_quantizations import TorchQuantization, check_library, parse_torch_quantization, resolve_group_size
from .unquantized_layers import layers_in_16_bits
from .write_quantized import half_dtype, read_quantized, write_quantized


@dataclass(frozen=True)
class QuantizedExport:
    """A checkpoint with quantised linear layers that was written.

    Args:
        path: The folder.
        model: Name of the original checkpoint.
        quantization: How linear layers were quantised.
        group_size: Weights that share a scale; None for whole rows.
        params: Parameters of the model.
        quantized_params: Those that are quantised.
        layers_in_16_bits: Layers that stay in 16 bits by request.
        has_experts: Whether the model has experts, whose routers stay in 16 bits.
        nbytes: Bytes of the weight files.
        nbytes_16_bit: Bytes of all parameters in 16 bits.
        agreement: How well it agrees with the original in float32; None when not compared.
    """

    path: Path
    model: str
    quantization: TorchQuantization
    group_size: int | None
    params: int
    quantized_params: int
    layers_in_16_bits: tuple[int, ...]
    has_experts: bool
    nbytes: int
    nbytes_16_bit: int
    agreement: CheckpointAgreement | None

    def to_json(self) -> dict[str, Any]:
        """Return the export as a JSON object."""
        return {
            "output": str(self.path),
            "params": self.params,
            "quantized_params": self.quantized_params,
            "bytes": self.nbytes,
            "bytes_16_bit": self.nbytes_16_bit,
            "quantization": self.quantization.name,
            "group_size": self.group_size,
            "library": self.quantization.library.name,
            "kept_layers": list(self.layers_in_16_bits),
            "agreement": None if self.agreement is None else asdict(self.agreement),
        }


def export_quantized(
    source: Source, options: ExportOptions, output: Path, *, overwrite: bool = False
) -> QuantizedExport:
    """Write a checkpoint with quantised linear layers, after comparing it with the original.

    Args:
        source: The checkpoint.
        options: What to export it as; its `format` is `safetensors`.
        output: The folder. It appears whole or not at all.
        overwrite: Replace an existing folder.

    Raises:
        RequestError: The quantisation does not fit, its library is missing, or the folder cannot be written.
        VerificationError: The export cannot be read again; nothing was written.
    """
    quantization = parse_torch_quantization(options.quantization_name)
    if output.suffix in (".gguf", ".safetensors"):
        raise RequestError(f"{output} is named like a file; name a folder, which gets config, tokenizer and weights")
    group_size = resolve_group_size(quantization, options.group_size)
    analysis = None if options.analysis is None else Path(options.analysis)
    check_output(output, overwrite)
    check_not_inside(output, [source.folder, *([] if analysis is None else [analysis])])
    check_library(quantization)
    source.check()
    source.load_tokenizer()
    binding = source.binding
    in_16_bits = layers_in_16_bits(binding, options.keep_layers or (), analysis, options.analysis_share)
    linears = linear_layers(source.config, binding)
    quantized = layers_to_quantize(linears, in_16_bits)
    check_columns(quantized, group_size, binding)
    note_recovered_for(source, options)
    params = binding.num_parameters()
    with staged_folder(output, overwrite=overwrite) as folder:
        write_quantized(source, quantization, group_size, linears, quantized, folder)
        check_tokenizer(folder, source.folder)
        if options.verify:
            agreement = _verify(source, folder, options.threads)
        else:
            agreement = None
            read_quantized(folder, half_dtype(source))
        nbytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return QuantizedExport(
        path=output,
        model=source.display_name,
        quantization=quantization,
        group_size=group_size,
        params=params,
        quantized_params=sum(linear.rows * linear.columns for linear in quantized),
        layers_in_16_bits=in_16_bits,
        has_experts="experts" in binding.sizes,
        nbytes=nbytes,
        nbytes_16_bit=2 * params,
        agreement=agreement,
    )


def _verify(source: Source, folder: Path, threads: int | None) -> CheckpointAgreement:
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
