"""Rows with images: what they say, and what is refused in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.errors import DataError
from optimum_ishrink.text.image_rows import ImageRow, images_digest
from optimum_ishrink.text.sources import TextSource
from tests.helpers.image_rows import image_rows, write_image, write_rows

IMAGE_PART = {"type": "image"}


def read(path: Path) -> list[ImageRow]:
    return list(TextSource(str(path)).image_rows())


def test_rows_with_images_are_read(tmp_path: Path) -> None:
    path = image_rows(tmp_path, 2)
    assert TextSource(str(path)).has_images
    first, second = read(path)
    assert first.images == (tmp_path / "0.png",) and first.text and first.messages is None
    assert second.text is None and second.messages and second.place == f"{path} line 2"
    assert first.opened()[0].size == (25, 20)
    TextSource(str(path)).check(images=True)


def test_several_images_and_absolute_paths(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png")
    path = write_rows(tmp_path, [{"images": ["a.png", str(image)], "text": "twice"}])
    assert read(path)[0].images == (image, image) and len(read(path)[0].opened()) == 2


def test_texts_have_no_images(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [{"text": "a", "image": None}])
    assert not TextSource(str(path)).has_images and list(TextSource(str(path)).documents()) == ["a"]
    assert (
        not TextSource("self").has_images and not TextSource("a/b").has_images and not TextSource("x.txt").has_images
    )


def test_what_reads_text_alone_refuses_an_image(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [{"text": "a"}, {"text": "b", "image": "b.png"}])
    reason = (
        r"rows.jsonl line 2 has an image, which only --calibration reads, .*; leave the image out to read the text"
    )
    with pytest.raises(DataError, match=reason):
        list(TextSource(str(path)).documents())
    row = list(TextSource(str(path)).rows())[1]
    with pytest.raises(DataError, match=reason):
        row.segments(None, answers=True)
    alone = write_rows(tmp_path, [{"text": "b", "image": "b.png"}], "alone.jsonl")
    with pytest.raises(DataError, match="line 1 has an image, which only --calibration reads"):
        TextSource(str(alone)).check()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "b"}, "has no 'image', as the rows before it have; put rows of text in a file of their own"),
        ({"image": 3, "text": "b"}, "has an image that is no path; write the path of a file"),
        ({"image": "", "text": "b"}, "has an image that is no path"),
        ({"images": [], "text": "b"}, "has an image that is no path"),
        ({"image": "0.png"}, "has an image without 'text' or 'messages'; write what is said"),
        ({"image": "0.png", "text": " "}, "has an image without 'text' or 'messages'"),
        ({"image": "0.png", "messages": "hi"}, "has 'messages' that are no list of "),
        ({"image": "0.png", "messages": ["hi"]}, "has 'messages' that are no list of "),
        (
            {"image": "0.png", "messages": [{"role": "user", "content": "hi"}]},
            r"has 1 images and 0 parts {\"type\": \"image\"} in its messages; write one part for each image",
        ),
        (
            {"image": "0.png", "messages": [{"role": "user", "content": [IMAGE_PART, IMAGE_PART]}]},
            "has 1 images and 2 parts",
        ),
        ({"image": "no.png", "text": "b"}, "no.png does not exist; its path is relative to that file"),
    ],
)
def test_rows_that_cannot_be_used(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write_image(tmp_path / "0.png")
    path = write_rows(tmp_path, [{"image": "0.png", "text": "a"}, row])
    with pytest.raises(DataError, match="rows.jsonl line 2.*" + reason) as error:
        TextSource(str(path)).check(images=True)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    (row,) = read(write_rows(tmp_path, [{"image": "a.png", "text": "a"}]))
    with pytest.raises(DataError, match=r"line 1: .*a.png is not an image that Pillow reads; give a PNG or JPEG"):
        row.opened()


def test_pillow_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, _ = read(image_rows(tmp_path, 2))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match="needs Pillow; install it with: pip install pillow"):
        row.opened()


def test_the_digest_tells_images_apart(tmp_path: Path) -> None:
    path = image_rows(tmp_path, 2)
    before = images_digest(read(path))
    assert images_digest(read(path)) == before
    write_image(tmp_path / "1.png", 99)
    assert images_digest(read(path)) != before
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match=r"1.png does not exist"):
        images_digest(read(path))
