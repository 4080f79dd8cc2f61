"""Which tokens to keep: additional tokens on text that was not counted, for several weights of what is known.

    python -m benchmarks.vocabulary_tokens MODEL DATA --rows 40960,32768,24576

MODEL is a folder, DATA one with the text files named below. Every second row or line of the train files is counted.
The others are measured, and docstrings of numpy and torch, whose kind of text was not counted at all. This is what the
weights in `optimum_ishrink/vocabulary/counts.py` were chosen by; no text that results are reported on is read.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.core.table import markdown_table
from optimum_ishrink.vocabulary import counts
from optimum_ishrink.vocabulary.choice import order_removals
from optimum_ishrink.vocabulary.required import find_required
from optimum_ishrink.vocabulary.splits import find_splits
from optimum_ishrink.vocabulary.token_bytes import token_texts
from optimum_ishrink.vocabulary.tokenizer_file import read_tokenizer_file

FILES = ("wikitext2.train.txt", "arc_easy.train.jsonl", "openbookqa.train.jsonl")
WEIGHTS: Mapping[str, Mapping[str, float]] = {
    "default": dict(counts.SHARES),
    "text and languages": {"text": 0.5, "languages": 0.5, "prior": 0.0},
    "half of each": {"text": 0.45, "languages": 0.45, "prior": 0.1},
    "text alone": {"text": 1.0, "languages": 0.0, "prior": 0.0},
    "languages alone": {"text": 0.0, "languages": 1.0, "prior": 0.0},
    "the vocabulary's order alone": {"text": 0.0, "languages": 0.0, "prior": 1.0},
}


def documents(path: Path) -> list[str]:
    """Return blocks of twenty lines, or questions with their answers."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".txt":
        return ["\n".join(lines[at : at + 20]) for at in range(0, len(lines), 20)]
    rows = map(json.loads, lines)
    return [f"Question: {row['question']}\nAnswer: {row['choices'][row['answer']]}" for row in rows]


def docstrings(*places: Any) -> list[str]:
    """Return the docstrings of everything in modules or classes."""
    return [text for place in places for name in dir(place) if (text := inspect.getdoc(getattr(place, name, None)))]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], required=True)
    args = parser.parse_args()
    source = open_source(args.model)
    total, opened = source.config.vocab_size, source.load_tokenizer()
    tokenizer = opened.backend_tokenizer
    file = read_tokenizer_file(source.folder)
    splits = find_splits(file)
    required = find_required(file, splits, opened).ids
    halves = {name: documents(args.data / name) for name in FILES}
    counted = [counts.count_documents(half[0::2], tokenizer, total) for half in halves.values()]
    measured = {name: counts.count_documents(half[1::2], tokenizer, total) for name, half in halves.items()}
    measured["numpy's docstrings"] = counts.count_documents(docstrings(np), tokenizer, total)
    measured["torch's docstrings"] = counts.count_documents(docstrings(torch.Tensor, torch.nn), tokenizer, total)
    language = counts.count_language("en", tokenizer, total)
    by_place = counts.prior(token_texts(file), ["en"], total)
    tokens = np.zeros(total, dtype=bool)
    tokens[: len(file.tokens)] = [token is not None for token in file.tokens]
    rows = []
    for name, weights in WEIGHTS.items():
        counts.SHARES.update(weights)
        order = order_removals(counts.expected_counts(counted, [language], by_place), splits, required, tokens)
        for size in args.rows:
            kept = np.zeros(total, dtype=bool)
            kept[list(order.rows(size))] = True
            pieces = splits.pieces(kept)
            extra = [float((each[: len(pieces)] * (pieces - 1)).sum() / each.sum()) for each in measured.values()]
            rows.append((name, f"{size:,}", *(f"{each:.2%}" for each in extra)))
    print(markdown_table(("weights", "rows", *measured), rows))


if __name__ == "__main__":
    main()
