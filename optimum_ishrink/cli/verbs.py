"""The verbs of the command line with their flags and examples; `cli.py` runs them."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from ..errors import did_you_mean
from .flags import (
    analysis_flags,
    base_flags,
    common_flags,
    export_flags,
    importance_flags,
    model_flags,
    protection_flags,
    quality_flags,
    recovery_flags,
    runtime_flags,
    shape_flags,
    speed_flags,
    task_flags,
    visibility_flags,
)

BENCHMARK_LENGTHS = "64,512"
DESCRIPTION = "Shrink compact language models by structured pruning, with the evidence."


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

    shrink = verb(
        "shrink",
        "calibrate, plan, cut, verify, measure, and write the card",
        "ishrink shrink --model HuggingFaceTB/SmolLM2-135M-Instruct --target params=-15% --output small",
    )
    model_flags(shrink, required=False)
    shrink.add_argument("--output", metavar="DIR", help="output folder; it appears whole or not at all")
    shrink.add_argument("--overwrite", action="store_true", help="replace what is in the output folder")
    shrink.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    shape_flags(shrink)
    importance_flags(shrink)
    recovery_flags(shrink, "none")
    quality_flags(shrink)
    speed_flags(shrink)
    shrink.add_argument("--no-evaluate", action="store_true", help="skip perplexity, divergence and tasks")
    shrink.add_argument("--no-benchmark", action="store_true", help="skip the timing")
    shrink.add_argument(
        "--push-to-hub",
        metavar="REPO_ID",
        help="upload the result as one commit; login and name are checked before the work begins",
    )
    visibility_flags(shrink)
    common_flags(shrink)

    plan = verb(
        "plan",
        "print or save what would be removed, and change nothing",
        "ishrink plan --model small-model --num-hidden-layers 14 --intermediate-size 7168",
    )
    model_flags(plan, required=False)
    plan.add_argument("--output", metavar="FILE", help="also save the plan as JSON")
    plan.add_argument(
        "--shape-only", action="store_true", help="only the shape: reads config.json and no weights, in a second"
    )
    shape_flags(plan)
    importance_flags(plan)
    common_flags(plan)

    analyze = verb(
        "analyze",
        "quality against sparsity, and what each layer is worth, before anything is cut",
        "ishrink analyze --model HuggingFaceTB/SmolLM2-135M-Instruct --levels 0,10,25,50 --output analysis",
    )
    model_flags(analyze, required=True)
    analyze.add_argument(
        "--output", metavar="DIR", required=True, help="output folder; it appears whole or not at all"
    )
    analyze.add_argument("--overwrite", action="store_true", help="replace what is in the output folder")
    analysis_flags(analyze)
    importance_flags(analyze, compensation=False)
    protection_flags(analyze.add_argument_group("which layers may be skipped"))
    task_flags(analyze.add_argument_group("tasks at every level"))
    common_flags(analyze)

    recover = verb(
        "recover",
        "train a pruned model with labels, a teacher, or nothing but the model itself",
        "ishrink recover --model small --teacher HuggingFaceTB/SmolLM2-135M-Instruct --output recovered",
    )
    recover.add_argument("--model", metavar="DIR", required=True, help="output folder of shrink, or any checkpoint")
    recover.add_argument(
        "--output", metavar="DIR", required=True, help="output folder; it appears whole or not at all"
    )
    recover.add_argument("--overwrite", action="store_true", help="replace what is in the output folder")
    recover.add_argument("--architecture", metavar="FILE.json", help="description of an architecture of your own")
    recovery_flags(recover, "kl")
    quality_flags(recover)
    speed_flags(recover)
    recover.add_argument("--no-evaluate", action="store_true", help="skip perplexity, divergence and tasks")
    recover.add_argument("--no-benchmark", action="store_true", help="skip the timing")
    common_flags(recover)

    evaluate = verb(
        "evaluate",
        "measure perplexity, and divergence from a base model, on texts and tasks",
        "ishrink evaluate --model small --base HuggingFaceTB/SmolLM2-135M-Instruct --eval-text notes.txt",
    )
    model_flags(evaluate, required=True)
    base_flags(evaluate)
    quality_flags(evaluate)
    common_flags(evaluate)

    benchmark = verb(
        "benchmark",
        "time a model, in turn with its base, in one session",
        "ishrink benchmark --model small --base HuggingFaceTB/SmolLM2-135M-Instruct",
    )
    model_flags(benchmark, required=True)
    base_flags(benchmark)
    runtime_flags(benchmark)
    speed_flags(benchmark, BENCHMARK_LENGTHS)
    common_flags(benchmark)

    export = verb(
        "export",
        "write a checkpoint as GGUF for llama.cpp, or quantised for PyTorch, and check what it says there",
        "ishrink export --model small --quantization q8_0 --output small-q8_0.gguf\n"
        "  ishrink export --model small --format safetensors --quantization int8 --output small-int8",
    )
    model_flags(export, required=True)
    export_flags(export)

    card = verb("card", "rebuild the card and its figures from an output folder", "ishrink card --model small")
    card.add_argument("--model", metavar="DIR", required=True, help="output folder of shrink")

    report = verb(
        "report",
        "compare output folders and their bases in one HTML page",
        "ishrink report small smaller recovered --output report.html",
    )
    report.add_argument(
        "outputs",
        metavar="OUT",
        nargs="+",
        help="output folder of shrink or recover, or a file that `ishrink evaluate --json` was written to",
    )
    report.add_argument("--output", metavar="FILE.html", help="the page; it needs nothing from elsewhere")
    report.add_argument("--overwrite", action="store_true", help="replace the page")
    report.add_argument(
        "--metric", metavar="NAME", help="quality in the pictures (default: KL divergence, or else the first measured)"
    )
    report.add_argument("--title", metavar="TEXT", help="title of the page")
    report.add_argument("--json", action="store_true", help="print one JSON object on standard output")

    push = verb(
        "push", "upload an output folder to the Hub as one commit", "ishrink push --model small --repo-id me/small"
    )
    push.add_argument("--model", metavar="DIR", required=True, help="output folder of shrink")
    push.add_argument("--repo-id", metavar="ID", required=True, help="user/name on the Hub")
    visibility_flags(push)
    push.add_argument("--revision", metavar="BRANCH", help="branch to commit to (default: main)")
    push.add_argument("--commit-message", metavar="TEXT", help="message of the commit")
    push.add_argument("--json", action="store_true", help="print one JSON object on standard output")

    demo = verb("demo", "shrink SmolLM2-135M-Instruct from a PyPI package, offline", "ishrink demo --output demo")
    demo.add_argument("--output", metavar="DIR", default="ishrink-demo", help="output folder (default: ishrink-demo)")
    demo.add_argument("--overwrite", action="store_true", help="replace what is in the output folder")
    demo.add_argument("--target", default="params=-15%", help="how much to remove (default: params=-15%%)")
    demo.add_argument(
        "--recovery", metavar="LOSS", default="none", help="recover the cut model, such as by kl (default: none)"
    )
    demo.add_argument("--seed", type=int, default=0, help="seed of the run (default: 0)")
    demo.add_argument("--json", action="store_true", help="print one JSON object on standard output")
