"""Probes beside a site, from the program that profiles other devices."""

from __future__ import annotations

import gzip
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

from optimum_ishrink.search.on_device import HEADERS, PLAN, TILES


def add_probes(program: Path, site: Path) -> dict[str, Any]:
    """Put a program's probes beside a site, and return their plan.

    Args:
        program: What `ishrink profile --script` wrote.
        site: The site's folder.
    """
    folder = site / "probes"
    (folder / "tiles").mkdir(parents=True)
    with zipfile.ZipFile(program) as archive:
        plan: dict[str, Any] = json.loads(archive.read(PLAN))
        (folder / "plan.json").write_bytes(archive.read(PLAN))
        (folder / "headers.gz").write_bytes(gzip.compress(lzma.decompress(archive.read(HEADERS)), mtime=0))
        for name in archive.namelist():
            if name.startswith(f"{TILES}/"):
                (folder / "tiles" / Path(name).name).write_bytes(archive.read(name))
    described = json.loads((site / "models.json").read_text(encoding="utf-8"))
    (site / "models.json").write_text(json.dumps({**described, "probes": "probes/plan.json"}), encoding="utf-8")
    return plan
