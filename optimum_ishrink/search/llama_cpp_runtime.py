"""llama.cpp as the runtime of a search: GGUF files, each matrix in its own type."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from ..checkpoint.session import Session
from ..core.memory import free_memory
from ..edge.gguf_export import verify_file
from ..edge.gguf_quantizations import GGUF_QUANTIZATIONS
from ..edge.gguf_tokenizer import find_gguf_tokenizer, name_once_cut
from ..edge.llama_server import check_runtime, default_threads
from ..edge.mixed_types import MIXED_TYPES
from ..edge.worker_process import Start, WorkerProcess
from ..edge.write_gguf import check_tools
from .gguf_files import write_base_file, write_mixed_file
from .layout import KeptTokens
from .making import Made, Maker
from .options import ProfileOptions
from .probe_files import write_probe
from .recipe import Recipe
from .requirements import check_model
from .rounding import Rounding
from .template import Template, read_template
from .timing import Figures, time_in_turn
from .turns import Workload, fit_together, llama_cpp_figures, llama_cpp_requests


class LlamaCppRuntime:
    """One model on llama.cpp; see `runtime.Runtime`.

    Args:
        session: The run over the base.
        options: What is timed.
        folder: Where the base's file and those of recipes lie.
    """

    name = "llama.cpp"
    shaped_for: str | None = "llama.cpp"

    def __init__(self, session: Session, options: ProfileOptions, folder: Path) -> None:
        self._session = session
        self._options = options
        self._folder = folder

    @property
    def threads(self) -> int:
        """Threads that it computes with: the physical cores by default."""
        return self._options.threads or default_threads()

    @property
    def types(self) -> tuple[str, ...]:
        """Types that matrices can have."""
        return tuple(name.lower() for name in self._options.quantization or MIXED_TYPES)

    def check(self) -> None:
        """Check that llama.cpp and its converter are there, and that it runs the model in the types."""
        check_runtime()
        self.check_files()

    def check_files(self) -> None:
        """Check what files need, whatever machine runs them: the converter, and a model that llama.cpp runs."""
        check_tools(GGUF_QUANTIZATIONS["bf16"])
        check_model(self._session.source, self.types)

    @cached_property
    def layout(self) -> Template:
        """The base as a file of 16 bits."""
        path = self._folder / "base.gguf"
        if not path.is_file():
            write_base_file(self._session.source, path)
        return read_template(path, self._session.source.binding, name_once_cut(self._session.tokenizer))

    def write_probe(
        self, shape: Mapping[str, int], types: Mapping[str, str], path: Path, tokens: KeptTokens | None
    ) -> None:
        """Write a smaller model's file with random weights."""
        write_probe(self.layout, shape, types, path, tokens)

    def time(self, files: Mapping[str, Path], *, vocabulary: int) -> tuple[Figures, str]:
        """Time files in turn. Memory is the process's peak without what it held before loading."""
        options = self._options
        return time_files(
            files, options.workload, threads=self.threads, vocabulary=vocabulary, rounds=options.timing_rounds
        )

    def exact_file(self, made: Made) -> Path:
        """Return the file of 16 bits of a checkpoint, written where it is not there yet.

        Args:
            made: The checkpoint.
        """
        if made.source is self._session.source:
            return self.layout.path
        path = made.place / "exact.gguf"
        if not path.is_file():
            write_base_file(made.source, path)
        return path

    def rounding(self, maker: Maker) -> Rounding:
        """Return what rounds matrices for what they compute."""
        return Rounding(self.layout, maker, self.exact_file)

    def make(self, recipe: Recipe, made: Made, rounding: Rounding | None) -> Path:
        """Return the file of a recipe."""
        path = self._folder / "files" / f"{recipe.key}.gguf"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mixed_file(
                self.exact_file(made),
                recipe.types,
                path,
                general=self.layout.general(recipe.shape),
                rounded=None if rounding is None else rounding.rounded(made, recipe.types),
                overwrite=True,
            )
        return path

    def nbytes(self, path: Path) -> int:
        """Return the bytes of a file."""
        return path.stat().st_size

    def verify(self, path: Path, made: Made) -> None:
        """Compare a file in llama.cpp with its checkpoint: predictions, and how text is split."""
        opened = made.source.load_tokenizer()
        told = find_gguf_tokenizer(made.source.folder, opened)
        verify_file(made.source, opened, path, self.exact_file(made), told, self.threads)

    def deliver(self, path: Path, folder: Path) -> Path | None:
        """Copy a file into the output."""
        file = folder / f"{self._session.base_name.split('/')[-1]}-ishrink.gguf"
        shutil.copyfile(path, file)
        return file


def time_files(
    files: Mapping[str, Path],
    workload: Workload,
    *,
    threads: int,
    vocabulary: int,
    rounds: int,
    start: Start = WorkerProcess,
) -> tuple[Figures, str]:
    """Time GGUF files in llama.cpp, in turn.

    Where all fit in memory together, each has one process; otherwise each turn has its own.

    Args:
        files: The files by name.
        workload: What is timed.
        threads: Threads for llama.cpp.
        vocabulary: Tokens that the prompt is drawn from; all files have so many.
        rounds: Turns of each file.
        start: Starts a process.

    Returns:
        For each file its figures (see `llama_cpp_figures`); and the version of llama.cpp.

    Raises:
        SourceError: llama.cpp cannot run a file.
    """
    return time_in_turn(
        llama_cpp_requests(files, workload, threads=threads, vocabulary=vocabulary),
        workload.prompt,
        rounds=rounds,
        together=fit_together(files, free_memory()),
        start=start,
        figures=llama_cpp_figures(threads),
    )
