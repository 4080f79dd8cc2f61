"""Calibration windows of rows with images, as the base's own processor writes them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from ..errors import DataError, one_line
from .image_features import check_order, encode_images
from .image_rows import ImageRow
from .sources import TextSource
from .windows import beginning


class ImageWindows(NamedTuple):
    """Windows with images.

    Args:
        ids: Token ids, int64, shape (windows, length); number n of the features has the id -1 - n.
        features: The features of the images, shape (features, hidden).
    """

    ids: torch.Tensor
    features: torch.Tensor


def image_windows(
    source: TextSource, model: Any, processor: Any, *, length: int, count: int, seed: int, first: int
) -> ImageWindows:
    """Cut rows with images into windows of equal length, as text is cut.

    Each window begins with a row of its own, so that its first image is whole, and the next rows follow where it ends.

    Args:
        source: A file whose rows have images.
        model: The whole model.
        processor: Its processor, which writes rows as tokens and pixels.
        length: Tokens in a window, those of images among them.
        count: Number of windows.
        seed: Seed that shuffles the rows.
        first: Number of the first feature.

    Raises:
        DataError: A row cannot be read or is longer than a window up to its first word after an image, there are too
            few rows, or the model reads images otherwise than token after token.
    """
    rows = list(source.image_rows())
    random.Random(seed).shuffle(rows)
    begin, end = beginning(processor.tokenizer), processor.tokenizer.eos_token_id
    features: list[torch.Tensor] = []

    def written() -> Iterator[torch.Tensor]:
        number = first
        for row in rows:
            inputs = row_inputs(row, processor)
            if number == first:
                check_order(model, inputs, row.place)
            ids, found = encode_images(model, inputs, number)
            _check_fits(row, ids, length - len(begin))
            number += len(found)
            features.append(found)
            yield ids if end is None else torch.cat([ids, torch.tensor([end])])

    stream = written()
    windows: list[torch.Tensor] = []
    while len(windows) < count:
        window: torch.Tensor = next(stream, torch.empty(0, dtype=torch.int64))
        if window[: len(begin)].tolist() != begin:
            window = torch.cat([torch.tensor(begin, dtype=torch.int64), window])
        while len(window) < length:
            more = next(stream, None)
            if more is None:
                raise DataError(
                    f"{source.label} gives {len(windows)} windows of {length} tokens of its {len(rows)} rows; {count} "
                    "were requested: give more rows, or fewer or shorter windows"
                )
            window = torch.cat([window, more])
        windows.append(window[:length])
    return ImageWindows(torch.stack(windows), torch.cat(features))


def _check_fits(row: ImageRow, ids: torch.Tensor, room: int) -> None:
    """Check that a window has room for a row up to the first token after its last image."""
    needed = int((ids < 0).nonzero().max()) + 2
    if needed > len(ids):
        raise DataError(
            f"{row.place} has no text after its image, so there is nothing to predict; write text after it"
        )
    if needed > room:
        raise DataError(
            f"{row.place} takes {needed} tokens up to the first after its image, and a window has room for {room}; "
            "use longer windows (--calibration-length)"
        )


def row_inputs(row: ImageRow, processor: Any) -> Mapping[str, torch.Tensor]:
    """Return what a model is given for a row.

    Args:
        row: The row.
        processor: The model's processor. Its chat template writes messages; a text without a placeholder gets one for
            each image in front.

    Raises:
        DataError: An image cannot be read, there is no chat template, or the processor refuses the row.
    """
    images = row.opened()
    text = row.text
    if row.messages is not None:
        if not getattr(processor, "chat_template", None):
            raise DataError(f"{row.place} has 'messages', and the processor has no chat template; write a 'text'")
    else:
        assert text is not None, "a row has a text or messages"
        mark = getattr(processor, "boi_token", None) or processor.image_token
        if mark not in text:
            text = mark * len(images) + text
    try:
        if row.messages is not None:
            text = processor.apply_chat_template(row.messages, tokenize=False)
        found = processor(
            text=[text], images=[images], return_tensors="pt", add_special_tokens=False, return_mm_token_type_ids=True
        )
    except Exception as error:  # processors and templates raise many types
        reason = one_line(error)
        raise DataError(
            f"{row.place} is refused by the model's processor ({reason}); change it, or leave it out"
        ) from None
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
