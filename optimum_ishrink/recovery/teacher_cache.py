"""A teacher's k most likely tokens for every window, computed once and memory-mapped from disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.device import to_device
from ..core.durable import disk_errors, rename_folder
from ..core.micro_batch import MicroBatch
from ..core.progress import progress_bar
from .mixed_teacher import MixedTeacher
from .targets import TopK
from .teacher import Lesson, LiveTeacher
from .translating_teacher import TranslatingTeacher

_FILES = {"log_probs": np.float16, "indices": np.int32, "log_tail": np.float32}


class CachedTeacher:
    """Reads a teacher's stored predictions.

    A token takes 6 k + 4 bytes on disk, and the pages that a step reads in memory: log-probabilities as float16, whose
    error of 2^-11 is far below what a step of training changes, token numbers as int32, and the mass of all other
    tokens as float32.

    Args:
        folder: What `write_teacher_cache` wrote.
        shared: For each position of every window whether the teacher has read the same text there, bool, shape
            (windows, length); None where it reads the same tokens. What is stored for other positions is not read.
    """

    def __init__(self, folder: Path, shared: torch.Tensor | None = None) -> None:
        self._shared = shared
        self._arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _FILES}

    def teach(self, input_ids: torch.Tensor, windows: torch.Tensor) -> Lesson:
        """Return the rows of a batch's windows."""
        numbers = windows.cpu().numpy()
        device = input_ids.device
        log_probs, indices, log_tail = (
            to_device(torch.from_numpy(self._arrays[name][numbers]), device).flatten(0, 1) for name in _FILES
        )
        top = TopK(log_probs, indices.long(), log_tail)
        if self._shared is None:
            return Lesson(top.part)
        shared = to_device(self._shared[windows.cpu()][:, :-1].flatten(), device)
        return Lesson(lambda part: top.part(part).part(shared[part]), shared=shared)


def write_teacher_cache(
    folder: Path,
    teacher: LiveTeacher | TranslatingTeacher | MixedTeacher,
    input_ids: torch.Tensor,
    *,
    micro: MicroBatch,
    rows: int,
) -> None:
    """Run a teacher on every window and store its top k; the folder appears whole or not at all.

    Args:
        folder: Where they are written.
        teacher: The teacher; its `k` and temperature are those of the cache.
        input_ids: All windows in the student's tokens, shape (windows, length).
        micro: How many windows run at once.
        rows: Positions whose logits are held at once.

    Raises:
        OutputError: There is no room.
        DeviceMemoryError: One window does not fit into memory.
    """
    assert teacher.k is not None, "a cache holds the k most likely tokens"
    count, length = input_ids.shape
    k = min(teacher.k, teacher.rows)
    shapes: dict[str, Any] = {
        "log_probs": (count, length - 1, k),
        "indices": (count, length - 1, k),
        "log_tail": (count, length - 1),
    }
    partial = folder.with_name(f"{folder.name}.partial")
    with disk_errors(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        arrays = {
            name: np.lib.format.open_memmap(partial / f"{name}.npy", mode="w+", dtype=dtype, shape=shapes[name])
            for name, dtype in _FILES.items()
        }

        def run(windows: slice) -> int:
            start, ids = windows.start, input_ids[windows]
            lesson = teacher.teach(ids, torch.arange(start, start + len(ids)))
            assert lesson.distribution is not None
            total = len(ids) * (length - 1)
            for first in range(0, total, rows):
                part = slice(first, min(first + rows, total))
                top = lesson.distribution(part)
                assert isinstance(top, TopK)
                for name, dtype in _FILES.items():
                    flat = arrays[name][start : start + len(ids)].reshape(total, *shapes[name][2:])
                    found = getattr(top, name).cpu().numpy().astype(dtype)
                    flat[part if lesson.shared is None else _numbers(part, lesson.shared)] = found
            return len(ids)

        with progress_bar("running the teacher once", count) as advance:
            for done in micro.each(count, run):
                advance(done)
        for array in arrays.values():
            array.flush()
        (partial / "shape.json").write_text(json.dumps({"windows": count, "length": length, "k": k}))
        rename_folder(partial, folder)


def _numbers(part: slice, shared: torch.Tensor) -> Any:
    """Return which rows of a part are shared."""
    return part.start + shared[part].cpu().nonzero()[:, 0].numpy()
