"""Which shapes are tried as drafts, and how they are made: cut, repaired, and recovered where that is asked."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..architectures.description import LAYERS, NEURONS
from ..checkpoint.fingerprint import model_fingerprint
from ..checkpoint.session import Session
from ..checkpoint.source import Source, open_source
from ..configuration import IShrinkConfig
from ..core.digest import digest
from ..core.version import __version__
from ..errors import RequestError
from ..pipeline.job import recover_job, shrink_job
from ..pipeline.runner import RECOVER, SHRINK, run
from ..text.calibration import Calibration
from .options import LAYER_SHARES, WIDTH_SHARES, DraftOptions

REQUEST = "request"

_MULTIPLE = 64
"""Default widths are multiples of this where they can be."""


@dataclass(frozen=True)
class Candidate:
    """What may draft.

    Args:
        name: What tables call it.
        shape: Its sizes by config key, as far as they are not the base's.
        source: Its checkpoint; None for layers of the base itself.
        exit: Layers of the base that run; None for a checkpoint.
        made: Whether it was made here.
    """

    name: str
    shape: Mapping[str, int]
    source: Source | None
    exit: int | None = None
    made: bool = False


def shapes_to_try(base: Mapping[str, int], options: DraftOptions) -> list[dict[str, int]]:
    """Return the shapes that are tried, as changes of the base's: every depth, at every width.

    Args:
        base: The base's sizes by config key.
        options: Which depths and widths were asked for.

    Raises:
        RequestError: A size is not below the base's, or the base has no MLP width to change.
    """
    depths = _sizes(LAYERS, base, options.draft_layers)
    if options.draft_layers is None:
        depths = sorted({max(1, round(share * base[LAYERS])) for share in LAYER_SHARES} - {base[LAYERS]})
    if NEURONS not in base:
        if options.draft_intermediate_size is not None:
            raise RequestError(
                "--draft-intermediate-size changes the width of the MLP, which this architecture does not count; "
                "leave it out"
            )
        return [{LAYERS: depth} for depth in depths]
    widths = _sizes(NEURONS, base, options.draft_intermediate_size)
    if options.draft_intermediate_size is None:
        widths = [_width(base[NEURONS], share) for share in WIDTH_SHARES]
    shapes = [{LAYERS: depth, NEURONS: width} for depth in depths for width in widths]
    return [{key: size for key, size in shape.items() if size != base[key]} for shape in shapes]


def _sizes(key: str, base: Mapping[str, int], asked: object) -> list[int]:
    sizes = list(asked) if isinstance(asked, (list, tuple)) else []
    for size in sizes:
        if size > base.get(key, size):
            raise RequestError(f"a draft of {key}={size} is larger than the base's {base[key]}; name a smaller one")
    return sizes


def _width(whole: int, share: float) -> int:
    width = int(whole * share)
    return width // _MULTIPLE * _MULTIPLE if _MULTIPLE <= width < whole else width


def shape_name(shape: Mapping[str, int]) -> str:
    """Return what tables call a shape.

    Args:
        shape: Its sizes by config key, as far as they are not the base's.
    """
    words = {LAYERS: "layers", NEURONS: "neurons"}
    return ", ".join(f"{size} {words.get(key, key)}" for key, size in shape.items()) or "the whole base"


class DraftMaker:
    """Makes drafts of one model; calibration and the loaded base are shared between them.

    Args:
        session: The run over the base.
        config: Calibration, importance, compensation and recovery.
        folder: Where drafts are made. What an interrupted run of the same request made there is used.
        name: Name of the output folder, which reports call the draft by.
    """

    def __init__(self, session: Session, config: IShrinkConfig, folder: Path, name: str) -> None:
        self.session = session
        self.config = config.replace(target=None, profile=None, prune=None, evaluate=False, benchmark=False)
        self.folder = folder
        self.name = name
        self._calibration = Calibration(self.config, session)
        request = digest([__version__, model_fingerprint(session.source), self.config.to_dict()])
        note = folder / REQUEST
        if not note.is_file() or note.read_text(encoding="ascii") != request:
            for entry in folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            note.write_text(request, encoding="ascii")

    def _place(self, shape: Mapping[str, int], kind: str) -> Path:
        return self.folder / "-".join([kind, *(f"{key}-{size}" for key, size in sorted(shape.items()))]) / self.name

    def _protecting(self, shape: Mapping[str, int]) -> IShrinkConfig:
        """Return the config with fewer protected layers where a draft has no room for the default ones.

        The defaults are for models that replace their base. A draft may be shallower than they are together.
        """
        config, binding = self.config, self.session.source.binding
        if config.keep_first_layers is not None or config.keep_last_layers is not None:
            return config
        depth = shape.get(LAYERS, binding.shape[LAYERS])
        first, last = config.protection(binding.shape[LAYERS], binding.first_layers)
        if first + last <= depth:
            return config
        first = max(binding.first_layers, min(first, depth // 2))
        return config.replace(keep_first_layers=first, keep_last_layers=max(0, min(last, depth - first)))

    def cut(self, shape: Mapping[str, int]) -> Candidate:
        """Return a draft as it is cut and repaired.

        Args:
            shape: Its sizes by config key, as far as they are not the base's.

        Raises:
            RequestError: The shape cannot be made.
        """
        folder = self._place(shape, "cut")
        if not (folder / "config.json").is_file():
            session = Session(self.session.source, self.config)
            session.loaded = self.session.model
            job = shrink_job(session, self._protecting(shape).replace(recovery="none", **shape), folder)
            job.calibration = self._calibration
            run(SHRINK, job, overwrite=folder.exists())
        return Candidate(shape_name(shape), shape, open_source(folder), made=True)

    def recover(self, candidate: Candidate) -> Candidate:
        """Return a draft that is trained with the base as its teacher.

        Args:
            candidate: The draft as it was cut.

        Raises:
            RequestError: The training cannot be made.
            TrainingError: It stopped before its end; the same command resumes it.
        """
        assert candidate.source is not None, "what was cut has a checkpoint"
        folder = self._place(candidate.shape, "recovered")
        if not (folder / "config.json").is_file():
            job = recover_job(candidate.source, self.session.source, self.config, folder)
            if (job.session.dtype, job.session.device) == (self.session.dtype, self.session.device):
                job.session.loaded = self.session.model
            run(RECOVER, job, overwrite=folder.exists())
        return Candidate(candidate.name, candidate.shape, open_source(folder), made=True)
