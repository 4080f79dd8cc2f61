"""The limits of a model: how many positions it has, and for which tokens it has embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import DataError, RequestError

if TYPE_CHECKING:
    import torch

_STRETCHED = ("linear", "dynamic", "yarn")
"""Kinds of rotary scaling whose factor multiplies the positions that the config states."""


def max_positions(config: Any) -> int | None:
    """Return how many tokens a model can read, or None where its config does not say.

    Args:
        config: The model's config. Where rotary positions are stretched by a factor, that counts.
    """
    config = config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        return None
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type")) in _STRETCHED:
        factor = scaling.get("factor")
        if isinstance(factor, (int, float)) and factor > 1:
            limit = max(limit, int((scaling.get("original_max_position_embeddings") or limit) * factor))
    return limit


def check_lengths(config: Any, name: str, **lengths: int) -> None:
    """Check that windows of text fit a model's positions.

    Args:
        config: The model's config.
        name: Its name in the message.
        **lengths: Tokens in a window, by the option that says so.

    Raises:
        RequestError: A window is longer than the model can read.
    """
    limit = max_positions(config)
    for option, length in lengths.items():
        if limit is not None and length > limit:
            raise RequestError(
                f"{option}={length} is more than the {limit} positions of {name}; use at most {limit} "
                f"(--{option.replace('_', '-')})"
            )


def check_tokens(ids: torch.Tensor | Iterable[int], rows: int, tokenizer: Any, label: str, name: str) -> None:
    """Check that a model has an embedding for every token of a text.

    Args:
        ids: Token ids.
        rows: Embeddings that the model has.
        tokenizer: The tokenizer that the ids are from.
        label: Name of the text.
        name: Name of the model.

    Raises:
        DataError: It has none for some token; the message names the first.
    """
    import torch

    found = ids if isinstance(ids, torch.Tensor) else torch.tensor(list(ids), dtype=torch.int64)
    outside = sorted(set(found[found >= rows].tolist()))
    if not outside:
        return
    first = outside[0]
    token = tokenizer.convert_ids_to_tokens(first)
    ends = {tokenizer.bos_token_id: "beginning-of-text ", tokenizer.eos_token_id: "end-of-text "}
    others = f" and {len(outside) - 1} more" if len(outside) > 1 else ""
    raise DataError(
        f"{label} has the {ends.get(first, '')}token {token!r} with the id {first}{others}, but {name} has {rows} "
        f"embeddings, ids 0 to {rows - 1}; give the model an embedding for it "
        "(model.resize_token_embeddings(len(tokenizer)), then save it), use the tokenizer that belongs to the model, "
        "or text without this token"
    )
