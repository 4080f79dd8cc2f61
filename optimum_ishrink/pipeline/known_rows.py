"""The sizes that a vocabulary can have, as far as an earlier run counted them.

Neither torch nor transformers is imported, so that a shape can be planned in a fraction of a second.
"""

from __future__ import annotations

from pathlib import Path

from ..architectures.binding import Binding
from ..architectures.description import ROWS
from ..configuration import IShrinkConfig
from ..planning.row_choices import RowChoices
from ..text.sources import parse_sources
from ..vocabulary.cost_cache import CostCache, RemovalCosts, counted_texts


def known_choices(folder: Path, binding: Binding, config: IShrinkConfig) -> RowChoices | None:
    """Return the sizes that a vocabulary can have; None where the tokens have to be counted first.

    Args:
        folder: The checkpoint.
        binding: The model.
        config: The request.

    Raises:
        DataError: A text cannot be read.
    """
    costs = cost_cache(folder, binding, config).read()
    return None if costs is None else row_choices(costs, binding, config)


def cost_cache(folder: Path, binding: Binding, config: IShrinkConfig) -> CostCache:
    """Return where the costs of a request are cached.

    Args:
        folder: The checkpoint.
        binding: The model.
        config: The request.
    """
    texts = counted_texts(config, parse_sources(config.calibration))
    return CostCache(folder, binding.shape[ROWS], config, texts)


def row_choices(costs: RemovalCosts, binding: Binding, config: IShrinkConfig) -> RowChoices:
    """Return the sizes that a vocabulary can have.

    Args:
        costs: What removing tokens costs.
        binding: The model.
        config: The request.
    """
    return RowChoices(
        total=binding.shape[ROWS],
        tokens=costs.num_tokens,
        multiple=config.vocab_multiple,
        extra_tokens=costs.extra.tolist(),
        required=costs.required,
    )
