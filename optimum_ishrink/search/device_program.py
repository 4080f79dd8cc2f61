"""A program that profiles another device: one file, for a Python that has neither torch nor this package.

It is a zip archive that Python runs: the files of this package that need the standard library alone, what is measured,
the headers of the probes, and a few kilobytes of random weights of each type, which the device repeats.
"""

from __future__ import annotations

import json
import lzma
import zipfile
from collections.abc import Sequence
from pathlib import Path

from .making import Maker
from .on_device import HEADERS, PLAN, TILES
from .probe_plan import ProbeRequest, collect_probes
from .template import Template

_PACKAGE = "ishrink_device"

MODULES = (
    "errors.py",
    "cli/on_device.py",
    "edge/llama_bench.py",
    "edge/llama_server.py",
    "edge/program_log.py",
    "edge/worker.py",
    "edge/worker_process.py",
    "planning/limits.py",
    "planning/profile_schema.py",
    "search/on_device.py",
    "search/probe_weights.py",
    "search/turns.py",
)
"""What the program needs of this package; none of it imports more than the standard library and one another."""

_MAIN = f"""import os
import sys
from pathlib import Path

# Processes that it starts find its modules too.
here = str(Path(sys.argv[0]).resolve())
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))

from {_PACKAGE}.cli.on_device import main

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[0])))
"""

_DICTIONARY = 2**26
"""Bytes in which the compression finds repeats: headers are megabytes, and most of each is the same vocabulary."""

_DATE = (1980, 1, 1, 0, 0, 0)
"""So that the same request gives the same file."""


def write_device_program(
    template: Template, maker: Maker, types: Sequence[str], path: Path, request: ProbeRequest
) -> None:
    """Write the program.

    Args:
        template: The base's file.
        maker: Says which rows stay in smaller vocabularies.
        types: Names of the types to choose from.
        path: The program.
        request: What is measured.
    """
    packer = lzma.LZMACompressor(
        filters=[{"id": lzma.FILTER_LZMA2, "preset": lzma.PRESET_DEFAULT, "dict_size": _DICTIONARY}]
    )
    found = collect_probes(template, maker, types, request, packer, path.parent)
    root = Path(__file__).parents[1]
    entries: dict[str, str | bytes] = {
        "__main__.py": _MAIN,
        PLAN: json.dumps(found.plan),
        HEADERS: found.headers,
    }
    for name in MODULES:
        entries[f"{_PACKAGE}/{name}"] = (root / name).read_bytes()
    for folder in {Path(name).parent for name in MODULES}:
        entries[(Path(_PACKAGE) / folder / "__init__.py").as_posix()] = ""
    entries |= {f"{TILES}/{name}": tile for name, tile in found.tiles.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in sorted(entries.items()):
            archive.writestr(zipfile.ZipInfo(name, _DATE), data, zipfile.ZIP_DEFLATED)
