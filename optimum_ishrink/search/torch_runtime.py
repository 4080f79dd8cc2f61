"""torch as the runtime of a search: transformers runs safetensors checkpoints in their own dtype."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from ..architectures.config_edit import edit_config
from ..architectures.description import LAYERS, ROWS
from ..checkpoint.session import Session
from ..checkpoint.tensors import DTYPES as TORCH_DTYPES
from ..checkpoint.tensors import OutgoingTensor, read_index
from ..checkpoint.writing import verify_checkpoint, write_config, write_weights
from ..core.device import dtype_name
from ..core.limits import check_lengths
from ..core.memory import free_on
from ..edge.llama_server import default_threads
from ..edge.program_log import failure_reason
from ..edge.worker_process import Program, Start, WorkerProcess
from ..errors import RequestError
from ..planning.limits import DECODE, MEMORY, TTFT
from ..planning.stage import without_ids_beyond
from .checkpoint_layout import DTYPES, CheckpointLayout, checkpoint_layout, own_type
from .layout import KeptTokens
from .making import Made, Maker
from .options import ProfileOptions
from .recipe import Recipe
from .rounding import Rounding
from .timing import Figures, time_in_turn
from .turns import Workload

TORCH = Program("transformers", f"{__package__}.torch_worker", failure_reason)

_HEADROOM = 2.2
"""Memory of a process's weights in bytes of the checkpoint: loading holds them twice for a moment."""

_PROCESS_BYTES = 768 * 2**20
"""Bytes that a process needs in addition: Python, torch, transformers, and the KV cache of a compact model."""

_STANDARD_DEVIATION = 0.02
_TILE = 2**16


class TorchRuntime:
    """One model in transformers; see `runtime.Runtime`.

    Args:
        session: The run over the base; its device is the one that is measured.
        options: What is timed.
    """

    name = "torch"
    shaped_for: str | None = None

    def __init__(self, session: Session, options: ProfileOptions) -> None:
        self._session = session
        self._options = options

    @property
    def threads(self) -> int:
        """Threads that it computes with: the physical cores by default."""
        return self._options.threads or default_threads()

    @cached_property
    def types(self) -> tuple[str, ...]:
        """The checkpoint's own dtype.

        Raises:
            RequestError: Another one was requested.
        """
        own = own_type(self._session.source)
        named = self._options.quantization
        if named is not None and [name.lower() for name in named] != [own]:
            raise RequestError(
                f"the runtime torch runs a checkpoint in its own dtype, and {self._session.source.display_name} is in "
                f"{own}: leave out --quantization, or name {own}; --runtime llama.cpp chooses among quantizations"
            )
        return (own,)

    def check(self) -> None:
        """Check the model, its dtype, and that the context fits its positions."""
        source, options = self._session.source, self._options
        source.check()
        len(self.types)
        check_lengths(source.config, source.display_name, context=options.context)
        if options.context <= options.prompt_length:
            raise RequestError(
                f"a context of {options.context} tokens has no room for a prompt of {options.prompt_length} and a "
                "token after it; raise --context, or lower --prompt-length"
            )

    @cached_property
    def layout(self) -> CheckpointLayout:
        """The base's weight files."""
        return checkpoint_layout(self._session.source)

    def write_probe(
        self, shape: Mapping[str, int], types: Mapping[str, str], path: Path, tokens: KeptTokens | None
    ) -> None:
        """Write a smaller checkpoint with random weights: config and weights, no tokenizer."""
        source = self._session.source
        path.mkdir()
        raw = without_ids_beyond(source.raw_config, shape[ROWS])
        write_config(edit_config(raw, source.config, source.binding, shape, range(shape[LAYERS])), path)
        tile = torch.randn(_TILE, generator=torch.Generator().manual_seed(0)) * _STANDARD_DEVIATION
        outgoing = self.layout.outgoing(self.layout.in_shape(shape))
        write_weights(
            [
                OutgoingTensor(each.name, each.dtype, each.shape, make=partial(_random, tile, each))
                for each in outgoing
            ],
            path,
        )

    def time(self, files: Mapping[str, Path], *, vocabulary: int) -> tuple[Figures, str]:
        """Time checkpoints in turn. Memory is what `torch_worker.measure_memory` says."""
        options = self._options
        return time_checkpoints(
            files,
            options.workload,
            threads=self.threads,
            vocabulary=vocabulary,
            rounds=options.timing_rounds,
            dtype=TORCH_DTYPES[DTYPES[self.types[0]]],
            device=self._session.device,
        )

    def rounding(self, maker: Maker) -> None:
        """Return None: no weight is rounded."""

    def make(self, recipe: Recipe, made: Made, rounding: Rounding | None) -> Path:
        """Return the checkpoint of a recipe's shape, which is all that runs."""
        return made.source.folder

    def nbytes(self, path: Path) -> int:
        """Return the bytes of a checkpoint's weight files."""
        return checkpoint_nbytes(path)

    def verify(self, path: Path, made: Made) -> None:
        """Check the names and shapes of a checkpoint once more; its values were compared when it was written."""
        if made.source is not self._session.source:
            verify_checkpoint(path)

    def deliver(self, path: Path, folder: Path) -> Path | None:
        """Return None: the checkpoint is in the output already, where something was pruned."""
        return None


