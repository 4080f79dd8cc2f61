"""The parser: the verbs with their flags and examples. Flags come from options; `verbs.py` has what a verb does."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from ..analysis.options import AnalysisOptions
from ..edge.options import ExportOptions, RuntimeOptions
from ..errors import did_you_mean
from ..evaluation.options import BENCHMARK_LENGTHS, QualityOptions, SpeedOptions, TaskOptions
from ..hub.options import PushOptions
from ..planning.options import ShapeOptions
from ..planning.schedule_options import ScheduleOptions
from ..recovery.options import USUAL_LOSS
from ..search.options import AdviceOptions, ProfileOptions, SearchOptions
from ..sparsity.options import SparsityOptions
from ..vocabulary.options import VocabularyOptions
from .app_verbs import EXAMPLE, add_app_flags
from .chat_verbs import add_chat
from .describe_verb import DESCRIBE, add_describe_flags
from .draft_verb import DRAFT, add_draft_flags
from .flags import add_options
from .plan_verb import PLAN, add_plan_flags
from .shared_flags import (
    architecture_flag,
    common_flags,
    importance_flags,
    json_flag,
    model_flags,
    output_flags,
    recovery_flags,
)

DESCRIPTION = "Shrink compact language models by structured pruning, with the evidence."

SWITCHES = ("evaluate", "benchmark")
"""Options that say whether a whole stage runs; the verbs of these stages have no flag for them."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, with the nearest flag that exists."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Treat unknown flags as errors here, where the verb's own flags are known."""
        parsed, extras = super().parse_known_args(args, namespace)
        if extras:
            self.error(f"unknown argument {extras[0]!r}{did_you_mean(extras[0], self._option_string_actions)}")
        return parsed, extras

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with status 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def add_verbs(parser: argparse.ArgumentParser) -> None:
    """Add the verbs to a parser.

    Args:
        parser: The parser of `ishrink`, or the one that `optimum-cli` gives.
    """
    parser.description = DESCRIPTION
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)

    def verb(name: str, text: str, example: str) -> argparse.ArgumentParser:
        return verbs.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    _shrink(
        verb(
            "shrink",
            "calibrate, plan, cut, verify, measure, and write the card",
            "ishrink shrink --model HuggingFaceTB/SmolLM2-135M-Instruct --target params=-15% --output small",
        )
    )
    _plan(verb("plan", *PLAN))
    _analyze(
        verb(
            "analyze",
            "measure quality against sparsity, and how sensitive each layer is, before anything is cut",
            "ishrink analyze --model HuggingFaceTB/SmolLM2-135M-Instruct --levels 0,10,25,50 --output analysis",
        )
    )
    _search(
        verb(
            "search",
            "find the best model under a budget: pruning, vocabulary and bit widths together, on the runtime",
            "ishrink search --model HuggingFaceTB/SmolLM2-135M-Instruct --target bytes=80MB --output small",
        )
    )
    _profile(
        verb(
            "profile",
            "measure on this machine what a model's parts cost, for a search on another one",
            "ishrink profile --model HuggingFaceTB/SmolLM2-135M-Instruct --threads 4 --output phone.json\n"
            "  ishrink profile --model HuggingFaceTB/SmolLM2-135M-Instruct --script --output phone.pyz",
        )
    )
    _advise(
        verb(
            "advise",
            "list ways to meet a budget, with what to expect and their commands, from the config alone",
            "ishrink advise --model meta-llama/Llama-3.2-1B --target bytes=700MB",
        )
    )
    add_describe_flags(verb("describe", *DESCRIBE))
    add_draft_flags(verb("draft", *DRAFT))
    _recover(
        verb(
            "recover",
            "train a pruned model with labels, with a teacher, or on text that the model samples itself",
            "ishrink recover --model small --teacher HuggingFaceTB/SmolLM2-135M-Instruct --output recovered",
        )
    )
    _evaluate(
        verb(
            "evaluate",
            "measure perplexity, and divergence from a base model, on texts and tasks",
            "ishrink evaluate --model small --base HuggingFaceTB/SmolLM2-135M-Instruct --eval-text notes.txt",
        )
    )
    _benchmark(
        verb(
            "benchmark",
            "time a model, in turn with its base, in one session",
            "ishrink benchmark --model small --base HuggingFaceTB/SmolLM2-135M-Instruct",
        )
    )
    _chat(verb("chat", "talk with a model in the terminal, beside its base", "ishrink chat --model small"))
    _export(
        verb(
            "export",
            "write a checkpoint as GGUF for llama.cpp, or quantised for PyTorch, and compare its predictions",
            "ishrink export --model small --quantization q8_0 --output small-q8_0.gguf\n"
            "  ishrink export --model small --format safetensors --quantization int8 --output small-int8",
        )
    )
    add_app_flags(verb("app", "write and serve a site that chats with models and times them in a browser", EXAMPLE))
    card = verb("card", "rebuild the card and its figures from an output folder", "ishrink card --model small")
    card.add_argument("--model", metavar="DIR", required=True, help="output folder of shrink or recover")
    card.add_argument(
        "--device-report",
        metavar="FILE",
        action="append",
        help="add what a device measured, from the file that the page of `app` saved; can be given several times",
    )
    _report(
        verb(
            "report",
            "compare output folders and their bases in one HTML page",
            "ishrink report small smaller recovered --output report.html",
        )
    )
    _push(
        verb(
            "push",
            "upload an output folder to the Hub, or to a URL",
            "ishrink push --model small --repo-id me/small",
        )
    )
    _demo(verb("demo", "shrink SmolLM2-135M-Instruct from a PyPI package, offline", "ishrink demo --output demo"))


