from __future__ import annotations

from typing import Any

import pytest

from optimum_ishrink.app.options import AppOptions, ServerOptions, parse_part_size
from optimum_ishrink.errors import RequestError


@pytest.mark.parametrize(
    ("text", "size"), [("24MB", 24_000_000), ("16MiB", 2**24), (" 1.5 mb ", 1_500_000), ("100kB", 100_000)]
)
def test_sizes_of_parts(text: str, size: int) -> None:
    assert parse_part_size(text) == size == AppOptions(part_size=text).part_bytes


@pytest.mark.parametrize("text", ["24", "24GB", "-24MB", "1KB", "2000MB", "", "MB", "24 MBs"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(RequestError, match="part_size .* is not of the form 24MB or 16MiB"):
        AppOptions(part_size=text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": 0}, "port must be a whole number of at least 1"),
        ({"port": 65536}, "port must be at most 65535"),
        ({"key": "key.pem"}, "--key is the private key of a certificate"),
    ],
)
def test_servers_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ServerOptions(**values)
