"""Measuring a model's probes on a device that has Python and llama.cpp alone.

`ishrink profile --script` writes a program of this file and those that it imports (see `device_program`). They import
the standard library, and xllamacpp where it is installed.
"""

from __future__ import annotations

import importlib.util
import json
import lzma
import os
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..edge.llama_bench import PROGRAM, LlamaBench
from ..edge.worker_process import Start, WorkerProcess
from ..errors import OutputError, RequestError
from ..planning.profile_schema import PROFILE_SCHEMA
from .probe_weights import append_weights, check_room, file_bytes
from .turns import Workload, fit_together, llama_cpp_figures, llama_cpp_requests, settle, take_turns

PLAN, HEADERS, TILES = "plan.json", "headers.xz", "tiles"
"""What the program's archive holds: what is measured, the probes' headers, and weights of each type."""

XLLAMACPP = "xllamacpp"

RUNTIMES = (XLLAMACPP, PROGRAM)


@dataclass(frozen=True)
class DeviceRequest:
    """What the device is asked.

    Args:
        output: The profile's file.
        overwrite: Replace an existing file.
        threads: Threads for llama.cpp; None for what the program says, or else the usable cores.
        rounds: Turns of each probe; None for what the program says.
        runtime: What runs the probes, one of `RUNTIMES`; None for the first that is there.
        folder: Where the probes lie while they are timed; None for the temporary folder.
    """

    output: Path
    overwrite: bool = False
    threads: int | None = None
    rounds: int | None = None
    runtime: str | None = None
    folder: Path | None = None


def read_plan(archive: Path) -> dict[str, Any]:
    """Return what a program measures.

    Args:
        archive: The program.
    """
    with zipfile.ZipFile(archive) as opened:
        plan: dict[str, Any] = json.loads(opened.read(PLAN))
    return plan


def measure_device(archive: Path, request: DeviceRequest) -> None:
    """Write the probes, time them in turn, and write the profile.

    Args:
        archive: The program.
        request: What is asked.

    Raises:
        RequestError: A number is no number of threads or rounds, or nothing runs the probes.
        OutputError: The profile or the probes cannot be written.
        SourceError: llama.cpp cannot run a probe.
    """
    plan, output = read_plan(archive), request.output
    profile = plan["profile"]
    workload = Workload(**profile["workload"])
    threads = plan["threads"] or _cores() if request.threads is None else request.threads
    rounds = plan["rounds"] if request.rounds is None else request.rounds
    if min(threads, rounds) < 1:
        raise RequestError("threads and rounds must be whole numbers of at least 1")
    if output.exists() and not request.overwrite:
        raise OutputError(f"{output} exists; name another file or pass --overwrite")
    for place, option in ((output.parent, "--output"), (request.folder, "--folder")):
        if place is not None and not place.is_dir():
            raise OutputError(f"{place} is no folder; make it, or name another place with {option}")
    runtime = request.runtime or find_runtime()
    with tempfile.TemporaryDirectory(prefix="ishrink-probes-", dir=request.folder) as folder:
        try:
            files = write_probes(archive, plan, Path(folder))
        except OSError as error:
            raise OutputError(f"cannot write the probes: {os.strerror(error.errno or 0)}; see --folder") from None
        cache = {
            str(files[probe["name"]]): file["cache_bytes"]
            for probe, file in zip(profile["probes"], plan["files"], strict=True)
        }
        start: Start = (
            WorkerProcess
            if runtime == XLLAMACPP
            else lambda asked: LlamaBench(asked, cache_bytes=cache[asked["model"]])
        )
        done, total = 0, rounds * len(files)

        def advance(steps: int) -> None:
            nonlocal done
            done += steps
            sys.stderr.write(f"timed in turn: {done} of {total}\n")

        turns, build = take_turns(
            llama_cpp_requests(files, workload, threads=threads, vocabulary=plan["vocabulary"]),
            workload.prompt,
            rounds=rounds,
            together=fit_together(files, _available()),
            start=start,
            figures=llama_cpp_figures(threads),
            advance=advance,
        )
    figures = settle(turns)
    probes = [{**probe, "figures": figures[probe["name"]]} for probe in profile["probes"]]
    found = {"schema": PROFILE_SCHEMA, **profile, "build": build, "threads": threads, "probes": probes}
    staged = output.with_name(f".{output.name}.partial")
    try:
        staged.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        staged.replace(output)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise OutputError(f"cannot write {output}: {os.strerror(error.errno or 0)}") from None


def find_runtime() -> str:
    """Return what can run the probes here.

    Raises:
        RequestError: Nothing can.
    """
    if importlib.util.find_spec(XLLAMACPP) is not None:
        return XLLAMACPP
    if shutil.which(PROGRAM) is not None:
        return PROGRAM
    raise RequestError(
        f"nothing here runs the probes: install the package {XLLAMACPP} (pip install {XLLAMACPP}), or llama.cpp with "
        f"its program {PROGRAM} on the PATH"
    )


def write_probes(archive: Path, plan: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Write the probes, and return their files by name.

    Args:
        archive: The program, with the headers and the weights that are repeated.
        plan: What is measured.
        folder: Where they are written.

    Raises:
        OutputError: There is too little room.
    """
    needed = sum(file_bytes(file["header"], file["parts"]) for file in plan["files"])
    check_room(folder, needed, "--folder")
    found = {}
    with zipfile.ZipFile(archive) as opened:
        tiles = {
            name[len(TILES) + 1 :]: opened.read(name) for name in opened.namelist() if name.startswith(f"{TILES}/")
        }
        with opened.open(HEADERS) as packed, lzma.open(packed) as headers:
            for number, (probe, file) in enumerate(zip(plan["profile"]["probes"], plan["files"], strict=True)):
                path = folder / f"{number}.gguf"
                path.write_bytes(headers.read(file["header"]))
                append_weights(path, file["parts"], tiles)
                found[probe["name"]] = path
                sys.stderr.write(f"wrote the probe {probe['name']}\n")
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _available() -> int | None:
    """Return the bytes of memory that are free; None where the system does not report it."""
    path = Path("/proc/meminfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
