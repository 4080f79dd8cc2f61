"""Options of the vocabulary: which tokens stay, and whether the head is the embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..options.option import option
from ..options.run import RunOptions
from ..text.options import SOURCES


@dataclass(frozen=True, kw_only=True, repr=False)
class VocabularyOptions(RunOptions):
    """Which tokens stay when the vocabulary becomes smaller."""

    vocab_text: Sequence[str] = option(
        (),
        metavar="SRC[,SRC...]",
        path="text",
        help=f"text whose tokens stay, besides the calibration text: {SOURCES}",
        doc="Text sources whose tokens are counted, besides the calibration text: what the model will read and write. "
        "The more it is like that, the less is lost.",
    )
    vocab_languages: Sequence[str] = option(
        ("en",),
        metavar="CODE[,CODE...]",
        label="language",
        help="languages whose frequent words stay whole, such as en,de",
        doc="Languages whose words count by their frequencies: two-letter codes, such as `en` or `de`; the "
        "frequencies are those of the `wordfreq` package and need no network. `none` leaves the choice to the text. "
        "Other languages cost more tokens afterwards, and nothing becomes impossible to write.",
    )
    vocab_keep: str | None = option(
        None,
        metavar="FILE",
        path="text",
        help="a text file whose lines stay single tokens wherever they are",
        doc="A UTF-8 text file with one string per line, such as the names of a product. All tokens that its lines "
        "are split into stay, with and without a space before them.",
    )
    vocab_drop_reserved: bool = option(
        False,
        help="remove unused reserved tokens, such as Gemma's 6,000",
        doc="Remove special tokens that their models reserve and do not use, such as `<unused17>` and "
        "`<|reserved_special_token_5|>`. Without it all special and added tokens stay.",
    )
