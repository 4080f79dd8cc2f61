"""The shape that a shrink would have, without its weights: from a folder's headers where these tell enough."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..architectures.binding import Binding
from ..architectures.headers import bind_folder
from ..configuration import IShrinkConfig
from ..planning.shape import resolve_shape
from ..planning.target import reads_dtype
from .row_request import may_change_rows

if TYPE_CHECKING:
    from ..checkpoint.source import Source


def shape_alone(
    folder: Path | None, config: IShrinkConfig, open_model: Callable[[], Source]
) -> tuple[Binding, dict[str, int], int]:
    """Return a model's binding, the complete new shape, and the parameters that a head has that is tied first.

    Neither torch nor transformers is imported where the folder's headers describe the model and the vocabulary does
    not change, or where an earlier run counted its tokens.

    Args:
        folder: The checkpoint's folder; None where its headers do not tell.
        config: The request.
        open_model: Opens the model, for what the headers do not tell.

    Raises:
        ShapeError: The shape cannot be expressed, or the target cannot be met.
        SourceError: The vocabulary is to be cut, and cannot be.
        DataError: A text cannot be read.
        RequestError: What is cut cannot be scored.
    """
    binding, shape, removed = _resolved(folder, config, open_model)
    if config.importance_group_size is not None or "experts" in binding.sizes:  # else every shape can be scored
        from ..importance.stage import check_scoring, scored_dimensions

        check_scoring(binding, config, scored_dimensions(binding.shape, shape, merge=config.merge_key_value_heads))
    return binding, shape, removed


def _resolved(
    folder: Path | None, config: IShrinkConfig, open_model: Callable[[], Source]
) -> tuple[Binding, dict[str, int], int]:
    # What a target counts in bytes needs the dtype, and the kinds of layers, that the config class knows.
    binding = None if folder is None or reads_dtype(config.target) else bind_folder(folder)
    if binding is not None and folder is not None:
        if not may_change_rows(binding, config):
            return binding, resolve_shape(binding, config, may_stay=config.sparsifies), 0
        from .known_rows import known_choices

        if (rows := known_choices(folder, binding, config)) is not None:
            return binding, resolve_shape(binding, config, rows, may_stay=config.sparsifies), 0
    from ..planning.stage import check_shape
    from .trimming import find_vocabulary
    from .tying import before_cut

    source = open_model()
    tied, removed = before_cut(source, config)
    found = find_vocabulary(source, config)
    rows = None if found is None else found[1]
    shape = check_shape(tied, config, rows, removed=removed, may_stay=config.sparsifies)
    return tied.binding, shape, removed
