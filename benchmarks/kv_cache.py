"""Ways to make the KV cache smaller, at equal bytes, on a long context.

    python benchmarks/kv_cache.py MODEL --text test.txt --calibration train.txt [--pruned "two=DIR;one=DIR"]

The rows are the divergence from the unpruned model by position in windows of 4,096 tokens:

- the model itself with its cache rounded to block formats of llama.cpp, as `--cache-type-k q8_0` does;
- the checkpoints of `--pruned`, whose KV heads were cut or merged;
- what latent attention could hold of the model: keys and values from one latent vector for each token. `low rank` is
  the best projection of keys (before their rotation) and values on the calibration text, which no class runs. `latent`
  is what a class of the DeepSeek kind can hold: one rotated key for all heads, made of the directions with the most
  energy among pairs of channels that turn at the same or nearly the same frequency, all else unrotated and from the
  latent. `normed latent` has the norm as well that these classes apply to the latent. The construction is that of
  TransMLA, arXiv:2502.07864.

Nothing is trained. The rows with latents are forward passes of the model's own class with other numbers in its
attention: what a conversion could start from.
"""

from __future__ import annotations

import argparse
import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import log_softmax, pad, scaled_dot_product_attention
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from optimum_ishrink.core.table import markdown_table
from optimum_ishrink.edge.block_values import block_values

ENDS = (512, 1024, 2048, 4096)
LENGTH = ENDS[-1]


class RoundedCache(DynamicCache):  # type: ignore[misc]
    """A cache that returns keys and values as a block format of llama.cpp holds them.

    Args:
        config: The model's config.
        kind: The format, such as `q8_0`.
    """

    def __init__(self, config: Any, kind: str) -> None:
        super().__init__(config=config)
        self.kind = kind

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Return what is stored, rounded."""
        return tuple(self._rounded(values) for values in super().update(*args, **kwargs))

    def _rounded(self, values: torch.Tensor) -> torch.Tensor:
        return block_values(values.float().contiguous(), self.kind).to(values.dtype)


def moments(model: Any, windows: torch.Tensor) -> list[torch.Tensor]:
    """Return `X^T X` of what enters the attention of each layer, float64."""
    found = [torch.zeros(model.config.hidden_size, model.config.hidden_size).double() for _ in model.model.layers]
    handles = []
    for layer, total in zip(model.model.layers, found, strict=True):

        def add(_: Any, inputs: tuple[torch.Tensor, ...], total: torch.Tensor = total) -> None:
            rows = inputs[0].flatten(0, -2).float()
            total += (rows.T @ rows).double()

        handles.append(layer.self_attn.v_proj.register_forward_pre_hook(add))
    with torch.no_grad():
        for window in windows:
            model.model(window[None])
    for handle in handles:
        handle.remove()
    return found


def top(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the eigenvectors of the largest eigenvalues, shape (size, rank)."""
    vectors: torch.Tensor = torch.linalg.eigh((matrix + matrix.T) / 2).eigenvectors[:, -rank:].flip(1)
    return vectors


