"""What an export holds of each parameter of a checkpoint: which type, and which values. Recovery trains for these."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..architectures.composite import check_alone
from ..architectures.model_class import meta_model
from ..checkpoint.source import Source
from ..checkpoint.tensors import DTYPES, read_tensor
from ..checkpoint.whole_gguf import check_whole
from ..errors import RequestError, ShapeError
from ..options.gguf_types import PLAIN_TYPES
from ..recovery.exported_weights import ExportedValues, Values
from .block_values import block_values, check_values
from .gguf_export import check_runs
from .gguf_quantizations import CONVERTER, GGUF_QUANTIZATIONS, TENSOR_TYPES, GgufQuantization, stored_as
from .gguf_tokenizer import find_gguf_tokenizer
from .linear_layers import check_columns, layers_to_quantize, linear_layers
from .rounded_matrices import find_rows
from .row_fallbacks import check_rows, matrices, width_hint
from .tensor_names import gguf_names
from .torch_quantizations import TORCH_QUANTIZATIONS, TORCHAO, TorchQuantization, check_library, resolve_group_size
from .write_gguf import check_tools, matrix_type, write_sixteen_bits
from .write_quantized import half_dtype, int4_scales

_CHECKED_ROWS = 16
"""Rows of a matrix of each type on which the `gguf` package is compared with what training reads."""


@dataclass(frozen=True)
class BlockValues:
    """What a GGUF file holds of a matrix.

    Args:
        matrix: The matrix's name in the file.
        type_name: Name of its type.
        through: The dtype that weights are rounded to on the way from the checkpoint's; None for none.
        transposed: Whether the model stores rows and columns exchanged.
    """

    matrix: str
    type_name: str
    through: torch.dtype | None = None
    transposed: bool = False

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """Return what the file gives back.

        Args:
            weight: The matrix, in the checkpoint's dtype and layout.
        """
        rows = weight.T if self.transposed else weight
        found = block_values(rows if self.through is None else rows.to(self.through), self.type_name)
        return found.T if self.transposed else found


def check_recovery_for(
    name: str, source: Source, shape: Mapping[str, int] | None = None, types: Path | None = None
) -> None:
    """Check that a checkpoint can be exported in a quantisation, before it is trained for it.

    Args:
        name: Name of the quantisation.
        source: The checkpoint, or the model that it is cut from.
        shape: The sizes that it is cut to, by config key; None for the checkpoint as it is.
        types: The file whose types matrices have, with `mixed`.

    Raises:
        RequestError: It cannot, or a tool is missing.
        SourceError: The file of types cannot be read.
        ShapeError: Rows of a matrix do not fit.
    """
    check_alone(
        source.raw_config,
        source.display_name,
        "rounding for an export",
        "leave out --recovery-for and --compensation-for",
    )
    if name in TORCH_QUANTIZATIONS:
        quantization = TORCH_QUANTIZATIONS[name]
        check_library(quantization)
        quantized = layers_to_quantize(linear_layers(source.config, source.binding), ())
        if shape is None:
            check_columns(quantized, resolve_group_size(quantization, None), source.binding)
        else:
            _check_groups(source, quantization, shape, {f"{linear.name}.weight" for linear in quantized})
        return
    if types is None:
        check_tools(GGUF_QUANTIZATIONS[name])
        check_rows(source.binding, GGUF_QUANTIZATIONS[name], shape)
    else:
        check_tools(_MIXED)
        read_types(types)
    check_runs(source)


_MIXED = GGUF_QUANTIZATIONS["q8_0"]
"""What writes a mixed file's matrices is asked for as for this one; each has a type of its own."""


def read_types(path: Path) -> dict[str, str]:
    """Return the types of the matrices of a GGUF file, by their names.

    Args:
        path: The file.

    Raises:
        SourceError: It is no GGUF file, or not whole.
        RequestError: A matrix has a type that cannot be trained for.
    """
    check_whole(path)
    import gguf

    found = {
        tensor.name: tensor.tensor_type.name.lower()
        for tensor in gguf.GGUFReader(path).tensors
        if len(tensor.shape) > 1 and tensor.tensor_type != gguf.GGMLQuantizationType.F32
    }
    for name, type_name in found.items():
        if type_name not in (*PLAIN_TYPES, "f16", "bf16"):
            raise RequestError(
                f"{path.name} has {name} in {type_name}, which another program writes and cannot be trained for; "
                f"name a file of {', '.join(PLAIN_TYPES)}"
            )
    return found


def _check_groups(source: Source, quantization: TorchQuantization, shape: Mapping[str, int], names: set[str]) -> None:
    """Check that the rows of a cut model's linear layers are multiples of a group."""
    group = resolve_group_size(quantization, None)
    kinds = {re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names}
    for found in matrices(source.binding, shape):
        if group is not None and found.name in kinds and found.row % group:
            hint = width_hint(found.counted_by, found.row, group, "recover for int8, which takes any width")
            raise ShapeError(
                f"{quantization.name} in groups of {group} needs rows that are multiples of {group}, and those of "
                f"{found.name} have {found.row:,} weights; {hint}"
            )


def exported_values(source: Source, name: str, types: Path | None = None) -> ExportedValues:
    """Return what an export of a checkpoint holds, in the types and with the defaults of `ishrink export`.

    Args:
        source: The checkpoint, of the shape that is exported.
        name: Name of the quantisation, which `check_recovery_for` has passed.
        types: The file whose types matrices have, with `mixed`.

    Raises:
        RequestError: A matrix is stored otherwise than the model has it, or the file of types is of another model.
        ShapeError: Rows of a matrix do not fit its type in that file.
        SourceError: llama.cpp's converter does not know the model or its tokenizer.
    """
    if name in TORCH_QUANTIZATIONS:
        values = _integer_values(source, TORCH_QUANTIZATIONS[name])
    else:
        own = None if types is None else read_types(types)
        values = _block_values(source, GGUF_QUANTIZATIONS.get(name, GGUF_QUANTIZATIONS["q4_0"]), own)
        if own is not None:
            return ExportedValues(name, values, _dtypes(source), own)
    return ExportedValues(name, values, _dtypes(source))


