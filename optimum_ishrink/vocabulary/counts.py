"""How often each token is expected: in text, in the words of languages, and by its place in the vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import torch

from .choice import Floats
from .languages import foreign_words, own_scripts, script, word_of, written_forms

MOST_CHARACTERS = 50_000_000
"""Characters of a text that are read: far more than the choice of tokens needs, and a data set may be endless."""

_BATCH = 2_000

SHARES = {"text": 0.25, "languages": 0.15, "prior": 0.60}
"""Weights of the three in the expected counts; one that is not there gives its weight to the others.

Text alone leaves out common words that a sample happens to lack, word lists know neither names of a field nor code,
and the vocabulary's order knows all of these, but not what this user says. With these weights English text of the
kinds that were counted costs 0.1 to 0.3 % more tokens than with half of each of the first two, and text of other kinds
half as many more (see docs/experiments/vocabulary.md).
"""

_FLATTEN = 25
"""A token's place counts from this share of all rows on: what is frequent stays anyway, the tail is what is chosen."""

_POWER = 2
"""Power of the place. Zipf's law has 1, for words; it would spend the weight on tokens that nothing removes."""

_FOREIGN = 0.2
"""What a word of other languages counts in the prior."""

_DISCOUNT = 0.5
"""Subtracted from a token's count in a text: one that was seen once is as likely half a chance."""


def count_documents(documents: Iterable[str], tokenizer: Any, rows: int) -> Floats:
    """Return how often each token occurs in documents.

    Args:
        documents: The text.
        tokenizer: A tokenizer of the tokenizers library (`Tokenizer`).
        rows: Rows of the embedding.
    """
    found = np.zeros(rows)
    documents, read = iter(documents), 0
    while read < MOST_CHARACTERS and (batch := list(islice(documents, _BATCH))):
        read += sum(map(len, batch))
        found += _count([each.ids for each in _encode(tokenizer, batch)], rows)
    return found


def count_ids(ids: torch.Tensor, rows: int) -> Floats:
    """Return how often each token occurs in windows.

    Args:
        ids: Token ids, any shape.
        rows: Rows of the embedding.
    """
    return np.bincount(ids.flatten().numpy(), minlength=rows).astype(np.float64)


def count_language(language: str, tokenizer: Any, rows: int) -> Floats:
    """Return how often each token is expected in a text of a language.

    Args:
        language: A code of `languages.py`.
        tokenizer: A tokenizer of the tokenizers library.
        rows: Rows of the embedding.
    """
    texts, shares = written_forms(language)
    ids: list[list[int]] = []
    for start in range(0, len(texts), _BATCH * 10):
        ids += [each.ids for each in _encode(tokenizer, texts[start : start + _BATCH * 10])]
    return _count(ids, rows, shares)


def prior(texts: Sequence[str | None], languages: Sequence[str], rows: int) -> Floats:
    """Return what a token's place in the vocabulary says: its rank in the text that the vocabulary was made on.

    That text was in many languages. Where some are named, tokens in other scripts do not count, and words of other
    languages hardly.

    Args:
        texts: The text of each token, None where it has none of its own.
        languages: Codes.
        rows: Rows of the embedding.

    Returns:
        Shape (rows,).
    """
    found = np.zeros(rows)
    found[: len(texts)] = (np.arange(len(texts)) + rows / _FLATTEN) ** -float(_POWER)
    if languages:
        allowed = frozenset().union(*(own_scripts(language) for language in languages))
        letters = filter(str.isalpha, set("".join(filter(None, texts))))
        others = {letter for letter in letters if script(letter) not in allowed}
        words = [word_of(text or "") for text in texts]
        foreign = foreign_words(frozenset(words), tuple(languages))
        found[: len(texts)] *= [_FOREIGN if word in foreign else 1 for word in words]
        found[[token for token, text in enumerate(texts) if text and not others.isdisjoint(text)]] = 0
    found[[token for token, text in enumerate(texts) if text is None]] = 0
    return found


def expected_counts(text: Sequence[Floats], languages: Sequence[Floats], prior: Floats) -> Floats:
    """Return the expected share of each token, mixed from all that is known.

    Args:
        text: Counts in texts; each text has the same weight.
        languages: Counts of languages; each has the same weight.
        prior: What the vocabulary's order says.
    """
    found = np.zeros_like(prior)
    for name, counts in (("text", text), ("languages", languages), ("prior", (prior,))):
        discounted = [np.maximum(each - _DISCOUNT, 0) if name == "text" else each for each in counts]
        present = [each / each.sum() for each in discounted if each.sum() > 0]
        for each in present:
            found += SHARES[name] * each / len(present)
    mixed: Floats = found / max(found.sum(), np.finfo(np.float64).tiny)
    return mixed


def _encode(tokenizer: Any, texts: Sequence[str]) -> Any:
    return tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)


def _count(ids: Sequence[Sequence[int]], rows: int, weights: Sequence[float] | None = None) -> Floats:
    flat = np.fromiter(chain.from_iterable(ids), dtype=np.int64)
    repeated = None if weights is None else np.repeat(np.asarray(weights), [len(each) for each in ids])
    found = np.bincount(flat[flat < rows], None if repeated is None else repeated[flat < rows], minlength=rows)
    return found.astype(np.float64)
