"""Rows that have images beside their text, for the calibration of a vision-language model.

A row has `image`, the path of a file relative to its own file, or `images`, a list of these; and `text`, or `messages`
whose contents have a part `{"type": "image"}` for each image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .rows import Row


@dataclass(frozen=True)
class ImageRow:
    """A text with its images.

    Args:
        images: The files of the images, in the order of the text.
        text: The text; None in a conversation.
        messages: The conversation, as the processor's chat template takes it; None for a text.
        place: Where the row stands, for messages.
    """

    images: tuple[Path, ...]
    text: str | None
    messages: list[Any] | None
    place: str

    def check(self) -> None:
        """Check that the files of the images are there.

        Raises:
            DataError: One is not.
        """
        for path in self.images:
            if not path.is_file():
                raise DataError(f"{self.place}: the image {path} does not exist; its path is relative to that file")

    def opened(self) -> list[Any]:
        """Return the images, as RGB images of Pillow.

        Raises:
            DataError: Pillow is not installed, a file is missing, or it is no image.
        """
        try:
            from PIL import Image
        except ImportError:
            raise DataError(
                f"{self.place}: reading an image needs Pillow; install it with: pip install pillow"
            ) from None
        self.check()
        found = []
        for path in self.images:
            try:
                with Image.open(path) as image:
                    found.append(image.convert("RGB"))
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
                raise DataError(
                    f"{self.place}: {path} is not an image that Pillow reads; give a PNG or JPEG file"
                ) from None
        return found


def read_image_row(row: Row, folder: Path) -> ImageRow:
    """Read a row with images.

    Args:
        row: The row.
        folder: The folder that paths are relative to.

    Raises:
        DataError: It has no image, or no text, or is malformed.
    """
    found, place = row.with_image, row.place
    if found is None:
        raise DataError(f"{place} has no 'image', as the rows before it have; put rows of text in a file of their own")
    paths = found["image"] if found.get("image") is not None else found["images"]
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
        raise DataError(f"{place} has an image that is no path; write the path of a file, or a list of paths")
    images = tuple(folder / path for path in paths)
    text, messages = found.get("text"), found.get("messages")
    if isinstance(text, str) and text.strip():
        return ImageRow(images, text, None, place)
    if messages is None:
        raise DataError(f"{place} has an image without 'text' or 'messages'; write what is said about it")
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise DataError(
            f"{place} has 'messages' that are no list of messages; write objects with 'role' and 'content'"
        )
    count = sum(_image_parts(message.get("content")) for message in messages)
    if count != len(images):
        raise DataError(
            f'{place} has {len(images)} images and {count} parts {{"type": "image"}} in its messages; write one part '
            "for each image"
        )
    return ImageRow(images, None, messages, place)


def _image_parts(content: Any) -> int:
    parts = content if isinstance(content, list) else []
    return sum(isinstance(part, Mapping) and part.get("type") == "image" for part in parts)


def images_digest(rows: Iterable[ImageRow]) -> str:
    """Return a hash of the contents of the images of some rows.

    Args:
        rows: The rows.

    Raises:
        DataError: An image is missing.
    """
    digest = hashlib.sha256()
    for row in rows:
        row.check()
        for path in row.images:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