def _dtypes(source: Source) -> dict[str, torch.dtype]:
    """Return the dtype that each parameter is stored in. One that is stored in parts has that of its layer."""
    stored, bound = source.tensors, source.binding.in_memory
    of_layer = {tensor.layer: DTYPES[stored[name].dtype] for name, tensor in source.binding.tensors.items()}
    return {
        parameter: DTYPES[stored[tensor.name].dtype] if tensor.name in stored else of_layer[tensor.layer]
        for parameter, tensor in bound.items()
    }


def _block_values(
    source: Source, quantization: GgufQuantization, types: Mapping[str, str] | None
) -> dict[str, Values]:
    """Return what the GGUF file holds of each matrix; llama.cpp's converter says which those are."""
    import gguf

    tokenizer = find_gguf_tokenizer(source.folder, source.load_tokenizer(), None)
    found: dict[str, Values] = {}
    with tempfile.TemporaryDirectory(prefix="ishrink-recovery-") as folder:
        exact = Path(folder) / "exact.gguf"
        write_sixteen_bits(source.folder, exact, source.display_name, tokenizer)
        reader = gguf.GGUFReader(exact)
        architecture = str(reader.fields[gguf.Keys.General.ARCHITECTURE].contents())
        names = {translated: name for name, translated in gguf_names(source.binding, architecture).items()}
        parameters = dict(meta_model(source.config).named_parameters())
        checked: set[str] = set()
        for tensor in reader.tensors:
            if types is not None:
                _check_type(tensor, types)
            kind = matrix_type(tensor, {each.name for each in reader.tensors}, quantization, types or {})
            if kind is None:
                continue
            bound = source.binding.tensors.get(names.get(tensor.name, ""))
            half = torch.float16 if tensor.tensor_type == gguf.GGMLQuantizationType.F16 else torch.bfloat16
            rows = None if bound is None else read_tensor(source.tensors[bound.name])
            if rows is not None and bound is not None and bound.transposed:
                rows = rows.T
            if bound is None or rows is None or bound.parameter not in parameters or not _holds(tensor, rows.to(half)):
                raise RequestError(
                    f"llama.cpp stores {tensor.name} of {source.binding.description.model_type} otherwise than the "
                    f"model has it, so that recovery_for={quantization.name!r} cannot read what the file will hold; "
                    "recover without it, and export with --rounding calibrated"
                )
            type_name = kind.name.lower()
            if type_name not in checked:
                check_values(rows[:_CHECKED_ROWS].to(half), type_name)
                checked.add(type_name)
            # The converter quantises what the checkpoint stores; the `gguf` package, its file of 16 bits.
            through = None if quantization.written_by == CONVERTER else half
            found[bound.parameter] = BlockValues(tensor.name, type_name, through, bound.transposed)
    return found


def _check_type(tensor: Any, types: Mapping[str, str]) -> None:
    """Check that a file of types has one for a matrix, and that its rows fit it."""
    import gguf

    if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
        return
    row = int(tensor.shape[0])
    if tensor.name not in types:
        raise RequestError(
            f"the file of recovery_types has no matrix {tensor.name}: it is of another model; name a mixed export of "
            "the one that is trained"
        )
    if stored_as(row, TENSOR_TYPES[types[tensor.name]]).name != types[tensor.name]:
        raise ShapeError(
            f"the file of recovery_types has {tensor.name} in {types[tensor.name]}, and its rows of {row:,} weights "
            "are no multiple of 32; name a mixed export of the model that is trained"
        )


def _holds(tensor: Any, rows: torch.Tensor) -> bool:
    """Whether a matrix of a 16-bit file has these rows, in any order: rows are rounded one by one."""
    import gguf

    there = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).to(rows.dtype)
    return rows.ndim == 2 and find_rows(there, rows) is not None


def _integer_values(source: Source, quantization: TorchQuantization) -> dict[str, Values]:
    """Return what the quantised safetensors hold of each linear layer of the blocks."""
    half, group = half_dtype(source), resolve_group_size(quantization, None)
    of_rows: Values = partial(_of_rows, half=half)
    of_groups: Values = partial(_of_groups, half=half, group=group or 0)
    quantized = layers_to_quantize(linear_layers(source.config, source.binding), ())
    values = of_rows if quantization.library is TORCHAO else of_groups
    return {f"{linear.name}.weight": values for linear in quantized}


def _of_rows(weight: torch.Tensor, *, half: torch.dtype) -> torch.Tensor:
    """Return what torchao's int8 holds of a matrix: whole numbers times a scale for each row, float32."""
    from torchao.quantization import Int8Tensor, PerRow

    stored = Int8Tensor.from_hp(weight.to(half), granularity=PerRow())
    found: torch.Tensor = stored.qdata.float() * stored.scale.float()
    return found


def _of_groups(weight: torch.Tensor, *, half: torch.dtype, group: int) -> torch.Tensor:
    """Return what compressed-tensors' int4 holds of a matrix: whole numbers times a scale for each group."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    rows = weight.to(half)
    how = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=group, symmetric=True)
    scales = int4_scales(rows, group)
    found: torch.Tensor = fake_quantize(rows, scales, torch.zeros_like(scales, dtype=torch.int8), how)
    return found.float()
