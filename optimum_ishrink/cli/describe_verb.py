"""The verb `describe`: its flags, and what it does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArchitectureError, RequestError
from .requests import quiet_transformers, register_description
from .show import print_table, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..core.table import Row
    from ..drafting.draft import Draft
    from ..drafting.proof import Proof

DESCRIBE = (
    "draft the description of an architecture that has none, and prove it on a tiny random model",
    "ishrink describe --model org/new-model --output new.json\n"
    "  ishrink shrink --model org/new-model --architecture new.json --target params=-15% --output small\n"
    "  ishrink describe --model org/new-model --architecture new.json --check",
)
"""What the verb does, and examples."""

_EXPLANATION = """\
A family that has no description yet is refused by the other verbs. This one drafts it, from config.json alone: it
builds the family's class at a tiny size, changes one number of the config after another, and reads from the shapes of
the parameters what each axis counts. Then it proves the draft: a cut of a tiny random model has to give the logits of
the original with the removed units at zero, for each dimension alone and for all together. What does not hold is
written as fixed or inexact, with the measured difference, and named below the table. Read the file before
you use it."""


def add_describe_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `describe`.

    Args:
        parser: The verb's parser.
    """
    parser.description = f"{parser.description}\n\n{_EXPLANATION}"
    parser.add_argument(
        "--model", metavar="M", required=True, help="folder with a config.json, a config file, or Hub id; no weights"
    )
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--output", metavar="FILE.json", help="where the description goes; without it, only a report")
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    parser.add_argument(
        "--check",
        action="store_true",
        help="draft nothing: prove the description that the family has, for the flags of this config",
    )
    parser.add_argument(
        "--architecture", metavar="FILE.json", help="with --check, the description to prove instead of the package's"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")


def describe(args: argparse.Namespace) -> Any:
    """Draft the description of an architecture, or prove the one that is there.

    Args:
        args: Parsed arguments.
    """
    from ..api.describing import draft_description, read_config
    from ..architectures.description import is_described
    from ..core.json_files import write_json
    from ..core.output import check_output_file

    if args.output and args.check:
        raise RequestError("--check writes no file; leave out --output, or --check to draft a description")
    if args.architecture and not args.check:
        raise RequestError("--architecture names a description that exists; pass --check to prove it")
    if args.output:
        check_output_file(Path(args.output), args.overwrite)
    quiet_transformers()
    register_description(args)
    raw = read_config(args.model, revision=args.revision)
    model_type = raw.get("model_type")
    if args.check:
        return _check(args, raw)
    if is_described(model_type):
        raise ArchitectureError(
            f"{model_type!r} is described already, so that shrink takes {args.model}; "
            f"ishrink describe --model {args.model} --check proves that description for this config"
        )
    found = draft_description(raw if Path(args.model).is_file() else args.model, revision=args.revision)
    if args.output:
        write_json(Path(args.output), found.data)
    if not args.json:
        _show(args, found)
    return {"output": args.output, **found.to_json()}


def _check(args: argparse.Namespace, raw: Any) -> dict[str, Any]:
    from ..api.describing import check_description
    from ..architectures.description import is_described

    model_type = raw.get("model_type")
    if args.architecture:
        from ..architectures.description import Description

        given = Description.from_json(Path(args.architecture)).model_type
        if given != model_type:
            raise ArchitectureError(f"{args.architecture} describes {given!r}, but {args.model} is {model_type!r}")
    elif isinstance(model_type, str) and not is_described(model_type):
        raise ArchitectureError(f"{model_type!r} has no description to check; leave out --check to draft one")
    found = check_description(raw)
    if not args.json:
        _show_proofs(f"The description of {model_type}, on a tiny random model", found.proofs)
        for key in found.inexact:
            say(f"{key} is inexact, as the description says.")
        _list("Not part of the proof:", found.notes)
    return found.to_json()


def _show(args: argparse.Namespace, found: Draft) -> None:
    _show_proofs(f"A draft for {found.model_type}, on a tiny random model", found.proofs)
    fixed = [
        f"{key}: {entry.get('fixed') or entry['inexact']}"
        for key, entry in found.data["dimensions"].items()
        if "writes" not in entry or "inexact" in entry
    ]
    _list("Written as fixed or inexact:", fixed)
    _list("What could not be told, or does not hold:", found.unknown)
    _list("Not part of the proof:", found.notes)
    if args.output:
        say(f"Written to {args.output}")
        say(f"Use it:  ishrink shrink --model {args.model} --architecture {args.output} --target params=-15%")
    else:
        say("Write it to a file:  --output FILE.json")


def _show_proofs(title: str, proofs: Sequence[Proof]) -> None:
    rows: list[Row] = []
    for proof in proofs:
        effect = "" if proof.effect is None or proof.claim == "vocab_size" else f"{proof.effect:.1e}"
        difference = "" if proof.difference is None else f"{proof.difference:.1e}"
        rows.append((proof.claim, "proved" if proof.holds else "no", difference, effect))
    print_table(title, ("cut", "", "from masked", "from the original"), rows)


def _list(title: str, sentences: Sequence[str]) -> None:
    if sentences:
        say(title)
    for sentence in sentences:
        say(f"- {sentence}")
