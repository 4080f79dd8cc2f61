"""Byte-level tokenizers whose tokens show where a pre-tokenizer splits, and llama.cpp with the same vocabulary."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from tests.helpers.warm_process import run_warm

Merges = list[tuple[str, str]]


def pair_vocabulary(texts: Sequence[str], seed: int, words: Sequence[str] = ()) -> tuple[dict[str, int], Merges]:
    """Return a vocabulary of all bytes and of every pair of bytes that texts hold, merged in a random order.

    A pair that a pre-tokenizer separates is never merged, so tokens show the splits. Words get a token without a
    merge: only a model that ignores merges uses it.
    """
    spell = ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = ["".join(part for part, _ in spell.pre_tokenize_str(text)) for text in texts]
    pairs = sorted({(left, right) for text in spelled for left, right in pairwise(text)})
    random.Random(seed).shuffle(pairs)
    tokens = [*sorted(ByteLevel.alphabet()), *(left + right for left, right in pairs)]
    tokens += [word for text in words for word, _ in spell.pre_tokenize_str(text)]
    return {token: i for i, token in enumerate(tokens)}, pairs


def byte_level_json(section: Mapping[str, Any], vocabulary: Mapping[str, int], merges: Merges) -> dict[str, Any]:
    """Return a tokenizer.json with a section's normalizer, pre-tokenizer and use of merges."""
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": section["normalizer"],
        "pre_tokenizer": section["pre_tokenizer"],
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": section["ignore_merges"],
            "vocab": dict(vocabulary),
            "merges": [list(pair) for pair in merges],
        },
    }


def byte_level_tokenizer(section: Mapping[str, Any], vocabulary: Mapping[str, int], merges: Merges) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(byte_level_json(section, vocabulary, merges)))


def write_byte_level_gguf(path: Path, name: str, vocabulary: Mapping[str, int], merges: Merges) -> Path:
    """Write a model of one tiny layer with a byte-level vocabulary and llama.cpp's name of a pre-tokenizer."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    width = 32
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width)
    writer.add_file_type(0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    square = np.eye(width, dtype=np.float32)
    writer.add_tensor("token_embd.weight", np.ones((len(tokens), width), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up"):
        writer.add_tensor(f"blk.0.{part}.weight", square)
    for part in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{part}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_cpp_tokens(paths: Sequence[Path], lines: Sequence[str]) -> list[list[list[int]]]:
    """Return each line's token ids in llama.cpp, for every file, from one separate process."""
    request = json.dumps({"paths": [str(path) for path in paths], "lines": list(lines)})
    done = run_warm([sys.executable, "-m", __name__], input=request, check=True)
    found: list[list[list[int]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _answer() -> None:
    from optimum_ishrink.edge.llama_server import LlamaServer

    request = json.load(sys.stdin)
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer = []
    for path in request["paths"]:
        server = LlamaServer(Path(path), threads=1, context=64)
        answer.append([server.tokenize(line) for line in request["lines"]])
    output.write(json.dumps(answer) + "\n")
    output.flush()
    os._exit(0)


if __name__ == "__main__":
    _answer()