def _random(tile: torch.Tensor, tensor: OutgoingTensor) -> torch.Tensor:
    """Return weights that repeat random ones: values do not matter for the time, as long as all are finite."""
    count = tensor.nbytes // TORCH_DTYPES[tensor.dtype].itemsize
    values = torch.ones(count) if len(tensor.shape) < 2 else tile.repeat(-(-count // _TILE))[:count]
    return values.view(tensor.shape).to(TORCH_DTYPES[tensor.dtype])


def checkpoint_nbytes(folder: Path) -> int:
    """Return the bytes of a checkpoint's weight files, with their headers.

    Args:
        folder: The checkpoint.
    """
    return sum(path.stat().st_size for path in {info.file for info in read_index(folder).values()})


def _start(request: Mapping[str, Any]) -> WorkerProcess:
    return WorkerProcess(request, program=TORCH)


def time_checkpoints(
    folders: Mapping[str, Path],
    workload: Workload,
    *,
    threads: int,
    vocabulary: int,
    rounds: int,
    dtype: torch.dtype,
    device: torch.device,
    start: Start = _start,
) -> tuple[Figures, str]:
    """Time checkpoints in transformers, in turn.

    Where all fit in memory together, each has one process; otherwise each turn has its own.

    Args:
        folders: The checkpoints by name.
        workload: What is timed.
        threads: Threads for torch.
        vocabulary: Tokens that the prompt is drawn from; all models have so many.
        rounds: Turns of each.
        dtype: What they compute in.
        device: Where.
        start: Starts a process.

    Returns:
        For each tokens per second, seconds to the first token and bytes of memory (see `settle`; memory is missing
        where the system does not report it); and the versions.

    Raises:
        SourceError: transformers cannot run one.
    """
    request = {
        "task": "measure",
        "dtype": dtype_name(dtype),
        "device": str(device),
        "threads": threads,
        "prompt": workload.prompt,
        "new_tokens": workload.new_tokens,
        "vocabulary": vocabulary,
        "context": workload.context,
    }
    needed = sum(_HEADROOM * checkpoint_nbytes(folder) + _PROCESS_BYTES for folder in folders.values())
    return time_in_turn(
        {name: {**request, "model": str(folder)} for name, folder in folders.items()},
        workload.prompt,
        rounds=rounds,
        together=needed <= free_on(device),
        start=start,
        figures=_figures,
    )


def _figures(first: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, float]:
    found = {DECODE: float(answer["decode"]), TTFT: float(answer["first"])}
    if first["memory_bytes"] is not None:
        found[MEMORY] = float(first["memory_bytes"])
    return found
