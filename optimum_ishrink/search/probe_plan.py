"""The probes of a device that this machine cannot reach: what is measured there, their headers, and random weights.

A program of one file (`device_program`) and the page of `ishrink app` (`browser_probes`) take them there. The weights
are a few kilobytes of each type, which the device repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..architectures.description import ROWS
from ..core.json_codec import to_plain
from ..core.progress import progress_bar
from ..planning.memory import kv_cache_bytes
from .making import Maker
from .probe_files import random_tiles, write_header
from .profile import probe_features, probe_recipes
from .template import Template
from .turns import Workload


class Packer(Protocol):
    """Compresses bytes piece by piece, as those of `lzma` and `zlib` do."""

    def compress(self, data: bytes, /) -> bytes:
        """Return what is compressed so far."""

    def flush(self) -> bytes:
        """Return the rest."""


@dataclass(frozen=True)
class ProbeRequest:
    """What is measured.

    Args:
        model: The model's name.
        runtime: Name of the runtime.
        threads: Threads for it; None for the device's cores.
        workload: What is timed.
        rounds: Turns of each probe.
    """

    model: str
    runtime: str
    threads: int | None
    workload: Workload
    rounds: int


@dataclass(frozen=True)
class CollectedProbes:
    """What a device needs to write the probes.

    Args:
        plan: What is measured, and for each probe the bytes of its header and its tensors.
        headers: The headers one after the other, compressed.
        tiles: Random weights to repeat, by the name of their type.
    """

    plan: Mapping[str, Any]
    headers: bytes
    tiles: Mapping[str, bytes]


def collect_probes(
    template: Template, maker: Maker, types: Sequence[str], request: ProbeRequest, packer: Packer, folder: Path
) -> CollectedProbes:
    """Return what a device needs to write the probes.

    Args:
        template: The base's file.
        maker: Says which rows stay in smaller vocabularies.
        types: Names of the types to choose from.
        request: What is measured.
        packer: Compresses the headers.
        folder: Where a header lies while it is read.
    """
    recipes = probe_recipes(template, types, maker)
    files, used, packed = [], set(), b""
    staged = folder / ".probe.header"
    try:
        with progress_bar("writing headers of probes", len(recipes)) as advance:
            for each in recipes:
                tokens = maker.kept_tokens(each.shape[ROWS])
                parts = write_header(template, each.shape, each.types, staged, tokens)
                header = staged.read_bytes()
                packed += packer.compress(header)
                used |= {name for name, _ in parts}
                cache = kv_cache_bytes(template.binding, each.shape, 1)
                files.append({"header": len(header), "parts": parts, "cache_bytes": cache})
                advance(1)
    finally:
        staged.unlink(missing_ok=True)
    plan = {
        "profile": {
            "model": request.model,
            "model_type": template.binding.description.model_type,
            "shape": dict(template.binding.shape),
            "runtime": request.runtime,
            "workload": to_plain(request.workload),
            "probes": [
                {
                    "name": each.name,
                    "features": probe_features(template, each, request.workload),
                    "fitted": each.fitted,
                }
                for each in recipes
            ],
        },
        "files": files,
        "threads": request.threads,
        "rounds": request.rounds,
        "vocabulary": min(each.shape[ROWS] for each in recipes),
    }
    return CollectedProbes(plan, packed + packer.flush(), random_tiles(used, folder))
