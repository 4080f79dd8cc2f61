"""What share of a plain product's speed the layers of a model reach, at several widths.

    python benchmarks/estimate.py [--threads 1] [--rounds 5] [--shapes 135M,1B,3B,8B]

`ishrink plan --estimate` multiplies the measured speed of a plain product by `layer_share`. Here both are timed in
turn: two layers of random weights in the shapes of SmolLM2-135M and of Llama 3's 1B, 3B and 8B, on four windows of 256
tokens, and one product of the MLP's shape on as many rows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from optimum_ishrink.core.device import resolve_dtype
from optimum_ishrink.core.table import markdown_table
from optimum_ishrink.pipeline.stage_work import layer_share

SHAPES = {
    "135M": (576, 1536, 9, 3, 64),
    "1B": (2048, 8192, 32, 8, 64),
    "3B": (3072, 8192, 24, 8, 128),
    "8B": (4096, 14336, 32, 8, 128),
}
"""Hidden size, neurons, query heads, KV groups and head size."""


def seconds(run: Callable[[], object]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.no_grad()
def shares(name: str, rounds: int, dtype: torch.dtype) -> tuple[float, float]:
    """Return the speeds of a product and of the layers, medians in operations per second.

    Args:
        name: One of `SHAPES`.
        rounds: How often both are timed, in turn, after one round that is not counted.
        dtype: Compute dtype.
    """
    hidden, inner, heads, groups, width = SHAPES[name]
    config = AutoConfig.for_model(
        "llama",
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=width,
        vocab_size=1000,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().model
    weights = sum(each.numel() for layer in model.layers for each in layer.parameters() if each.dim() > 1)
    ids = torch.randint(0, 1000, (4, 256))
    rows, weight = torch.randn(ids.numel(), hidden).to(dtype), torch.randn(inner, hidden).to(dtype)
    product, layers = [], []
    for _ in range(rounds + 1):
        product.append(2 * ids.numel() * weight.numel() / seconds(lambda: torch.nn.functional.linear(rows, weight)))
        layers.append(2 * ids.numel() * weights / seconds(lambda: model(ids, use_cache=False)))
    return statistics.median(product[1:]), statistics.median(layers[1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = resolve_dtype("auto", torch.device("cpu"))
    rows = []
    for name in args.shapes.split(","):
        product, layers = shares(name, args.rounds, dtype)
        hidden = SHAPES[name][0]
        speeds = (f"{product / 1e9:,.0f}", f"{layers / 1e9:,.0f}")
        rows.append((name, f"{hidden:,}", *speeds, f"{layers / product:.2f}", f"{layer_share(hidden):.2f}"))
    header = ("shape", "hidden size", "product, GFLOP/s", "layers, GFLOP/s", "share", "`layer_share`")
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
