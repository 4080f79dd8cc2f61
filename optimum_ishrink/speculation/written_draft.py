"""Writing a draft: the checkpoint, how many tokens it drafts, the record, and the card's section."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..card.build import build_card
from ..checkpoint.generation import GENERATION_CONFIG, mend_generation_config
from ..core.json_files import write_json
from ..report.draft import DRAFT_FILE, DraftExpectation, DraftRecord


def write_draft(record: DraftRecord, folder: Path, checkpoint: Path | None) -> None:
    """Write the fastest draft and the record; the record alone where nothing was made.

    Args:
        record: The record.
        folder: An existing, empty folder.
        checkpoint: The fastest draft's output folder; None where it was not made here.
    """
    if checkpoint is not None:
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        set_drafting(folder, record.best_draft.known)
    write_json(folder / DRAFT_FILE, record.to_json())
    if checkpoint is not None:
        build_card(folder)


def set_drafting(folder: Path, known: DraftExpectation) -> None:
    """Write how long a draft proposes into its generation config, where transformers reads it.

    Args:
        folder: The draft's checkpoint.
        known: What was found to be fastest.
    """
    path = folder / GENERATION_CONFIG
    values = mend_generation_config(path)[0] if path.is_file() else {}
    values |= {
        "num_assistant_tokens": known.num_assistant_tokens,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": known.confidence_threshold,
    }
    write_json(path, values)
