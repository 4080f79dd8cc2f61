"""Images as tokens: the features of images get ids of their own, and the embedding looks them up.

The decoder of a vision-language model reads an image as embeddings in place of placeholder tokens. These embeddings
are computed once. Number n of them gets the id -1 - n, which no token has; so a window with images is a row of ids as
any other, and all that runs a model on windows runs it on images, too, with no vision tower at work.

This is exact where the decoder reads an image as it reads a text: token after token, from left to right. Classes that
give images positions of several dimensions, let them attend in both directions or add their features in later layers
are told by a comparison with a run of the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import DataError


def encode_images(model: Any, inputs: Mapping[str, torch.Tensor], first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a row's ids with those of its image features, and these features.

    Args:
        model: The whole model.
        inputs: What its processor gives for one row: `input_ids`, shape (1, length), pixels, and whatever else the
            model takes.
        first: Number of the first feature.

    Returns:
        Ids, int64, shape (length,), negative for features; and the features, shape (features, hidden). Both are on the
        CPU.
    """
    ids, merged, _ = _run(model, inputs)
    tokens = ids.clone()
    tokens[ids == model.config.image_token_id] = 0  # it may have no embedding
    with torch.no_grad():
        embedded = model.get_input_embeddings()(tokens)
    # Some classes also replace what is written around an image.
    place = (ids == model.config.image_token_id) | (embedded != merged).any(-1)
    ids[place] = -1 - torch.arange(first, first + int(place.sum()), device=ids.device)
    return ids[0].cpu(), merged[place].cpu()


def check_order(model: Any, inputs: Mapping[str, torch.Tensor], name: str) -> None:
    """Check that a model's decoder reads an image as it reads a text.

    Args:
        model: The whole model.
        inputs: What its processor gives for one row.
        name: The row, for the message.

    Raises:
        DataError: It computes something else of the image's features in place of tokens.
    """
    ids, features = encode_images(model, inputs, 0)
    wanted = _run(model, inputs)[2].float()
    with images_in(model, features):
        found = _run(model, {"input_ids": ids[None]})[2].float()
    # An image that is read otherwise changes far more than rounding does.
    limit = 1e-3 if model.dtype in (torch.float32, torch.float64) else 3e-2
    if not (found - wanted).norm() <= limit * wanted.norm():
        raise DataError(
            f"{name}: {model.config.model_type} reads an image otherwise than token after token (positions of several "
            "dimensions, attention in both directions, or features that are added in later layers), so it cannot be "
            "calibrated on images; give text"
        )


@contextmanager
def images_in(model: Any, features: torch.Tensor | None) -> Iterator[None]:
    """Let a model look up the features of images by their ids.

    Args:
        model: The model.
        features: The features, shape (features, hidden); None where no window has any.
    """
    if features is None:
        yield
        return
    embedding = model.get_input_embeddings()
    looked_up: list[torch.Tensor] = []

    def enter(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        looked_up[:] = [inputs[0]]
        return (inputs[0].clamp(min=0), *inputs[1:])

    def leave(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        place = looked_up[0] < 0
        numbers = (-1 - looked_up[0][place]).to(features.device)
        return output.masked_scatter(place[..., None], features[numbers].to(output.device, output.dtype))

    handles = [embedding.register_forward_pre_hook(enter), embedding.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _run(model: Any, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the whole model, and return the ids, the embeddings with the image in them, and the last hidden states."""
    given = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def leave(_: Any, __: Any, kwargs: dict[str, Any], output: Any) -> None:
        seen.append((kwargs["inputs_embeds"], output.last_hidden_state))

    handle = model.get_decoder().register_forward_hook(leave, with_kwargs=True)
    try:
        model(**given, use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    return given["input_ids"].clone(), *seen[0]
