"""Flags that several verbs share."""

from __future__ import annotations

import argparse
from typing import Any

from ..importance.options import ImportanceOptions
from ..options.offload import OffloadOptions
from ..options.run import RunOptions
from ..recovery.compile_options import CompileOptions
from ..recovery.distillation_options import DistillationOptions
from ..recovery.options import RecoveryOptions
from ..surgery.options import CompensationOptions
from ..text.options import CalibrationOptions
from .flags import add_options


def model_flags(parser: argparse.ArgumentParser, *, recipe: bool = False) -> None:
    """Add the flags that say which model."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="M", required=not recipe, help="Hub id, folder, or a URL of fsspec")
    group.add_argument("--gguf-file", metavar="F", help="GGUF file in that folder or repository")
    group.add_argument("--revision", help="branch, tag or commit on the Hub")
    architecture_flag(group)
    if recipe:
        group.add_argument("--config", metavar="FILE.yaml", help="recipe; flags override its values")


def architecture_flag(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the flag that describes another architecture."""
    group.add_argument("--architecture", metavar="FILE.json", help="description of another architecture")


def output_flags(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the flags of an output folder."""
    parser.add_argument(
        "--output",
        metavar="DIR",
        required=required,
        help="output folder, or for some verbs a URL of fsspec; it appears whole or not at all",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the output folder")


def importance_flags(parser: argparse.ArgumentParser, *, compensation: bool = True) -> None:
    """Add the flags that say what is chosen to be cut, and on which text."""
    group = parser.add_argument_group("how to choose")
    add_options(group, ImportanceOptions)
    if compensation:
        add_options(group, CompensationOptions)
    add_options(group, CalibrationOptions)


def recovery_flags(parser: argparse.ArgumentParser, title: str = "{}", **how: Any) -> None:
    """Add the flags of a recovery.

    Args:
        parser: The verb's parser.
        title: Titles of the groups, in which `{}` stands for what a group is about.
        **how: Further arguments of `add_options`.
    """
    recovery = parser.add_argument_group(title.format("recovery"))
    add_options(recovery, RecoveryOptions, **how)
    add_options(recovery, CompileOptions, **how)
    add_options(parser.add_argument_group(title.format("distillation")), DistillationOptions, **how)


def common_flags(parser: argparse.ArgumentParser, *, offload: bool = False) -> None:
    """Add the flags that every verb with a run has, and those of verbs that can read a model layer by layer."""
    group = parser.add_argument_group("common")
    add_options(group, OffloadOptions, only=None if offload else ())
    add_options(group, RunOptions)
    json_flag(group)


def json_flag(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the flag that prints JSON."""
    group.add_argument("--json", action="store_true", help="print one JSON object on standard output")