def balance(first: torch.Tensor, second: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Return the factor of the first map after which both have outputs of the same mean energy."""
    energy = [torch.einsum("oi,ij,oj->", each, gram, each) / len(each) for each in (first, second)]
    return (energy[1] / energy[0]).sqrt()


def low_rank(model: Any, grams: list[torch.Tensor], rank: int) -> Any:
    """Return a copy whose keys and values, before the rotation, are from a latent of a rank."""
    model = copy.deepcopy(model)
    for layer, gram in zip(model.model.layers, grams, strict=True):
        key, value = layer.self_attn.k_proj, layer.self_attn.v_proj
        k, v = key.weight.detach().double(), value.weight.detach().double()
        factor = balance(k, v, gram)
        both = torch.cat([factor * k, v])
        basis = top(both @ gram @ both.T, rank)
        both = basis @ (basis.T @ both)
        key.weight.data.copy_(both[: len(k)] / factor)
        value.weight.data.copy_(both[len(k) :])
    return model


class Latent:
    """The attention of one layer with one rotated key for all heads, and the rest from a latent.

    Args:
        attention: The layer's attention.
        gram: `X^T X` of what enters it.
        rank: Size of the latent; the rotated key has the size of a head besides.
        fold: Neighbouring frequencies that are taken for one.
        normed: Whether the latent is normed.
        rotated: Pairs of channels of a fold that are rotated; None for the share that one head holds.
    """

    def __init__(
        self, attention: Any, gram: torch.Tensor, rank: int, fold: int, *, normed: bool, rotated: int | None = None
    ) -> None:
        config = attention.config
        self.attention, self.size, self.heads = attention, attention.head_dim, config.num_attention_heads
        self.groups, half = config.num_key_value_heads, attention.head_dim // 2
        k = attention.k_proj.weight.detach().double().view(self.groups, 2, half, -1)
        # Pairs of channels that turn together, by frequency: (frequencies, groups * fold, 2, hidden).
        pairs = k.permute(2, 0, 1, 3).reshape(half // fold, fold, self.groups, 2, -1)
        pairs = pairs.permute(0, 2, 1, 3, 4).flatten(1, 2)
        energy = torch.einsum("fapi,ij,fbpj->fab", pairs, gram, pairs)
        self.turn = torch.stack([top(each, energy.shape[1]) for each in energy])  # (frequencies, old, new)
        turned = torch.einsum("fab,fapi->fbpi", self.turn, pairs)
        self.fold, self.half, self.kept = fold, half, rotated or fold
        rest = turned[:, self.kept :].flatten(0, 2)
        v = attention.v_proj.weight.detach().double()
        factor = balance(rest, v, gram)
        both = torch.cat([factor * rest, v])
        basis = top(both @ gram @ both.T, rank)
        self.rotated = turned[:, : self.kept].flatten(0, 2).float()
        self.down = (basis.T @ both).float()
        self.up_key, self.up_value = (basis[: len(rest)] / factor).float(), basis[len(rest) :].float()
        self.normed, self.scale = normed, 0.0

    def to_turned(self, states: torch.Tensor) -> torch.Tensor:
        """Turn queries of shape (..., head, size) into the basis of the turned keys: (..., head, groups * size)."""
        lead = states.shape[:-2]
        pairs = states.view(*lead, self.groups, self.heads // self.groups, 2, self.half // self.fold, self.fold)
        turn = self.turn.float().view(-1, self.groups, self.fold, self.turn.shape[2])
        return torch.einsum("...ghpfo,fgob->...ghfbp", pairs, turn).flatten(-5, -4)

    def __call__(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        """Run it."""
        batch, length = hidden_states.shape[:2]
        states = hidden_states.float()
        cos, sin = self._folded(length)
        queries = self.to_turned(
            self.attention.q_proj(hidden_states).float().view(batch, length, self.heads, self.size)
        )
        keys = (states @ self.rotated.T).view(batch, length, 1, -1, self.kept, 2)
        latent = states @ self.down.T
        if self.normed:
            size = latent.square().mean(-1, keepdim=True).sqrt()
            self.scale = self.scale or float(size.mean())  # nearest to the latents of the first window, in squares
            latent = latent * self.scale / size
        rest = (latent @ self.up_key.T).view(batch, length, 1, -1)
        values = (latent @ self.up_value.T).view(batch, length, self.groups, self.size)
        q = torch.cat([_turned(queries[..., : self.kept, :], cos, sin), queries[..., self.kept :, :].flatten(-3)], -1)
        k = torch.cat([_turned(keys, cos, sin), rest], -1)
        values = values.repeat_interleave(self.heads // self.groups, 2)
        # Without values of the same width, PyTorch on a CPU holds the scores of all pairs of positions.
        values = pad(values, (0, q.shape[-1] - self.size))
        dtype = hidden_states.dtype
        q, k, v = (each.to(dtype).transpose(1, 2) for each in (q, k.expand(-1, -1, self.heads, -1), values))
        found = scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.attention.scaling)[..., : self.size]
        return self.attention.o_proj(found.transpose(1, 2).flatten(2).to(hidden_states.dtype)), None

    def _folded(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosine and sine of each fold's geometric mean frequency, shape (1, length, 1, folds, 1)."""
        base = self.attention.config.rope_parameters["rope_theta"]
        exponents = torch.arange(self.half).view(-1, self.fold).float().mean(1) / self.half
        angles = torch.arange(length)[:, None].float() * base**-exponents
        shape = (1, length, 1, len(exponents), 1)
        return angles.cos().view(shape), angles.sin().view(shape)


def _turned(pairs: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of shape (batch, length, heads, folds, members, 2); return them flat for each head."""
    real, imaginary = pairs[..., 0], pairs[..., 1]
    return torch.stack([real * cos - imaginary * sin, imaginary * cos + real * sin], -1).flatten(-3)


def with_latents(model: Any, grams: list[torch.Tensor], rank: int, fold: int, *, normed: bool) -> Any:
    """Return a copy whose attention has one rotated key and a latent of a rank."""
    model = copy.deepcopy(model)
    for layer, gram in zip(model.model.layers, grams, strict=True):
        layer.self_attn.forward = Latent(layer.self_attn, gram, rank, fold, normed=normed)
    return model


@torch.no_grad()
def divergence(
    model: Any, windows: torch.Tensor, reference: list[torch.Tensor], kind: str | None = None
) -> list[float]:
    """Return the mean divergence from the reference up to each of `ENDS`, in nats, and its standard error at the last.

    Args:
        model: The model.
        windows: Token ids, shape (windows, length).
        reference: The unpruned model's logits on each window.
        kind: What the cache is rounded to; None for not at all.
    """
    found = []
    for window, expected in zip(windows, reference, strict=True):
        cache: dict[str, Any] = {} if kind is None else {"past_key_values": RoundedCache(model.config, kind)}
        logits = model(window[None], use_cache=kind is not None, **cache).logits[0]
        rows = []
        for start in range(0, LENGTH, 512):
            p, q = (log_softmax(each[start : start + 512].float(), -1) for each in (expected, logits))
            rows.append((p.exp() * (p - q)).sum(-1))
        found.append(torch.cat(rows))
    values = torch.stack(found)
    starts = (0, *ENDS[:-1])
    means = [float(values[:, start:end].mean()) for start, end in zip(starts, ENDS, strict=True)]
    whole = values.mean(1)
    return [*means, float(whole.mean()), float(whole.std() / len(whole) ** 0.5)]


def main() -> None:
    """Measure the rows that are not in the output file yet, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True, help="text to measure on")
    parser.add_argument("--calibration", type=Path, required=True, help="text that latents are chosen on")
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--pruned", default="", help="checkpoints with fewer KV heads, as name=DIR;name=DIR")
    parser.add_argument("--fold", type=int, default=1, help="neighbouring frequencies that latents take for one")
    parser.add_argument("--output", type=Path, default=Path("kv.jsonl"))
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16).eval()

    def windows(path: Path, count: int) -> torch.Tensor:
        ids: torch.Tensor = tokenizer(path.read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
        return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)[:count]

    text, grams = windows(args.text, args.windows), moments(model, windows(args.calibration, 8))
    with torch.no_grad():
        reference = [model(window[None]).logits[0] for window in text]
    config = model.config
    attention = model.model.layers[0].self_attn
    if config.rope_parameters["rope_type"] != "default" or attention.k_proj.bias is not None:
        raise SystemExit("latents are made of models with plain rotations and no biases")
    if hasattr(attention, "q_norm"):
        raise SystemExit("latents are made of models without norms of queries and keys")
    size = 2 * config.num_key_value_heads * model.model.layers[0].self_attn.head_dim
    one = model.model.layers[0].self_attn.head_dim
    rows: dict[str, tuple[float, Any]] = {
        "cache in q8_0": (34 / 64, lambda: (model, "q8_0")),
        "cache in q5_0": (22 / 64, lambda: (model, "q5_0")),
        "cache in q4_0": (18 / 64, lambda: (model, "q4_0")),
    }
    for named in filter(None, args.pruned.split(";")):
        name, folder = named.split("=")
        pruned = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        share = pruned.config.num_key_value_heads / config.num_key_value_heads
        rows[name] = (share, lambda pruned=pruned: (pruned, None))
    rank = size * (config.num_key_value_heads - 1) // config.num_key_value_heads  # as large as one head less
    rows[f"low rank, {rank}"] = (rank / size, lambda: (low_rank(model, grams, rank), None))
    for normed in (False, True):
        name = f"{'normed ' if normed else ''}latent, {one} + {rank - one}, folds of {args.fold}"
        make = partial(with_latents, model, grams, rank - one, args.fold, normed=normed)
        rows[name] = (rank / size, lambda make=make: (make(), None))
    done = [json.loads(line) for line in args.output.read_text().splitlines()] if args.output.is_file() else []
    for name, (share, make) in rows.items():
        if name in {row["name"] for row in done}:
            continue
        made, kind = make()
        row = {"name": name, "share": share, "windows": len(text), "kl": divergence(made, text, reference, kind)}
        done.append(row)
        with args.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)
    bounds = [f"{start:,} to {end:,}" for start, end in zip((0, *ENDS[:-1]), ENDS, strict=True)]
    header = ("row", "bytes of the cache", *bounds, f"all, n={len(text)}")
    cells = []
    for row in done:
        *means, mean, error = row["kl"]
        cells.append((row["name"], f"{row['share']:.0%}", *(f"{v:.4f}" for v in means), f"{mean:.4f} ± {error:.4f}"))
    print(markdown_table(header, cells))


if __name__ == "__main__":
    main()
