"""What a shape costs on a runtime: seconds and memory as linear functions of what is read and computed.

Decoding a token reads every weight once, so its time is a sum over the types of matrices of their weights, each at its
type's price, with an amount for each layer and for each token, and attention, which each head pays for every token in
the KV cache. Reading a prompt multiplies every weight but the head's with every token. Memory is that of the weights,
which runtimes partly hold in a second layout, of the KV cache, and of buffers. The prices are fitted to
measurements of probe files with random weights: what is computed does not depend on the weights' values.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from ..planning.limits import DECODE, MEMORY, TTFT
from ..planning.memory import kv_cache_bytes
from ..planning.prices import attention
from .layout import Layout, Tensors
from .turns import Workload


def features(
    layout: Layout, shape: Mapping[str, int], types: Mapping[str, str], workload: Workload, tensors: Tensors
) -> dict[str, dict[str, float]]:
    """Return what each figure of a file is a linear function of.

    Args:
        layout: The base's file.
        shape: The sizes by config key.
        types: Name of the type of each matrix, by its name in the file.
        workload: What is timed.
        tensors: What `Layout.in_shape` gives for the shape.
    """
    sizes = layout.binding.resized(shape)
    layers, heads = float(sizes["layers"]), attention(sizes, workload.prompt, workload.new_tokens)
    tied = layout.head == layout.embedding
    decode: dict[str, float] = {"once": 1.0, "layers": layers, "attention": heads[DECODE]}
    prompt: dict[str, float] = {"once": 1.0, "layers": layers * workload.prompt, "attention": heads[TTFT]}
    memory: dict[str, float] = {"once": 1.0, "kv": float(kv_cache_bytes(layout.binding, shape, workload.context))}
    for tensor, dims in tensors:
        if not tensor.is_matrix:
            continue
        name, weights = types.get(tensor.name, tensor.type), float(prod(dims))
        memory[name] = memory.get(name, 0.0) + weights
        if tensor.name == layout.embedding and not tied:
            continue  # one of its rows is read for a token
        decode[name] = decode.get(name, 0.0) + weights
        if tensor.name != layout.head:
            prompt[name] = prompt.get(name, 0.0) + weights * workload.prompt
        else:
            prompt["head"] = weights
            memory["rows"] = float(dims[-1])
    return {DECODE: decode, TTFT: prompt, MEMORY: memory}
