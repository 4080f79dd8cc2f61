"""What a search needs of a runtime: files of every shape with their bytes, probes, timings, and the file that runs.

There are two: llama.cpp, which runs GGUF files (`llama_cpp_runtime`), and torch, where transformers runs safetensors
checkpoints (`torch_runtime`). All else of a search is the same for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ..checkpoint.session import Session
from ..planning.profile_schema import TORCH
from .layout import KeptTokens, Layout
from .making import Made, Maker
from .options import ProfileOptions
from .recipe import Recipe
from .rounding import Rounding
from .timing import Figures


class Runtime(Protocol):
    """One model on one runtime."""

    @property
    def name(self) -> str:
        """Its name, as `--runtime` takes it."""

    @property
    def shaped_for(self) -> str | None:
        """What `for_runtime` is where models are cut for it; None where every shape runs."""

    @property
    def threads(self) -> int:
        """Threads that it computes with."""

    @property
    def types(self) -> tuple[str, ...]:
        """Types that matrices can have; the first is what relative limits refer to.

        Raises:
            RequestError: One was requested that it does not run this model in.
        """

    @property
    def layout(self) -> Layout:
        """The base's file, without the weights."""

    def check(self) -> None:
        """Check all that can be known before long work.

        Raises:
            RequestError: The request cannot be met.
            ShapeError: A type fits none of its matrices.
            SourceError: It cannot run the model.
        """

    def write_probe(
        self, shape: Mapping[str, int], types: Mapping[str, str], path: Path, tokens: KeptTokens | None
    ) -> None:
        """Write a smaller model with random weights, to be timed.

        Args:
            shape: The sizes by config key.
            types: Name of the type of each matrix, by its name in the layout.
            path: Where; nothing is there yet.
            tokens: Its vocabulary; None for the base's.
        """

    def time(self, files: Mapping[str, Path], *, vocabulary: int) -> tuple[Figures, str]:
        """Time models in turn.

        Args:
            files: What `write_probe` wrote or `make` returned, by name.
            vocabulary: Tokens that the prompt is drawn from; all models have so many.

        Returns:
            For each tokens per second, seconds to the first token and bytes of memory, as far as the
            system reports them; and the runtime's version.

        Raises:
            SourceError: It cannot run one.
        """

    def rounding(self, maker: Maker) -> Rounding | None:
        """Return what rounds matrices to their types for what they compute; None where no type rounds any.

        Args:
            maker: Has the models and the calibration text.
        """

    def make(self, recipe: Recipe, made: Made, rounding: Rounding | None) -> Path:
        """Return what runs of a recipe, written where it is not there yet.

        Args:
            recipe: The recipe.
            made: The checkpoint of its shape; the base's for its own shape.
            rounding: Rounds its matrices; None where they have the nearest values.
        """

    def nbytes(self, path: Path) -> int:
        """Return the bytes of what `make` returned.

        Args:
            path: That.
        """

    def verify(self, path: Path, made: Made) -> None:
        """Check that what runs is what was made, as any export is checked.

        Args:
            path: What `make` returned.
            made: The checkpoint that it was made from.

        Raises:
            VerificationError: It is not.
        """

    def deliver(self, path: Path, folder: Path) -> Path | None:
        """Copy what runs into the output, and return where it lies; None where that is the checkpoint alone.

        Args:
            path: What `make` returned.
            folder: An existing folder.
        """


def open_runtime(session: Session, options: ProfileOptions, folder: Path) -> Runtime:
    """Return the runtime of a request.

    Args:
        session: The run over the base.
        options: The runtime, and what is timed on it.
        folder: Where it can write.
    """
    if options.runtime == TORCH:
        from .torch_runtime import TorchRuntime

        return TorchRuntime(session, options)
    from .llama_cpp_runtime import LlamaCppRuntime

    return LlamaCppRuntime(session, options, folder)
