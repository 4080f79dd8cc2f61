"""What a verb is asked for: its model, its config and its output folder, from parsed flags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configuration import IShrinkConfig, read_recipe
from ..errors import RequestError
from .flags import given

if TYPE_CHECKING:
    from ..api.shrinker import IShrinker


def quiet_transformers() -> None:
    """Silence transformers and the Hub client, which are imported by now or will be at once."""
    import transformers
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    disable_progress_bars()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def read_request(args: argparse.Namespace) -> tuple[str, IShrinkConfig]:
    """Return the model's name and the config: the recipe's values, overridden by the flags.

    Args:
        args: Parsed arguments.

    Raises:
        RequestError: No model is named, or an option is not allowed.
    """
    values: dict[str, Any] = read_recipe(args.config) if getattr(args, "config", None) else {}
    recipe_model = values.pop("model", None)
    values.update(given(args, IShrinkConfig))
    model = args.model or recipe_model
    if not model:
        raise RequestError("name the model: --model with a Hub id or folder, or --config with a recipe that names it")
    return str(model), IShrinkConfig(**values)


def lists_criteria(args: argparse.Namespace) -> bool:
    """Return whether a request is one for the list of criteria, such as `--importance help`.

    Args:
        args: Parsed arguments.
    """
    return "help" in (args.importance, args.expert_importance, args.layer_importance)


def register_description(args: argparse.Namespace) -> None:
    """Register the description of an architecture that a flag names.

    Args:
        args: Parsed arguments.
    """
    if args.architecture:
        from ..architectures.description import register_architecture

        register_architecture(args.architecture)


def open_shrinker(args: argparse.Namespace, model: str) -> IShrinker:
    """Open the model of a request.

    Args:
        args: Parsed arguments.
        model: Hub id or folder.
    """
    from ..api.shrinker import IShrinker
    from ..checkpoint.source import open_source

    quiet_transformers()
    register_description(args)
    revision, gguf_file = getattr(args, "revision", None), getattr(args, "gguf_file", None)
    return IShrinker(open_source(model, revision=revision, gguf_file=gguf_file))


def checked_output(args: argparse.Namespace) -> Path:
    """Check the output folder, and return it.

    Args:
        args: Parsed arguments.
    """
    from ..core.output import check_output

    check_output(Path(args.output), args.overwrite)
    return Path(args.output)
