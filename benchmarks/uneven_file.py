"""A GGUF file whose layers differ in width: llama.cpp's `deci` graph, which reads sizes layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch

from optimum_ishrink.edge.gguf_file import header_values

SOURCE, TARGET = "llama", "deci"
"""The architecture whose file is rewritten, and the one that computes the same with sizes of each layer."""


def write_uneven(source: Path, weights: Mapping[str, torch.Tensor], output: Path) -> tuple[int, ...]:
    """Write a file with some matrices replaced, of any widths, and return the width of each layer.

    `deci` orders rows of queries and keys for the rotary embedding as `llama` does, so the other tensors are copied.

    Args:
        source: The unpruned model's file, of the architecture `SOURCE`.
        weights: The MLPs' matrices by their names in the file, shape (out, in); they are stored in the type of those
            that they replace.
        output: The new file.

    Raises:
        ValueError: The source is of another architecture, or has no matrix of that name.
    """
    reader = gguf.GGUFReader(source)
    values = {each.key: each for each in header_values(reader)}
    architecture = values[gguf.Keys.General.ARCHITECTURE].value
    if architecture != SOURCE:
        raise ValueError(f"{source} is of the architecture {architecture}, and only {SOURCE} is rewritten")
    if missing := weights.keys() - {tensor.name for tensor in reader.tensors}:
        raise ValueError(f"{source} has no {min(missing)}")
    layers = int(values[f"{SOURCE}.block_count"].value)
    whole = int(values[f"{SOURCE}.feed_forward_length"].value)
    gates = [weights.get(f"blk.{layer}.ffn_gate.weight") for layer in range(layers)]
    widths = tuple(whole if gate is None else gate.shape[0] for gate in gates)
    by_layer: dict[str, list[int]] = {f"{SOURCE}.feed_forward_length": list(widths)}
    for name in ("attention.head_count", "attention.head_count_kv"):
        by_layer[f"{SOURCE}.{name}"] = [int(values[f"{SOURCE}.{name}"].value)] * layers
    writer = gguf.GGUFWriter(output, TARGET)
    for key, each in values.items():
        name = key.replace(f"{SOURCE}.", f"{TARGET}.", 1) if key.startswith(f"{SOURCE}.") else key
        if key in by_layer:
            writer.add_key_value(name, by_layer[key], gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType.UINT32)
        elif key != gguf.Keys.General.ARCHITECTURE:  # the writer sets this itself
            writer.add_key_value(name, each.value, each.kind, sub_type=each.inner)
    for tensor in reader.tensors:
        weight = weights.get(tensor.name)
        writer.add_tensor(tensor.name, _stored(tensor, weight), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return widths


def _stored(tensor: Any, weight: torch.Tensor | None) -> Any:
    """Return a tensor's values as the file has them, the new ones where there are some."""
    if weight is None:
        return tensor.data
    return gguf.quants.quantize(weight.detach().float().numpy(), tensor.tensor_type)