def _search(parser: argparse.ArgumentParser) -> None:
    model_flags(parser, recipe=True)
    output_flags(parser)
    group = parser.add_argument_group("budget and runtime")
    add_options(group, SearchOptions)
    add_options(group, ProfileOptions)
    shape = parser.add_argument_group("what may change")
    add_options(shape, ShapeOptions, only=("prune", "keep_first_layers", "keep_last_layers", "vocab_multiple"))
    add_options(parser.add_argument_group("which tokens stay"), VocabularyOptions)
    importance_flags(parser)
    common_flags(parser)


def _profile(parser: argparse.ArgumentParser) -> None:
    model_flags(parser, recipe=True)
    parser.add_argument("--output", metavar="FILE", required=True, help="the profile, or with --script the program")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")
    parser.add_argument(
        "--script",
        action="store_true",
        help="measure nothing here: write a program of one file that measures another device, which needs Python and "
        "llama.cpp but neither torch nor this package",
    )
    add_options(parser.add_argument_group("what is timed"), ProfileOptions)
    common_flags(parser)


def _advise(parser: argparse.ArgumentParser) -> None:
    model_flags(parser)
    add_options(parser.add_argument_group("budget"), AdviceOptions)
    json_flag(parser)


def _shrink(parser: argparse.ArgumentParser) -> None:
    model_flags(parser, recipe=True)
    output_flags(parser, required=False)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    _shape(parser)
    add_options(parser.add_argument_group("schedule"), ScheduleOptions)
    importance_flags(parser)
    recovery_flags(parser, hide=("--teacher",))
    _quality(parser)
    _speed(parser)
    add_options(parser, QualityOptions, only=SWITCHES)
    add_options(parser, SpeedOptions, only=SWITCHES)
    parser.add_argument(
        "--push-to-hub",
        metavar="REPO_ID",
        help="upload the result as one commit; login and name are checked before the work begins",
    )
    _visibility(parser)
    common_flags(parser, offload=True)


def _plan(parser: argparse.ArgumentParser) -> None:
    model_flags(parser, recipe=True)
    add_plan_flags(parser)
    _shape(parser)
    importance_flags(parser)
    common_flags(parser, offload=True)


def _analyze(parser: argparse.ArgumentParser) -> None:
    model_flags(parser)
    output_flags(parser)
    add_options(parser.add_argument_group("what to measure"), AnalysisOptions)
    importance_flags(parser, compensation=False)
    protected = ("keep_first_layers", "keep_last_layers")
    add_options(parser.add_argument_group("which layers are protected"), ShapeOptions, only=protected)
    add_options(parser.add_argument_group("tasks at every level"), TaskOptions)
    common_flags(parser, offload=True)


