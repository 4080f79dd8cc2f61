"""Making models of a search: the checkpoint of a shape, repaired in closed form."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..architectures.description import ROWS
from ..checkpoint.session import Session
from ..checkpoint.source import Source, open_source
from ..configuration import IShrinkConfig
from ..core.digest import digest
from ..edge.gguf_quantizations import PLAIN_BLOCK
from ..options.option import own_options
from ..pipeline.job import shrink_job
from ..pipeline.runner import CUT, run
from ..pipeline.trimming import find_vocabulary
from ..planning.row_choices import RowChoices
from ..recovery.teacher_text import TokenPair, pair_tokens
from ..report.plan import Plan
from ..report.run import read_run
from ..text.calibration import Calibration
from ..vocabulary.choice import RemovalOrder
from ..vocabulary.options import VocabularyOptions
from ..vocabulary.rewrite import kept_merges
from ..vocabulary.stage import Vocabulary
from .layout import KeptTokens, Layout


@dataclass(frozen=True)
class Made:
    """A checkpoint that was made, or the base.

    Args:
        source: The checkpoint.
        place: The folder in which everything of its shape lies, named after the sizes that are not the base's.
        pair: Its tokenizer and the base's; None where it has the base's.
    """

    source: Source
    place: Path
    pair: TokenPair | None = None


class Maker:
    """Makes checkpoints of one model. Scores, windows and the loaded base are shared between them.

    Args:
        session: The run over the base.
        config: Calibration, importance and compensation.
        calibration: The calibration text, drawn already.
        folder: Where the checkpoints lie.
        for_runtime: The runtime whose rules shapes follow (see `planning.runtime_check`); None for PyTorch's.
    """

    def __init__(
        self,
        session: Session,
        config: IShrinkConfig,
        calibration: Calibration,
        folder: Path,
        for_runtime: str | None = "llama.cpp",
    ) -> None:
        self.session = session
        self.config = config.cut_alone(
            for_runtime=for_runtime,
            # A search tries widths of this multiple, which is finer than the default of large models.
            intermediate_multiple=config.intermediate_multiple or (None if for_runtime else PLAIN_BLOCK),
        )
        self.calibration = calibration
        self.folder = folder
        self._tokenizer_bytes: dict[int, int | None] = {}
        self._plans: dict[str, Plan] = {}
        self._made: dict[str, Made] = {}

    @cached_property
    def _vocabulary(self) -> tuple[Vocabulary, RowChoices] | None:
        # Any smaller size says that rows may change; which sizes there are does not depend on it.
        config = self.config.replace(target="params=-50%")
        return find_vocabulary(self.session.source, config)

    @property
    def rows(self) -> RowChoices | None:
        """The sizes that the vocabulary can have; None where it cannot be cut."""
        return None if self._vocabulary is None else self._vocabulary[1]

    @cached_property
    def _order(self) -> RemovalOrder:
        assert self._vocabulary is not None
        # Text that the model samples counts where it was drawn anyway; a profile does not need it.
        drawn = "windows" in self.calibration.__dict__
        return self._vocabulary[0].order(self.calibration.sampled if drawn else None)

    def kept_tokens(self, rows: int) -> KeptTokens | None:
        """Return the vocabulary of a size; None for the base's own.

        Args:
            rows: The size.
        """
        if self._vocabulary is None or rows == self.session.source.binding.shape[ROWS]:
            return None
        kept = self._order.rows(rows)
        file = self._vocabulary[0].file
        splits = self._vocabulary[0].splits
        merges = kept_merges(file, np.asarray(kept), splits).tolist() if len(file.merges) else None
        return KeptTokens(kept, merges)

    def tokenizer_bytes(self, layout: Layout, rows: int) -> int | None:
        """Return the bytes of a vocabulary in a file; None for the base's own, and where files hold none.

        Args:
            layout: The base's file.
            rows: Its size.
        """
        if not layout.holds_vocabulary:
            return None
        if rows not in self._tokenizer_bytes:
            kept = self.kept_tokens(rows)
            self._tokenizer_bytes[rows] = None if kept is None else layout.vocabulary_bytes(kept)
        return self._tokenizer_bytes[rows]

    def _changed(self, shape: Mapping[str, int]) -> dict[str, int]:
        base = self.session.source.binding.shape
        return {key: size for key, size in shape.items() if size != base[key]}

    def name(self, shape: Mapping[str, int], within: str = "") -> str:
        """Return the name of what is made of a shape.

        Args:
            shape: The sizes by config key.
            within: Name of the larger model that it is a part of; empty for the base.
        """
        return _named(self._changed(shape)) + (f"-in-{digest(within)[:8]}" if within else "")

    def place(self, shape: Mapping[str, int], within: str = "") -> Path:
        """Return the folder in which everything of a shape lies.

        Args:
            shape: The sizes by config key.
            within: Name of the larger model that it is a part of; empty for the base.
        """
        return self.folder / self.name(shape, within)

    def plan(self, shape: Mapping[str, int], within: str = "") -> Plan | None:
        """Return what the model of a shape retains; None for the base.

        Args:
            shape: The sizes by config key.
            within: Name of the larger model that it is a part of; empty for the base.

        Raises:
            RequestError: The shape cannot be made.
        """
        name = self.name(shape, within)
        if name not in self._plans and self._changed(shape):
            found, _ = read_run(self.make(shape, within).source.folder)
            assert found is not None, "what is cut has a plan"
            self._plans[name] = found
        return self._plans.get(name)

    def make(self, shape: Mapping[str, int], within: str = "") -> Made:
        """Return the checkpoint of a shape, made where it is not there yet; the base for its own shape.

        Args:
            shape: The sizes by config key.
            within: Name of the larger model that it is a part of, whose plan was asked for; empty for the base.

        Raises:
            RequestError: The shape cannot be made.
        """
        name = self.name(shape, within)
        if name not in self._made:
            self._made[name] = self._make(shape, within)
        return self._made[name]

    def _make(self, shape: Mapping[str, int], within: str) -> Made:
        base, changed, place = self.session.source, self._changed(shape), self.place(shape, within)
        if not changed:
            return Made(base, place)
        folder = place / base.display_name.split("/")[-1]
        if not (folder / "config.json").is_file():
            session = Session(base, self.config)
            session.loaded = self.session.model
            config = self.config
            if ROWS not in changed:  # what stays of a vocabulary that does not change is not asked
                config = config.replace(
                    **{name: each.default for name, each in own_options(VocabularyOptions).items()}
                )
            job = shrink_job(session, config.replace(**changed), folder)
            job.calibration = self.calibration
            job.vocabulary = None if self._vocabulary is None else self._vocabulary[0]
            job.within = self._plans[within] if within else None
            folder.parent.mkdir(parents=True, exist_ok=True)
            run(CUT, job, overwrite=folder.exists())
        source = open_source(folder)
        pair = pair_tokens(
            source.load_tokenizer(), self.session.tokenizer, source.config.vocab_size, base.config.vocab_size
        )
        return Made(source, place, pair)

    def load(self, made: Made) -> Any:
        """Load a checkpoint in the run's dtype, on its device; the base is loaded already.

        Args:
            made: The checkpoint.
        """
        if made.source is self.session.source:
            return self.session.model
        return made.source.load_model(self.session.dtype, self.session.device)

    def remove(self, shape: Mapping[str, int]) -> None:
        """Remove what was made of a shape.

        Args:
            shape: The sizes by config key.
        """
        self._made.pop(self.name(shape), None)
        shutil.rmtree(self.place(shape), ignore_errors=True)


def _named(changed: Mapping[str, int]) -> str:
    return "-".join(f"{key}-{size}" for key, size in sorted(changed.items())) or "base"
