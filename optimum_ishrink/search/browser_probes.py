"""The probes of a browser: the files that the page of `ishrink app` measures a cost profile with."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

from .making import Maker
from .on_device import PLAN, TILES
from .probe_plan import ProbeRequest, collect_probes
from .template import Template

BROWSER_HEADERS = "headers.gz"
"""The headers, compressed in the one way that every browser reads."""

_GZIP = 31
"""What `zlib` calls a window of 32 KiB in gzip's form. It writes no time: the same request gives the same file."""


def write_browser_probes(
    template: Template, maker: Maker, types: Sequence[str], folder: Path, request: ProbeRequest
) -> None:
    """Write the probes' plan, headers and weights.

    Args:
        template: The base's file.
        maker: Says which rows stay in smaller vocabularies.
        types: Names of the types to choose from.
        folder: An existing folder.
        request: What is measured.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, _GZIP)
    found = collect_probes(template, maker, types, request, packer, folder)
    (folder / PLAN).write_text(json.dumps(found.plan), encoding="utf-8")
    (folder / BROWSER_HEADERS).write_bytes(found.headers)
    (folder / TILES).mkdir()
    for name, tile in found.tiles.items():
        (folder / TILES / name).write_bytes(tile)
