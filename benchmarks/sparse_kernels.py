"""What zeros in a pattern of 2:4 are worth to a matrix product, with PyTorch's kernels for them.

    python benchmarks/sparse_kernels.py [--model FOLDER] [--tokens 1,16,256,4096] [--rounds 30]

For each shape of matrix: the dense product with and without zeros in the weights, and on a CUDA device the product
with `to_sparse_semi_structured`. They take turns; medians are printed. PyTorch has no such kernels for a CPU, so there
the last columns say "not measured".
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from optimum_ishrink.checkpoint.source import Source
from optimum_ishrink.core.table import markdown_table
from optimum_ishrink.report.sparsity import parse_pattern
from optimum_ishrink.sparsity.choosing import choose_zeros

SHAPES = ((2048, 2048), (8192, 2048), (2048, 8192), (4096, 4096), (14336, 4096), (4096, 14336))
"""Rows and columns of matrices of models of 1 and 8 billion parameters."""

NOT_MEASURED = "not measured"


def shapes_of(folder: Path) -> tuple[tuple[int, int], ...]:
    """Return the shapes of the matrices in a model's first layer."""
    found = [info.shape for name, info in Source(folder.name, folder).tensors.items() if ".layers.0." in name]
    return tuple(dict.fromkeys((shape[0], shape[1]) for shape in found if len(shape) == 2))


def seconds(ways: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median time of each way; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 3):
        for name, way in ways.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number >= 3:  # the first rounds warm up
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def ways_of(rows: int, columns: int, tokens: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Return the products of one matrix with so many tokens."""
    weight = torch.randn(rows, columns, device=device, dtype=torch.float32)
    zeros = choose_zeros(weight.abs(), parse_pattern("2:4"), across_rows=False)
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    inputs = torch.randn(tokens, columns, device=device, dtype=dtype)
    dense, sparse = weight.to(dtype), weight.masked_fill(zeros, 0).to(dtype)
    ways: dict[str, Callable[[], object]] = {
        "dense": lambda: torch.nn.functional.linear(inputs, dense),
        "zeros": lambda: torch.nn.functional.linear(inputs, sparse),
    }
    if device.type == "cuda":
        packed = torch.sparse.to_sparse_semi_structured(sparse)
        ways["kernel"] = lambda: torch.nn.functional.linear(inputs, packed)
    return ways


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a model whose matrices' shapes are measured")
    parser.add_argument("--tokens", default="1,16,256,4096", help="tokens that are multiplied at once")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for shape in shapes_of(args.model) if args.model else SHAPES:
        for tokens in map(int, args.tokens.split(",")):
            found = seconds(ways_of(*shape, tokens, device), args.rounds, device)
            kernel = found.get("kernel")
            rows.append(
                (
                    f"{shape[0]:,} x {shape[1]:,}",
                    f"{tokens:,}",
                    f"{found['dense'] * 1e6:,.1f}",
                    f"{found['dense'] / found['zeros']:.2f}",
                    NOT_MEASURED if kernel is None else f"{kernel * 1e6:,.1f}",
                    NOT_MEASURED if kernel is None else f"{found['dense'] / kernel:.2f}",
                )
            )
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}")
    header = ("matrix", "tokens", "dense, us", "zeros, times as fast", "2:4 kernel, us", "kernel, times as fast")
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
