"""Load time and peak memory of a checkpoint, each in a fresh process.

In the process that prunes and measures, files are cached, memory is in use, and kernels are already chosen; someone
who opens the model for the first time has none of that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..architectures.model_class import auto_class
from ..checkpoint.loading import model_type_of
from ..core.device import dtype_name
from ..core.memory import free_on
from ..core.progress import note, progress_bar
from ..errors import SourceError
from ..report.measurement import Measurement, median_measurement
from .timing import in_turn

_WORKER = Path(__file__).with_name("load_worker.py")
HEADROOM = 1.3
"""Memory that must be free, as a multiple of the weights."""

Runner = Callable[[Sequence[Mapping[str, Any]], Callable[[int], None]], list[dict[str, Any]]]


def measure_loading(
    folders: Mapping[str, Path],
    *,
    dtype: torch.dtype,
    device: torch.device,
    prompt_length: int,
    new_tokens: int,
    rounds: int = 3,
    run: Runner | None = None,
) -> dict[str, tuple[Measurement, ...]]:
    """Load checkpoints in turn, each time in a new process, from a cold and from a warm file cache.

    Args:
        folders: Checkpoints by name; rounds go A B, B A, A B.
        dtype: Dtype to load into.
        device: Device to load onto.
        prompt_length: Tokens of the prompt for the peak memory.
        new_tokens: Tokens decoded after the prompt.
        rounds: Number of loads of each, cold and warm.
        run: Function that runs the jobs; `run_jobs` by default.

    Returns:
        The measurements of each checkpoint. Cold loads are left out where the system does not drop the files' pages.

    Raises:
        SourceError: A checkpoint cannot be loaded.
    """
    needed = HEADROOM * max(_nbytes(folder, dtype) for folder in folders.values())
    free = free_on(device)
    if free < needed:
        note(
            f"load time and peak memory are not measured: {needed / 2**30:.1f} GiB are needed, {free / 2**30:.1f} free"
        )
        return dict.fromkeys(folders, ())
    order = [name for number in range(rounds) for name in in_turn(folders, number)]
    plan = [(name, cold) for name in order for cold in (True, False)]
    common = {
        "dtype": dtype_name(dtype),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "prompt_length": prompt_length,
        "new_tokens": new_tokens,
    }
    openers = {name: auto_class(model_type_of(folder)).__name__ for name, folder in folders.items()}
    jobs = [
        {**common, "folder": str(folders[name].resolve()), "auto_class": openers[name], "cold": cold}
        for name, cold in plan
    ]
    with progress_bar("loading in fresh processes", len(jobs)) as advance:
        results = (run or run_jobs)(jobs, advance)
    found: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for (name, cold), result in zip(plan, results, strict=True):
        if "error" in result:
            raise SourceError(f"{folders[name].name} cannot be loaded in a fresh process ({result['error']})")
        if not result.get("not_evicted"):
            found.setdefault((name, cold), []).append(result)
    for name in folders:
        if (name, True) not in found:
            note(f"{folders[name].name}: no load from a cold file cache, because the system did not drop the files")
    return {name: tuple(_measurements(name, found, common)) for name in folders}


def run_jobs(jobs: Sequence[Mapping[str, Any]], advance: Callable[[int], None]) -> list[dict[str, Any]]:
    """Run the jobs of `load_worker.py`, and return their results.

    On Linux all run as forks of one process that has imported the libraries and computed nothing: importing takes
    longer than loading. Elsewhere, where forking is not safe, every job starts its own interpreter.

    Args:
        jobs: The jobs.
        advance: Called with the number of finished jobs.
    """
    fork = sys.platform == "linux"
    results: list[dict[str, Any]] = []
    for part in [list(jobs)] if fork else [[job] for job in jobs]:
        before = len(results)
        request = json.dumps([{**job, "fork": fork} for job in part])
        command = [sys.executable, "-c", _WORKER.read_text(encoding="utf-8"), request]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        ) as worker:
            assert worker.stdout is not None
            try:
                for line in worker.stdout:
                    results.append(json.loads(line))
                    advance(1)
            finally:
                worker.kill()
        missing = len(part) - (len(results) - before)
        results += [{"error": "the process ended early"}] * missing
    return results


def _measurements(
    name: str, found: Mapping[tuple[str, bool], list[dict[str, Any]]], settings: Mapping[str, Any]
) -> Iterator[Measurement]:
    recorded = {key: value for key, value in settings.items() if key != "device"}
    for cold in (False, True):
        if seconds := [result["load_seconds"] for result in found.get((name, cold), ())]:
            where = f"fresh process, {'cold' if cold else 'warm'} file cache"
            yield median_measurement("load_seconds", where, seconds, recorded)
    results = found[name, False]
    where = f"fresh process, prompt {settings['prompt_length']}, decode {settings['new_tokens']}"
    peaks = [float(result["peak_memory_bytes"]) for result in results]
    libraries = median(result["libraries_bytes"] for result in results)
    yield median_measurement("peak_memory_bytes", where, peaks, {**recorded, "libraries_bytes": libraries})
    if results[0]["device_peak_bytes"] is not None:
        peaks = [float(result["device_peak_bytes"]) for result in results]
        yield median_measurement("peak_device_memory_bytes", where, peaks, recorded)


def _nbytes(folder: Path, dtype: torch.dtype) -> int:
    """Return the bytes of a checkpoint: on disk, or twice that where float32 may be wider than the stored dtype."""
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return stored * (2 if dtype == torch.float32 else 1)
