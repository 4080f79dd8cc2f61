"""The stage that cuts, and the closed-form repair after it."""

from __future__ import annotations

from pathlib import Path

import torch

from ..architectures.binding import Binding
from ..architectures.config_edit import edit_config
from ..architectures.model_class import parse_config
from ..checkpoint.loading import load_model
from ..checkpoint.session import Session
from ..checkpoint.source import Source
from ..checkpoint.stored_names import read_by_parameter
from ..checkpoint.tensors import DTYPES, overwrite_tensor
from ..core.json_files import read_json
from ..core.processes import is_main_process
from ..core.progress import byte_bar, note
from ..modeling.layerwise import check_apart
from ..report.compensation import CompensationRecord
from ..report.plan import Plan
from ..text.calibration import Calibration
from .compensation import compensate, needs_cut_model
from .cut import write_checkpoint
from .folds import check_windows
from .options import CompensationOptions
from .repair_progress import RepairProgress
from .shards import WrittenShards, plan_mark


def check_compensation(options: CompensationOptions, binding: Binding, processes: int = 1) -> None:
    """Check that the calibration text has enough windows for the repair, and that the model can be repaired.

    Args:
        options: The request.
        binding: The model.
        processes: Processes that share the windows.

    Raises:
        DataError: The text has too few.
        RequestError: The model's layers cannot be run one by one.
    """
    if options.compensation == "ridge":
        check_windows(options.calibration_samples, least=processes)
        check_apart(binding, "compensation", "use compensation none")


def cut(session: Session, plan: Plan, folder: Path) -> None:
    """Write the cut checkpoint into an empty folder and verify it.

    Args:
        session: The run; its source is the base.
        plan: The plan.
        folder: An existing, empty folder.

    Raises:
        VerificationError: The written checkpoint is not what was planned.
    """
    source = session.source
    edited = edit_config(source.raw_config, source.config, source.binding, plan.new_shape, plan.layers)
    if "auto_map" in source.raw_config:
        note(f"config.json: left out auto_map; transformers' own {source.config.model_type} reads the result")
    # Not the plan's own number: the source has lost rows of the vocabulary already, where it is to lose any.
    nbytes = source.nbytes * plan.new_num_parameters // source.binding.num_parameters()
    with byte_bar("writing the checkpoint", nbytes) as written:
        write_checkpoint(
            source.folder,
            source.tensors,
            source.binding,
            plan,
            edited,
            folder,
            progress=written,
            shards=_shards(session, plan),
        )


def _shards(session: Session, plan: Plan) -> WrittenShards | None:
    """Return where written shards are linked to; None where no later run could use them.

    Compensation writes into them. What it writes is written again, but where it reads the cut model itself, it would
    read what it wrote.
    """
    if session.spool_folder is None or not session.offloads or needs_cut_model(session.source.binding, plan):
        return None
    return WrittenShards(session.spool_folder, plan_mark(plan))


def repair(
    session: Session, options: CompensationOptions, calibration: Calibration, plan: Plan, folder: Path
) -> CompensationRecord:
    """Repair a cut checkpoint in closed form on the calibration text, as far as the options request it.

    Every process calls it with the same text, of which each reads its share; the main one writes.

    Args:
        session: The run; its source is the base.
        options: The request.
        calibration: The calibration text.
        plan: The plan that the checkpoint was cut by.
        folder: The checkpoint; its weights are replaced.
    """
    if options.compensation != "ridge":
        return CompensationRecord(options.compensation)
    binding = session.source.binding
    tensors = read_by_parameter(folder, parse_config(read_json(folder / "config.json")))
    kept = session.spool_folder if session.offloads else None
    progress = None if kept is None else RepairProgress(kept, plan_mark(plan))
    for name, stored in () if progress is None else progress.weights():
        overwrite_tensor(tensors[name], stored)

    def write(name: str, weight: torch.Tensor) -> None:
        if not is_main_process():
            return
        stored = weight.to(DTYPES[tensors[name].dtype]).cpu()
        overwrite_tensor(tensors[name], stored)
        if progress is not None:
            progress.log(name, stored)

    with calibration.shown_to(session.model):
        repairs = compensate(
            session.model,
            binding,
            plan,
            calibration.windows,
            write,
            kinds=calibration.kinds,
            cut_model=_cut_model(session, binding, plan, folder),
            batch_size=options.batch_windows,
            progress=progress,
            shared=True,
        )
    return CompensationRecord("ridge", tuple(repairs))


def _cut_model(session: Session, binding: Binding, plan: Plan, folder: Path) -> object:
    return session.load(Source(folder.name, folder)) if needs_cut_model(binding, plan) else None


def refit(
    session: Session,
    plan: Plan,
    folder: Path,
    windows: torch.Tensor,
    kinds: torch.Tensor,
    *,
    rank: int | None = None,
) -> dict[str, torch.Tensor]:
    """Re-fit the projections of a pruned checkpoint that read what was cut, on any text. The folder is only read.

    Args:
        session: The run; its source is the base.
        plan: The plan that the checkpoint was cut by.
        folder: The checkpoint. It can have been repaired before: new weights are compared with the stored ones.
        windows: Token ids, shape (windows, length).
        kinds: For each window the number of its source, shape (windows,).
        rank: Maximum rank of a weight's change; None sets no limit.

    Returns:
        The weights that are better than the stored ones, by name, float64 on the CPU.
    """
    weights: dict[str, torch.Tensor] = {}
    compensate(
        session.model,
        session.source.binding,
        plan,
        windows,
        weights.__setitem__,
        kinds=kinds,
        cut_model=load_model(folder, session.dtype, session.device),
        batch_size=session.options.batch_windows,
        rank=rank,
        experts=False,  # training has the weights of modules to begin with, and fused experts are none
    )
    return {name: weight.cpu() for name, weight in weights.items()}
