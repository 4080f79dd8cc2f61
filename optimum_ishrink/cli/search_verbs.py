"""The verbs that find a model for a budget."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .flags import given
from .requests import checked_output, open_shrinker, quiet_transformers, read_request, register_description


def search(args: argparse.Namespace) -> Any:
    """Search for the best model under a budget.

    Args:
        args: Parsed arguments.
    """
    from ..search.options import SearchOptions
    from .show_search import show_search

    values = given(args, SearchOptions)
    SearchOptions(**values)
    args.target = args.context = args.profile = None  # the config's are those of one model that shrink cuts
    model, config = read_request(args)
    output = checked_output(args)
    record = open_shrinker(args, model).search(config, save_directory=output, overwrite=args.overwrite, **values)
    if args.json:
        return {"output": str(output), **record.to_json()}
    show_search(record, output)
    return None


def profile(args: argparse.Namespace) -> Any:
    """Measure what a model's parts cost on this machine, or write a program that measures another one.

    Args:
        args: Parsed arguments.
    """
    from ..core.output import check_output_file
    from ..search.options import ProfileOptions
    from .show_search import show_profile, show_script

    values = given(args, ProfileOptions)
    ProfileOptions(**values)
    args.context = None  # the config's is that of a model that shrink cuts
    model, config = read_request(args)
    check_output_file(Path(args.output), args.overwrite)
    shrinker = open_shrinker(args, model)
    if args.script:
        shrinker.profile_script(config, output=args.output, overwrite=args.overwrite, **values)
        if args.json:
            return {"output": args.output}
        show_script(Path(args.output))
        return None
    found = shrinker.profile(config, output=args.output, overwrite=args.overwrite, **values)
    if not args.json:
        show_profile(found, Path(args.output))
    return found.to_json()


def advise(args: argparse.Namespace) -> Any:
    """List ways to meet a budget.

    Args:
        args: Parsed arguments.
    """
    from ..architectures.headers import bind_folder
    from ..search.options import AdviceOptions
    from ..search.ways import find_ways
    from .show_search import show_ways

    options = AdviceOptions(**given(args, AdviceOptions))
    register_description(args)
    folder = Path(args.model).expanduser()
    binding = None if args.gguf_file or args.architecture else bind_folder(folder) if folder.is_dir() else None
    if binding is None:
        from ..checkpoint.config_source import open_config

        quiet_transformers()
        binding = open_config(args.model, revision=args.revision, gguf_file=args.gguf_file).binding
    ways = find_ways(binding, options, model=args.model)
    if args.json:
        return {"target": options.budget, "ways": [way.to_json() for way in ways]}
    show_ways(ways, options.budget)
    return None
