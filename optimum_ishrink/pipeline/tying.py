"""Noticing a head that equals the embedding, and tying it where that is requested."""

from __future__ import annotations

from dataclasses import replace

from ..architectures.description import TIE
from ..checkpoint.source import Source
from ..configuration import IShrinkConfig
from ..core.progress import note
from ..errors import ShapeError
from ..report.tied_head import HeadRecord
from ..surgery.tied_head import LIMIT, ROW_LIMIT, compare_head, is_near


def before_cut(source: Source, config: IShrinkConfig) -> tuple[Source, int]:
    """Return the model whose shape is chosen, and how many parameters it has lost to the tied head.

    Args:
        source: The model. No weights are read.
        config: The request.

    Returns:
        The source, with a config that ties the head where that is requested, and the number of parameters. Only the
        configs of the new source can be read.

    Raises:
        ShapeError: The head is to be tied, and is tied already or cannot be.
    """
    if not config.tie_embeddings:
        return source, 0
    if source.config.tie_word_embeddings:
        raise ShapeError(
            f"tie_embeddings: the config of {source.display_name} ties the head to the embedding already; leave "
            "tie_embeddings out"
        )
    tied, removed = _tied(source)
    if not removed:
        raise ShapeError(
            f"tie_embeddings: the class of {source.binding.description.model_type} has no head that {TIE} ties; leave "
            "tie_embeddings out"
        )
    return tied, removed


def _tied(source: Source) -> tuple[Source, int]:
    """Return a source with a config that ties the head, and how many parameters it has less."""
    tied = replace(source)
    vars(tied)["raw_config"] = {**source.raw_config, TIE: True}  # instead of reading config.json
    return tied, source.binding.num_parameters() - tied.binding.num_parameters()


def find_head(source: Source, config: IShrinkConfig) -> HeadRecord | None:
    """Return a head that the embedding can stand in for, with whether it is to be tied; None where there is none.

    A model that is not to be tied is told of it in a note.

    Args:
        source: The model.
        config: The request.

    Raises:
        ShapeError: The head is to be tied, and is another matrix.
    """
    if source.config.tie_word_embeddings:
        return None
    record = compare_head(source.tensors, source.binding)
    if config.tie_embeddings and (record is None or not is_near(record)):
        apart = "" if record is None else f" ({record.head} and {record.embedding} are {record.describe()})"
        raise ShapeError(
            f"tie_embeddings: the head of {source.display_name} is another matrix than its embedding{apart}, and "
            f"quantisation explains at most {LIMIT:.0%}, {ROW_LIMIT:.0%} in a row; leave tie_embeddings out"
        )
    if record is None or not is_near(record) or not _tied(source)[1]:
        return None
    if not config.tie_embeddings:
        note(
            f"{record.head} and {record.embedding} are {record.describe()}; tie_embeddings would remove "
            f"{record.num_parameters:,} parameters"
        )
    return replace(record, tied=config.tie_embeddings)
