"""What each size of a vocabulary costs, cached on disk, so that another plan for the same model takes no seconds.

Neither torch nor transformers is imported where the answer is there already.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ..checkpoint.tokenizer_files import TOKENIZER_PATTERNS
from ..core.cache import cache_folder
from ..core.digest import digest, file_digest
from ..text.sources import PYDOC, TextSource, parse_sources, source_identity
from .options import VocabularyOptions

_LIBRARIES = ("tokenizers", "transformers", "wordfreq")
"""What else decides which tokens a text becomes, which a chat template writes, and how frequent words are."""


def counted_texts(options: VocabularyOptions, calibration: Sequence[TextSource]) -> tuple[TextSource, ...]:
    """Return the texts whose tokens are counted, each once.

    Args:
        options: What the choice is made by.
        calibration: The calibration text, which counts as well.

    Raises:
        DataError: A file is missing or unreadable.
    """
    named = parse_sources(options.vocab_text) if options.vocab_text else ()
    return tuple({source_identity(text): text for text in (*named, *calibration)}.values())


@dataclass(frozen=True, eq=False)
class RemovalCosts:
    """What removing tokens costs.

    Args:
        num_tokens: Rows that have a token.
        extra: Expected additional tokens per token of text after each removal, float64, shape (removable + 1,).
        required: How many tokens have to stay, by the reason.
    """

    num_tokens: int
    extra: npt.NDArray[np.float64]
    required: Mapping[str, int]


class CostCache:
    """The cached costs of one request.

    Args:
        folder: The checkpoint; its configs and its tokenizer's files are read.
        rows: Rows of the model's embedding.
        options: What the choice is made by.
        texts: The texts that are counted.
    """

    def __init__(self, folder: Path, rows: int, options: VocabularyOptions, texts: Sequence[TextSource]) -> None:
        self.folder = folder
        self.rows = rows
        self.options = options
        self.texts = tuple(text for text in texts if not text.is_self)

    @cached_property
    def _path(self) -> Path | None:
        """Where the costs are, named after all that they depend on; None where a text may change unnoticed."""
        texts = [text.text if text.text == PYDOC else text.fingerprint() for text in self.texts]
        if None in texts:
            return None
        names = ("*config.json", *TOKENIZER_PATTERNS)
        files = sorted({path for name in names for path in self.folder.glob(name) if path.is_file()})
        kept = [Path(self.options.vocab_keep).expanduser()] if self.options.vocab_keep else []
        if not all(path.is_file() for path in kept):
            return None
        key: dict[str, Any] = {
            "rows": self.rows,
            "model": file_digest(files),
            "texts": texts,
            "languages": [code.strip().lower() for code in self.options.vocab_languages],
            "keep": file_digest(kept),
            "drop_reserved": self.options.vocab_drop_reserved,
            "python": sys.version_info[:2],  # it has the reference topics
            "libraries": [metadata.version(name) for name in _LIBRARIES],
            "code": file_digest(sorted(Path(__file__).parent.glob("*.py"))),
        }
        return cache_folder() / "vocabularies" / f"{digest(key)}.npz"

    def read(self) -> RemovalCosts | None:
        """Return the costs, or None where they are not known. A file that cannot be read is ignored.

        Raises:
            DataError: A text cannot be read.
        """
        if self._path is None or not self._path.is_file():
            return None
        with suppress(OSError, ValueError, KeyError, EOFError, BadZipFile):
            stored = np.load(io.BytesIO(self._path.read_bytes()))
            known = json.loads(stored["known"].item())
            return RemovalCosts(known["num_tokens"], stored["extra"], known["required"])
        return None

    def write(self, costs: RemovalCosts) -> None:
        """Store costs. A cache that cannot be written is not an error: the run has its costs anyway.

        Args:
            costs: The costs.
        """
        if self._path is None:
            return
        from ..core.durable import replace_file

        known = json.dumps({"num_tokens": costs.num_tokens, "required": dict(costs.required)})
        file = io.BytesIO()
        np.savez(file, extra=costs.extra, known=np.array(known))
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, file.getvalue())
