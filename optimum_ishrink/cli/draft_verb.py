"""The verb that makes a draft for assisted generation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..planning.options import ShapeOptions
from ..speculation.options import DraftOptions
from .flags import add_options, given
from .requests import open_shrinker, read_request
from .shared_flags import common_flags, importance_flags, model_flags, output_flags, recovery_flags
from .show import print_table, say

DRAFT = (
    "make a model that drafts for its base: the output stays the base's, its speed is measured",
    "ishrink draft --model HuggingFaceTB/SmolLM2-1.7B-Instruct --recovery kl --output draft\n"
    "  ishrink draft --model recovered --early-exit 8,12",
)


def add_draft_flags(parser: argparse.ArgumentParser) -> None:
    """Add the verb's flags.

    Args:
        parser: The verb's parser.
    """
    model_flags(parser, recipe=True)
    output_flags(parser, required=False)
    add_options(parser.add_argument_group("drafts"), DraftOptions)
    importance_flags(parser)
    protected = parser.add_argument_group("which layers are protected")
    add_options(protected, ShapeOptions, only=("keep_first_layers", "keep_last_layers"))
    recovery_flags(parser, "{} of the drafts", hide=("--teacher",))
    common_flags(parser)


def draft(args: argparse.Namespace) -> Any:
    """Make a draft, or measure what could be one.

    Args:
        args: Parsed arguments.
    """
    from ..core.output import check_output
    from ..report.draft_tables import DRAFT_HEADER, draft_rows, draft_sentences

    values = given(args, DraftOptions)
    DraftOptions(**values)
    args.target = None  # the config's is that of one model that shrink cuts
    model, config = read_request(args)
    output = None if args.output is None else Path(args.output)
    if output is not None:
        check_output(output, args.overwrite)
    record = open_shrinker(args, model).draft(config, save_directory=output, overwrite=args.overwrite, **values)
    if args.json:
        return {"output": None if output is None else str(output), **record.to_json()}
    title = f"Drafts for {record.model} ({record.base_type}) on {record.runtime}, in {record.draft_type}"
    print_table(title, DRAFT_HEADER, draft_rows(record))
    for line in draft_sentences(record):
        say(f"- {line}")
    if output is not None:
        say(f"Written to {output}")
    return None
