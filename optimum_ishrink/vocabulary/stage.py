"""The stage that chooses which tokens stay, and writes the tokenizer without the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..architectures.description import ROWS
from ..checkpoint.source import Source
from ..errors import DataError, SourceError
from ..report.vocabulary import TokensPerByte, VocabularyRecord, row_spans
from ..text.files import file_lines
from ..text.sources import TextSource, label_sources
from .choice import Floats, RemovalOrder, order_removals, removable
from .cost_cache import RemovalCosts, counted_texts
from .counts import MOST_CHARACTERS, count_documents, count_ids, count_language, expected_counts, prior
from .languages import check_languages, languages_of, own_scripts, script_name, scripts, word_of
from .options import VocabularyOptions
from .required import Required, find_required
from .splits import Splits, find_splits
from .token_bytes import token_texts
from .tokenizer_file import TokenizerFile, read_tokenizer_file

_LISTED = 40
"""Removed tokens that a plan names."""

_SCRIPT_SHARE = 0.5
"""A text of whose letters fewer are in the scripts of the chosen languages is warned of."""


class Vocabulary:
    """What is known of a source's vocabulary: which tokens can go, and in which order.

    Args:
        source: The model.
        options: What the choice is made by.
        calibration: The calibration text, which counts as well.

    Raises:
        RequestError: A language has no word frequencies.
    """

    def __init__(self, source: Source, options: VocabularyOptions, calibration: Sequence[TextSource]) -> None:
        self.source = source
        self.options = options
        self.languages = check_languages(options.vocab_languages)
        self.texts = counted_texts(options, calibration)
        self.total = source.binding.shape[ROWS]

    @cached_property
    def file(self) -> TokenizerFile:
        """The tokenizer's file.

        Raises:
            SourceError: There is none, its vocabulary cannot be cut, or it has more tokens than the model has rows.
        """
        found = read_tokenizer_file(self.source.folder)
        if len(found.tokens) > self.total:
            raise SourceError(
                f"the tokenizer of {self.source.display_name} has ids up to {len(found.tokens) - 1}, and the model "
                f"{self.total} rows; give it a row for each (model.resize_token_embeddings(len(tokenizer))) before "
                "its vocabulary is cut"
            )
        return found

    @cached_property
    def splits(self) -> Splits:
        """The parts of each token."""
        return find_splits(self.file)

    @cached_property
    def opened(self) -> Any:
        """The tokenizer, as `AutoTokenizer` opens it."""
        return self.source.load_tokenizer()

    @cached_property
    def tokens(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which rows have a token, bool, shape (rows,)."""
        found = np.zeros(self.total, dtype=bool)
        found[: len(self.file.tokens)] = [token is not None for token in self.file.tokens]
        return found

    @cached_property
    def required(self) -> Required:
        """The tokens that always stay.

        Raises:
            DataError: The file of `vocab_keep` cannot be read.
        """
        marks = "".join(sorted(_marks(self.languages)))
        options = self.options
        found = find_required(
            self.file, self.splits, self.opened, drop_reserved=options.vocab_drop_reserved, punctuation=marks
        )
        if options.vocab_keep is None:
            return found
        lines = file_lines(Path(options.vocab_keep).expanduser())
        texts = [form for line in lines for form in (line, f" {line}")]
        if not texts:
            raise DataError(f"text file {options.vocab_keep} is empty; name one that has a string in each line")
        ids = {token for each in self._encode(texts) for token in each.ids}
        kept = frozenset(self.splits.close(ids).tolist()) - found.ids
        return Required({**found.reasons, "named by vocab_keep": kept})

    def _encode(self, texts: Sequence[str]) -> Any:
        return self.opened.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)

    @cached_property
    def _counted(self) -> tuple[list[Floats], list[Floats], Floats]:
        backend = self.opened.backend_tokenizer
        texts = [count_documents(text.documents(), backend, self.total) for text in self.texts if not text.is_self]
        languages = [count_language(language, backend, self.total) for language in self.languages]
        return texts, languages, prior(token_texts(self.file), self.languages, self.total)

    def order(self, sampled: torch.Tensor | None = None) -> RemovalOrder:
        """Return the order in which tokens go.

        Args:
            sampled: Text that the model sampled itself, token ids of any shape. It counts like another text.

        Raises:
            DataError: A text cannot be read.
        """
        required, counts = self.required.ids, np.zeros(self.total)
        tokens = self.tokens.copy()
        tokens[[row for row in required if row < self.total]] = True  # a config may name a row without a token
        if removable(self.splits, required, tokens).any():  # else nothing has to be counted
            texts, languages, by_place = self._counted
            own = [] if sampled is None else [count_ids(sampled, self.total)]
            counts = expected_counts([*texts, *own], languages, by_place)
        return order_removals(counts, self.splits, required, tokens)

    def costs(self) -> RemovalCosts:
        """Return what removing tokens costs, before the model has sampled any text.

        Raises:
            SourceError: The vocabulary cannot be cut.
            DataError: A text cannot be read.
        """
        order = self.order()
        return RemovalCosts(order.num_tokens, order.extra, self.required.counts)

    def record(
        self,
        order: RemovalOrder,
        rows: Sequence[int],
        trimmed: Any,
        sampled: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> VocabularyRecord:
        """Return what the plan says of the choice.

        Args:
            order: The order in which tokens went.
            rows: The rows that stay.
            trimmed: The tokenizer with these alone, of the tokenizers library.
            sampled: Documents that the model sampled itself.
            notes: What was left out of the tokenizer's files.
        """
        kept = np.zeros(self.total, dtype=bool)
        kept[list(rows)] = True
        spelled = token_texts(self.file)
        names = [spelled[token] or self.file.tokens[token] or "" for token in range(len(self.file.tokens))]
        removed = np.flatnonzero(self.tokens & ~kept).tolist()
        texts, languages, by_place = self._counted if removed else ([], [], np.zeros(self.total))
        counts = expected_counts(texts, languages, by_place)
        lost = sorted(removed, key=lambda token: -counts[token])[:_LISTED]
        return VocabularyRecord(
            kept=row_spans(rows),
            num_tokens=int(self.tokens.sum()),
            new_num_tokens=int((self.tokens & kept).sum()),
            texts=tuple(label_sources(self.texts)),
            fingerprints=tuple(text.fingerprint() for text in self.texts),
            languages=self.languages,
            required=self.required.counts,
            removed_scripts=_by_script(names[token] for token in removed),
            removed_languages=_by_language(names[token] for token in removed),
            lost=tuple(names[token] for token in lost),
            tokens_per_byte=tuple(self._tokens_per_byte(trimmed, sampled)),
            notes=tuple(notes),
        )

    @cached_property
    def _beginnings(self) -> dict[str, list[str]]:
        """The first documents of each text that is not sampled, by its label."""
        labelled = zip(self.texts, label_sources(self.texts), strict=True)
        return {label: _beginning(text.documents()) for text, label in labelled if not text.is_self}

    def _tokens_per_byte(self, trimmed: Any, sampled: Sequence[str]) -> Iterable[TokensPerByte]:
        for text, label in zip(self.texts, label_sources(self.texts), strict=True):
            documents = sampled if text.is_self else self._beginnings[label]
            if documents:
                yield measure_tokens(label, documents, self.opened.backend_tokenizer, trimmed)

    def warnings(self, record: VocabularyRecord) -> list[str]:
        """Return a line for each text that is mostly in other scripts than the chosen languages.

        Args:
            record: What the plan says of the choice.
        """
        if not self.languages:
            return []
        own = frozenset().union(*map(own_scripts, self.languages))
        measured = {each.text: each for each in record.tokens_per_byte}
        found = []
        for text, label in zip(self.texts, label_sources(self.texts), strict=True):
            if text.is_self or label not in measured:
                continue
            letters = scripts(self._beginnings[label])
            total = sum(letters.values())
            if total and sum(count for name, count in letters.items() if name in own) < _SCRIPT_SHARE * total:
                most = max(letters, key=lambda name: letters[name])
                each = measured[label]
                found.append(
                    f"{label} is mostly {script_name(most)}, which {', '.join(self.languages)} is not written in: it "
                    f"takes {each.after:.3f} tokens per byte after {each.before:.3f}; name its language in "
                    "vocab_languages"
                )
        return found


def measure_tokens(label: str, documents: Sequence[str], whole: Any, trimmed: Any) -> TokensPerByte:
    """Return how many tokens a text takes with two tokenizers.

    Args:
        label: Name of the text.
        documents: The text.
        whole: The whole tokenizer, of the tokenizers library.
        trimmed: The smaller one.
    """
    size = sum(len(document.encode("utf-8", "surrogatepass")) for document in documents)
    before, after = (
        sum(len(each.ids) for each in tokenizer.encode_batch_fast(list(documents), add_special_tokens=False))
        for tokenizer in (whole, trimmed)
    )
    return TokensPerByte(label, before / size, after / size, size)


def _beginning(documents: Iterable[str], most: int = MOST_CHARACTERS // 50) -> list[str]:
    """Return the first documents, up to a million characters."""
    found: list[str] = []
    read = 0
    for document in documents:
        found.append(document)
        read += len(document)
        if read >= most:
            break
    return found


_MARKS: Mapping[str, str] = {
    "es": "¿¡",
    "fr": "«»",
    "de": "„“«»",
    "el": "·;",
    "pl": "„”",
    "ru": "«»",
    "zh": "，。！？：；、（）《》「」",
    "ja": "、。！？「」（）・ー",
}
"""Punctuation of languages beyond that of English."""


def _marks(languages: Iterable[str]) -> set[str]:
    return {mark for language in languages for mark in _MARKS.get(language, "")}


def _by_script(texts: Iterable[str]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for text in texts:
        letters = scripts([text])
        found[script_name(letters.most_common(1)[0][0]) if letters else "no letters"] += 1
    return dict(found.most_common())


def _by_language(texts: Iterable[str]) -> dict[str, int]:
    """Return how many of some tokens are words of each language, each counted for the one that uses it most."""
    found = languages_of(frozenset(map(word_of, texts)))
    return dict(Counter(language for language, _ in found.values()).most_common())
