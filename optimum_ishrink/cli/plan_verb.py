"""The verb `plan`: what would be removed, its shape alone, or how long a shrink would take."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configuration import IShrinkConfig
from ..errors import RequestError
from .requests import lists_criteria, open_shrinker, quiet_transformers, read_request, register_description

if TYPE_CHECKING:
    from ..api.shrinker import IShrinker
    from ..checkpoint.source import Source
    from ..pipeline.estimate import Estimate

PLAN = (
    "print or save what would be removed, and change nothing",
    "ishrink plan --model small-model --num-hidden-layers 14 --intermediate-size 7168\n"
    "  ishrink plan --model large-model --target params=-15% --estimate",
)
"""What the verb does, and examples."""


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that only `plan` has.

    Args:
        parser: The verb's parser.
    """
    parser.add_argument("--output", metavar="FILE", help="also save the plan as JSON")
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument(
        "--shape-only",
        action="store_true",
        help="only the shape: reads config.json and no weights, in a second; with --gguf-file the header alone, from "
        "the Hub by ranged requests",
    )
    alone.add_argument(
        "--estimate",
        action="store_true",
        help="the shape, and the time, memory and disk of each stage of a shrink on this machine, whose speeds are "
        "measured in a few seconds; reads no weights",
    )


def plan(args: argparse.Namespace) -> Any:
    """Print what would be removed.

    Args:
        args: Parsed arguments.
    """
    from .show import show_criteria

    if lists_criteria(args):
        return show_criteria(args)
    model, config = read_request(args)
    if args.output:
        if args.shape_only or args.estimate:
            flag = "--shape-only" if args.shape_only else "--estimate"
            raise RequestError(f"{flag} chooses nothing, so there is no plan to save; leave out --output")
        from ..core.output import check_output_file

        check_output_file(Path(args.output), None)
    if args.shape_only or args.estimate:
        return _from_config(args, model, config)
    return show_plan_alone(args, open_shrinker(args, model), config, check_all=False)


def show_plan_alone(
    args: argparse.Namespace, shrinker: IShrinker, config: IShrinkConfig, *, check_all: bool
) -> dict[str, Any]:
    """Make a plan and print it.

    Args:
        args: Parsed arguments.
        shrinker: The model.
        config: The request.
        check_all: Check the other stages of a shrink as well; the plan is not saved then.
    """
    from ..core.json_files import write_json
    from .show import show_plan, show_runtime

    made = shrinker.plan(config, check_all=check_all)
    if args.output and not check_all:
        write_json(Path(args.output), made.to_json())
    if not args.json:
        show_plan(made, layers=True)
        show_runtime(shrinker.source.binding, config, made.new_shape)
    return made.to_json()


def _from_config(args: argparse.Namespace, model: str, config: IShrinkConfig) -> Any:
    """Print what the config alone tells: the new shape, and with `--estimate` the work of making it."""
    from ..pipeline.shape_alone import shape_alone
    from ..planning.shape import target_of
    from ..planning.target import Parameters
    from .show import show_runtime, show_shape

    register_description(args)

    def open_model() -> Source:
        from ..checkpoint.config_source import open_config

        quiet_transformers()
        # A vocabulary that may change has to be read.
        reads = bool(config.target or config.vocab_size)
        return open_config(model, revision=args.revision, gguf_file=args.gguf_file, tokenizer=reads)

    # A description from outside the package is not proved to write what its config class derives, and what a runtime
    # cannot run also depends on keys whose defaults only the config class knows.
    asks = bool(args.gguf_file or args.architecture or config.for_runtime or config.tie_embeddings)
    binding, shape, removed = shape_alone(None if asks else Path(model).expanduser(), config, open_model)
    before, after = binding.num_parameters() + removed, binding.num_parameters(shape)
    found: dict[str, Any] = {
        "shape": binding.shape,
        "new_shape": shape,
        "num_parameters": before,
        "new_num_parameters": after,
    }
    more = []
    target = target_of(binding, config, removed) if config.target else None
    if target is not None and not isinstance(target.cost, Parameters):
        value = target.cost.of(binding, shape, after)
        change = target.cost.change(value, target.whole)
        more = [("counted by the target", target.cost.words(target.whole), f"{target.cost.words(value)} ({change})")]
        found |= {"counted": target.whole, "new_counted": value}
    if not args.json:
        show_shape(model, binding.shape, shape, before, after, more)
        show_runtime(binding, config, shape)
    if args.estimate:
        from ..pipeline.estimate import estimate_shrink

        estimate = estimate_shrink(binding, shape, config, folder=Path.cwd())
        found["estimate"] = estimate.to_json()
        if not args.json:
            _show_estimate(estimate)
    return found


def _show_estimate(estimate: Estimate) -> None:
    from .show import print_table, say

    header = ("stage", "on", "time", "memory")
    print_table("Estimate for this machine", header, estimate.rows())
    for line in estimate.sentences():
        say(line)
