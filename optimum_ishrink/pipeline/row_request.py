"""Whether a request may change the vocabulary. Arithmetic: nothing heavy is imported for it."""

from __future__ import annotations

from ..architectures.binding import Binding
from ..architectures.description import ROWS
from ..configuration import IShrinkConfig
from ..errors import ShapeError
from ..options.option import own_options
from ..vocabulary.options import VocabularyOptions


def may_change_rows(binding: Binding, config: IShrinkConfig) -> bool:
    """Return whether a request may change the vocabulary.

    Args:
        binding: The model.
        config: The request.

    Raises:
        ShapeError: It does not, and an option says which tokens stay.
    """
    if not binding.description.dimensions[ROWS].fixed:
        if config.vocab_size is not None:
            changes = config.vocab_size < binding.shape[ROWS]
        else:
            changes = config.target is not None and (config.prune is None or ROWS in config.prune)
        if changes:
            return True
    unused = sorted(own_options(VocabularyOptions).keys() & config.to_diff_dict().keys())
    if unused:
        raise ShapeError(
            f"{unused[0]} says which tokens stay, and the vocabulary does not change; add vocab_size, or a target "
            "that may change it"
        )
    return False