def _recover(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="DIR", required=True, help="output folder of shrink, any checkpoint, or a URL of fsspec"
    )
    output_flags(parser)
    architecture_flag(parser)
    recovery_flags(parser, defaults={"recovery": USUAL_LOSS})
    _quality(parser)
    _speed(parser)
    add_options(parser, QualityOptions, only=SWITCHES)
    add_options(parser, SpeedOptions, only=SWITCHES)
    common_flags(parser)


def _evaluate(parser: argparse.ArgumentParser) -> None:
    model_flags(parser)
    _base(parser)
    _quality(parser)
    common_flags(parser, offload=True)


def _benchmark(parser: argparse.ArgumentParser) -> None:
    model_flags(parser)
    _base(parser)
    add_options(parser.add_argument_group("runtime"), RuntimeOptions)
    _speed(parser, ",".join(map(str, BENCHMARK_LENGTHS)))
    common_flags(parser)


def _chat(parser: argparse.ArgumentParser) -> None:
    model_flags(parser)
    add_chat(parser)
    json_flag(parser)


def _export(parser: argparse.ArgumentParser) -> None:
    model_flags(parser)
    group = parser.add_argument_group("export")
    group.add_argument(
        "--output", metavar="PATH", required=True, help="the GGUF file, or the folder; it appears whole or not at all"
    )
    group.add_argument("--overwrite", action="store_true", help="replace what is there")
    add_options(group, ExportOptions)
    json_flag(group)


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "outputs",
        metavar="OUT",
        nargs="+",
        help="output folder of shrink or recover, or a file that `ishrink evaluate --json` was written to",
    )
    parser.add_argument("--output", metavar="FILE.html", help="the page; it loads nothing from elsewhere")
    parser.add_argument("--overwrite", action="store_true", help="replace the page")
    parser.add_argument(
        "--metric", metavar="NAME", help="quality in the plots (default: KL divergence, or else the first measured)"
    )
    parser.add_argument("--title", metavar="TEXT", help="title of the page")
    json_flag(parser)


def _push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="DIR", required=True, help="output folder of shrink or recover")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--repo-id", metavar="ID", help="user/name on the Hub")
    place.add_argument("--url", help="place of fsspec instead, such as s3://bucket/small")
    parser.add_argument("--overwrite", action="store_true", help="with --url: replace what is there")
    _visibility(parser)
    add_options(parser, PushOptions, without=_VISIBILITY)
    json_flag(parser)


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", metavar="DIR", default="ishrink-demo", help="output folder (default: ishrink-demo)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the output folder")
    parser.add_argument("--target", default="params=-15%", help="how much to remove (default: params=-15%%)")
    parser.add_argument(
        "--recovery", metavar="LOSS", default="none", help="recover the cut model, such as by kl (default: none)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the run (default: 0)")
    json_flag(parser)


def _base(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what a model is compared with, and where the measurements go."""
    group = parser.add_argument_group("base")
    group.add_argument(
        "--base",
        metavar="M0",
        help="Hub id or folder of the model to compare with; if --model was cut from it, its report and card get the "
        "measurements too",
    )
    group.add_argument(
        "--no-update-report", action="store_true", help="print the measurements and leave report and card as they are"
    )


def _shape(parser: argparse.ArgumentParser) -> None:
    add_options(parser.add_argument_group("what to shrink"), ShapeOptions)
    add_options(parser.add_argument_group("which tokens stay"), VocabularyOptions)
    add_options(parser.add_argument_group("zeros"), SparsityOptions)


def _quality(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("quality")
    add_options(group, QualityOptions, without=SWITCHES)
    add_options(group, TaskOptions)


def _speed(parser: argparse.ArgumentParser, prompt_length: str | None = None) -> None:
    defaults = {"benchmark_prompt_length": prompt_length} if prompt_length else {}
    add_options(parser.add_argument_group("speed"), SpeedOptions, without=SWITCHES, defaults=defaults)


_VISIBILITY = ("private", "private_until_complete")


def _visibility(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say who can see the repository."""
    add_options(parser.add_mutually_exclusive_group(), PushOptions, only=_VISIBILITY)
