"""The command line, the same under `ishrink` and `optimum-cli ishrink`. Thin: it parses, calls and prints."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import IShrinkError, RequestError, did_you_mean
from .parallel import is_main_process

if TYPE_CHECKING:
    from .artifacts import Plan, Report
    from .configuration import IShrinkConfig
    from .source import Source

DESCRIPTION = "Shrink compact language models by structured pruning, with the evidence."

_SOURCES = "self (sampled from the model), FILE.txt, FILE.jsonl, or a Hub data set id[:config[:split[:column]]]"


class _Parser(argparse.ArgumentParser):
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
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)

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
    _model_flags(shrink, required=False)
    shrink.add_argument("--output", metavar="DIR", help="output folder; it appears whole or not at all")
    shrink.add_argument("--overwrite", action="store_true", help="replace what is in the output folder")
    shrink.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    _shape_flags(shrink)
    _importance_flags(shrink)
    _recovery_flags(shrink, "none")
    _quality_flags(shrink)
    _speed_flags(shrink)
    shrink.add_argument("--no-evaluate", action="store_true", help="skip perplexity, divergence and tasks")
    shrink.add_argument("--no-benchmark", action="store_true", help="skip the timing")
    shrink.add_argument("--push-to-hub", metavar="REPO_ID", help="upload the result as one commit")
    shrink.add_argument("--private", action="store_true", help="make a new repository private")
    _common_flags(shrink)

    plan = verb(
        "plan",
        "print or save what would be removed, and change nothing",
        "ishrink plan --model small-model --num-hidden-layers 14 --intermediate-size 7168",
    )
    _model_flags(plan, required=False)
    plan.add_argument("--output", metavar="FILE", help="also save the plan as JSON")
    plan.add_argument(
        "--shape-only", action="store_true", help="only the shape: reads config.json and no weights, in a second"
    )
    _shape_flags(plan)
    _importance_flags(plan)
    _common_flags(plan)

    analyze = verb(
        "analyze",
        "quality against sparsity, and what each layer is worth, before anything is cut",
        "ishrink analyze --model HuggingFaceTB/SmolLM2-135M-Instruct --levels 0,10,25,50 --output analysis",
    )
    _model_flags(analyze, required=True)
    analyze.add_argument(
        "--output", metavar="DIR", required=True, help="output folder; it appears whole or not at all"
    )
    analyze.add_argument("--overwrite", action="store_true", help="replace what is in the output folder")
    _analysis_flags(analyze)
    _importance_flags(analyze, compensation=False)
    _protection_flags(analyze.add_argument_group("which layers may be skipped"))
    _task_flags(analyze.add_argument_group("tasks at every level"))
    _common_flags(analyze)

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
    _recovery_flags(recover, "kl")
    _quality_flags(recover)
    _speed_flags(recover)
    recover.add_argument("--no-evaluate", action="store_true", help="skip perplexity, divergence and tasks")
    recover.add_argument("--no-benchmark", action="store_true", help="skip the timing")
    _common_flags(recover)

    evaluate = verb(
        "evaluate",
        "measure perplexity, and divergence from a base model, on texts and tasks",
        "ishrink evaluate --model small --base HuggingFaceTB/SmolLM2-135M-Instruct --eval-text notes.txt",
    )
    _model_flags(evaluate, required=True)
    evaluate.add_argument("--base", metavar="M0", help="Hub id or folder of the model to compare with")
    _quality_flags(evaluate)
    _common_flags(evaluate)

    benchmark = verb(
        "benchmark",
        "time a model, in turn with its base, in one session",
        "ishrink benchmark --model small --base HuggingFaceTB/SmolLM2-135M-Instruct",
    )
    _model_flags(benchmark, required=True)
    benchmark.add_argument("--base", metavar="M0", help="Hub id or folder of the model to compare with")
    _speed_flags(benchmark)
    _common_flags(benchmark)

    card = verb("card", "rebuild the card and its figures from an output folder", "ishrink card --model small")
    card.add_argument("--model", metavar="DIR", required=True, help="output folder of shrink")

    push = verb(
        "push", "upload an output folder to the Hub as one commit", "ishrink push --model small --repo-id me/small"
    )
    push.add_argument("--model", metavar="DIR", required=True, help="output folder of shrink")
    push.add_argument("--repo-id", metavar="ID", required=True, help="user/name on the Hub")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--revision", metavar="BRANCH", help="branch to commit to")
    push.add_argument("--json", action="store_true", help="print one JSON object on standard output")

    demo = verb("demo", "shrink SmolLM2-135M-Instruct from a PyPI package, offline", "ishrink demo --output demo")
    demo.add_argument("--output", metavar="DIR", default="ishrink-demo", help="output folder (default: ishrink-demo)")
    demo.add_argument("--overwrite", action="store_true", help="replace what is in the output folder")
    demo.add_argument("--target", default="params=-15%", help="how much to remove (default: params=-15%%)")
    demo.add_argument("--seed", type=int, default=0, help="seed of the run (default: 0)")
    demo.add_argument("--json", action="store_true", help="print one JSON object on standard output")


def _model_flags(parser: argparse.ArgumentParser, *, required: bool) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="M", required=required, help="Hub id or folder")
    group.add_argument("--gguf-file", metavar="F", help="GGUF file in that folder or repository")
    group.add_argument("--revision", help="branch, tag or commit on the Hub")
    group.add_argument("--architecture", metavar="FILE.json", help="description of an architecture of your own")
    if not required:
        group.add_argument("--config", metavar="FILE.yaml", help="recipe; flags given beside it win")


def _shape_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to shrink")
    group.add_argument("--num-hidden-layers", type=int, metavar="N", help="layers of the result")
    group.add_argument("--num-key-value-heads", type=int, metavar="N", help="KV groups, with their query heads")
    group.add_argument(
        "--num-attention-heads", type=int, metavar="N", help="query heads (default: those of its groups)"
    )
    group.add_argument("--intermediate-size", type=int, metavar="N", help="MLP neurons of every layer")
    group.add_argument("--target", help="params=-15%% or params=115M; moves the dimensions that are not given")
    group.add_argument("--prune", metavar="KEY[,KEY...]", help="dimensions that the target moves (default: all)")
    group.add_argument(
        "--intermediate-multiple", type=int, metavar="N", help="what MLP widths are kept to (default: by the width)"
    )
    group.add_argument(
        "--merge-key-value-heads",
        action="store_const",
        const=True,
        help="merge KV heads into means instead of removing them",
    )
    group.add_argument(
        "--allow-class-change",
        action="store_const",
        const=True,
        help="write a shape that the class refuses as another class that computes the same (llama as mistral)",
    )
    _protection_flags(group)


def _protection_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--keep-first-layers", type=int, metavar="N", help="first layers that stay (default: 4, or 1/4)"
    )
    group.add_argument("--keep-last-layers", type=int, metavar="N", help="last layers that stay (default: 2, or 1/8)")


def _analysis_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to measure")
    group.add_argument("--levels", metavar="P[,P...]", help="sparsities in percent (default: 0,5,10,...,50)")
    group.add_argument("--analysis-samples", type=int, metavar="N", help="windows to measure on (default: 8)")
    group.add_argument("--analysis-length", type=int, metavar="N", help="tokens in each (default: 256)")
    group.add_argument(
        "--analysis-text",
        metavar="SRC[,SRC...]",
        help="text to measure on (default: further windows of what is calibrated on)",
    )
    group.add_argument(
        "--max-divergence", type=float, metavar="X", help="nats/token that the advice stays below (default: 0.5)"
    )


def _importance_flags(parser: argparse.ArgumentParser, *, compensation: bool = True) -> None:
    group = parser.add_argument_group("how to choose")
    group.add_argument(
        "--importance", metavar="NAME", help="for heads and neurons; 'help' lists all (default: fisher)"
    )
    group.add_argument(
        "--importance-group-size", type=int, metavar="N", help="neurons scored as one unit (default: by the criterion)"
    )
    group.add_argument(
        "--layer-importance", metavar="NAME", help="for layers; 'help' lists all (default: block-influence)"
    )
    group.add_argument("--layer-selection", metavar="NAME", help="one-shot, greedy or contiguous (default: one-shot)")
    group.add_argument(
        "--importance-samples", type=int, metavar="N", help="calibration windows to score on, at most (default: 48)"
    )
    group.add_argument("--no-score-cache", action="store_true", help="score anew, and keep no scores on disk")
    if compensation:
        group.add_argument(
            "--compensation",
            metavar="NAME",
            help="closed-form repair on the calibration text: ridge or none (default: ridge)",
        )
    group.add_argument(
        "--calibration", metavar="SRC[,SRC...]", help=f"text to calibrate on: {_SOURCES} (default: self)"
    )
    group.add_argument("--calibration-samples", type=int, metavar="N", help="windows of it (default: 64)")
    group.add_argument("--calibration-length", type=int, metavar="N", help="tokens in each (default: 256)")


def _recovery_flags(parser: argparse.ArgumentParser, default: str) -> None:
    group = parser.add_argument_group("recovery")
    group.add_argument(
        "--recovery",
        metavar="LOSS",
        help=f"none, or losses: ce, kl, hidden, attention; sums such as kl+hidden:0.1 (default: {default})",
    )
    group.add_argument(
        *(["--teacher"] if default != "none" else []),
        "--recovery-teacher",
        dest="recovery_teacher",
        metavar="M",
        help="Hub id or folder of the model to learn from (default: the unpruned one)",
    )
    group.add_argument("--recovery-data", metavar="SRC[,SRC...]", help=f"text to train on: {_SOURCES} (default: self)")
    group.add_argument("--recovery-tokens", type=int, metavar="N", help="tokens of it (default: 200000)")
    group.add_argument("--recovery-length", type=int, metavar="N", help="tokens in a window (default: 256)")
    group.add_argument(
        "--recovery-labels", metavar="WHICH", help="what ce is taken on: text or answers (default: text)"
    )
    group.add_argument("--recovery-temperature", type=float, metavar="T", help="temperature of kl (default: 1)")
    group.add_argument(
        "--recovery-top-k", type=int, metavar="K", help="compare the teacher's K likeliest tokens (default: all)"
    )
    group.add_argument(
        "--recovery-train",
        metavar="WHAT",
        help="lora, full, or a sum of norms, head and last:N (default: lora)",
    )
    group.add_argument("--recovery-lora-rank", type=int, metavar="R", help="rank of the adapter (default: 32)")
    group.add_argument("--recovery-lora-alpha", type=int, metavar="N", help="it is scaled by N / R (default: 64)")
    group.add_argument("--recovery-lora-dropout", type=float, metavar="P", help="dropout before it (default: 0)")
    group.add_argument(
        "--recovery-lora-targets", metavar="A[,B...]", help="linear modules to adapt (default: those of all layers)"
    )
    group.add_argument("--recovery-lora-start", metavar="HOW", help="zero or closed-form (default: zero)")
    group.add_argument(
        "--recovery-learning-rate", type=float, metavar="LR", help="peak (default: 5e-4 for lora, else 5e-5)"
    )
    group.add_argument("--recovery-batch-size", type=int, metavar="N", help="windows in a step (default: 8)")
    group.add_argument("--recovery-epochs", type=int, metavar="N", help="passes over the text (default: 1)")
    group.add_argument(
        "--recovery-save-steps", type=int, metavar="N", help="steps between evaluations and checkpoints (default: 25)"
    )
    group.add_argument(
        "--recovery-patience", type=int, metavar="N", help="evaluations without a better one to stop at (default: 5)"
    )
    group.add_argument(
        "--recovery-checkpointing",
        action="store_const",
        const=True,
        help="compute layers twice to save memory",
    )
    group.add_argument(
        "--recovery-sampling-temperature", type=float, metavar="T", help="temperature of self text (default: 1)"
    )
    group.add_argument(
        "--recovery-sampling-filter", type=float, metavar="P", help="share of self text to drop (default: 0.1)"
    )
    group.add_argument(
        "--recovery-cache", metavar="DIR", help="folder that keeps self text and the teacher's top k for other runs"
    )
    group.add_argument(
        "--keep-adapter",
        "--recovery-keep-adapter",
        dest="recovery_keep_adapter",
        metavar="ID",
        nargs="?",
        const="auto",
        help="also save the adapter; ID is the pruned model's own on the Hub (default: what --model says)",
    )


def _quality_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("quality")
    group.add_argument(
        "--eval-text", metavar="SRC[,SRC...]", help="text to measure on (default: Python's own reference)"
    )
    group.add_argument("--eval-samples", type=int, metavar="N", help="windows of each text (default: 32)")
    group.add_argument("--eval-length", type=int, metavar="N", help="tokens in each (default: 512)")
    _task_flags(group)


def _task_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--tasks", metavar="A[,B...]", help="lm-eval tasks")
    group.add_argument(
        "--include-path", metavar="DIR", help="folder with lm-eval task files; only its tasks are known then"
    )
    group.add_argument(
        "--num-fewshot", type=int, metavar="N", help="examples in the prompt (default: each task's own)"
    )


def _speed_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("speed")
    group.add_argument("--benchmark-prompt-length", type=int, metavar="N", help="tokens in the prompt (default: 128)")
    group.add_argument("--benchmark-new-tokens", type=int, metavar="N", help="tokens decoded (default: 32)")
    group.add_argument("--benchmark-rounds", type=int, metavar="N", help="rounds that count (default: 11)")


def _common_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("common")
    group.add_argument("--batch-size", type=int, metavar="N", help="windows in a batch (default: 4)")
    group.add_argument("--base-model", metavar="ID", help="what the card calls a base that was read from a folder")
    group.add_argument("--seed", type=int, metavar="N", help="seed of everything that is drawn (default: 0)")
    group.add_argument("--dtype", help="compute dtype: auto, bfloat16 or float32 (default: auto)")
    group.add_argument("--device", help="auto, cpu or cuda (default: auto)")
    group.add_argument("--json", action="store_true", help="print one JSON object on standard output")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ishrink`.

    Args:
        argv: The arguments; those of the process when None.

    Returns:
        Exit status: 0 done, 2 bad request, 1 any other failure.
    """
    from . import __version__

    parser = _Parser(prog="ishrink", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"optimum-ishrink {__version__}")
    add_verbs(parser)
    return run(parser.parse_args(argv), parser)


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Run the verb of parsed arguments.

    Args:
        args: Parsed arguments.
        parser: The parser, for its help when no verb was given.

    Returns:
        Exit status.
    """
    if not getattr(args, "verb", None):
        parser.print_help()
        return 0
    try:
        _quiet_libraries()
        # With --json, whatever a library or a task prints goes where the logs go.
        # Of several processes one speaks.
        elsewhere = sys.stderr if getattr(args, "json", False) else None if is_main_process() else StringIO()
        with redirect_stdout(elsewhere) if elsewhere else nullcontext():
            result = _VERBS[args.verb](args)
        if getattr(args, "json", False) and result is not None and is_main_process():
            sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return 0
    except IShrinkError as error:
        sys.stderr.write(f"ishrink {args.verb}: error: {error}\n")
        return 2 if isinstance(error, RequestError) else 1
    except KeyboardInterrupt as stop:
        what = str(stop) or "nothing was left half written"
        kept = "; the same command goes on from its last checkpoint" if args.verb == "recover" else ""
        sys.stderr.write(f"ishrink {args.verb}: interrupted; {what}{kept}\n")
        return 130
    except BrokenPipeError:
        # The reader of our output has left; so do we, and Python must not try to flush to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _quiet_libraries() -> None:
    """Silence other libraries' bars and advice: ours say what is going on."""
    import logging
    import warnings

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("lm_eval", "datasets", "httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _config(args: argparse.Namespace) -> tuple[str, IShrinkConfig]:
    """Return the model's name and the config: the recipe's values, with the flags on top."""
    from .configuration import IShrinkConfig, read_recipe

    values: dict[str, Any] = read_recipe(args.config) if getattr(args, "config", None) else {}
    recipe_model = values.pop("model", None)
    for name in IShrinkConfig.DEFAULTS:
        given = getattr(args, name, None)
        if given is not None:
            values[name] = given
    for name in ("evaluate", "benchmark", "score_cache"):
        if getattr(args, f"no_{name}", False):
            values[name] = False
    model = args.model or recipe_model
    if not model:
        raise RequestError("name the model: --model with a Hub id or folder, or --config with a recipe that names it")
    return str(model), IShrinkConfig(**values)


def _open(args: argparse.Namespace, model: str) -> Source:
    from .architectures import register_architecture
    from .source import open_source

    if args.architecture:
        register_architecture(args.architecture)
    return open_source(model, revision=args.revision, gguf_file=args.gguf_file)


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.json:
        sys.stdout.write(text + "\n")


def _show_plan(args: argparse.Namespace, plan: Plan, *, layers: bool = False) -> None:
    from . import tables

    if args.json:
        return
    tables.print_table(f"Plan for {plan.model}", tables.SHAPE_HEADER, tables.shape_rows(plan))
    if layers:
        tables.print_table("Layer by layer", tables.LAYER_HEADER, tables.layer_rows(plan))
    tables.print_table("Config", tables.CONFIG_HEADER, tables.config_rows(plan))
    for reason in plan.inexact:
        _say(args, f"Not exact: {reason}. Recovery by fine-tuning is expected.")


def _show_report(args: argparse.Namespace, report: Report) -> None:
    from . import tables

    if args.json:
        return
    header, rows = tables.REPORT_HEADER, tables.report_rows(report)
    if report.base is None:
        header = (*header[:3], "model")
        rows = [(*row[:3], row[4]) for row in rows]
    tables.print_table("Measured", header, rows)


def _criteria(args: argparse.Namespace) -> Any:
    """Print what `--importance help` or `--layer-importance help` asks for: the criteria that exist."""
    from . import tables
    from .importance import LAYER_CRITERIA, UNIT_CRITERIA

    header = ("name", "score", "takes", "source")
    result = {}
    for flag, title, registry in (
        ("importance", "Criteria for KV groups, query heads and neurons", UNIT_CRITERIA),
        ("layer_importance", "Criteria for layers", LAYER_CRITERIA),
    ):
        if getattr(args, flag) == "help":
            found = (registry[name] for name in registry)
            rows = [(each.name, each.formula, each.cost, each.reference) for each in found]
            if not args.json:
                tables.print_table(title, header, rows)
            result[flag] = [dict(zip(header, row, strict=True)) for row in rows]
    return result


def _shrink(args: argparse.Namespace) -> Any:
    from . import pipeline
    from .output_folder import check_output

    if "help" in (args.importance, args.layer_importance):
        return _criteria(args)
    model, config = _config(args)
    if not args.output and not args.dry_run:
        raise RequestError("name the output folder with --output, or pass --dry-run")
    if args.output and not args.dry_run:
        check_output(Path(args.output), args.overwrite)
    source = _open(args, model)
    session = pipeline.Session(source, config)
    if args.dry_run:
        plan = pipeline.plan_cut(session).plan
        _show_plan(args, plan, layers=True)
        return plan.to_json()
    extra = ["--architecture", Path(args.architecture).name] if args.architecture else []
    command = pipeline.command_line(session, Path(args.output), *extra)
    return _run_pipeline(args, session, command)


def _run_pipeline(args: argparse.Namespace, session: Any, command: str) -> Any:
    """Shrink, print what came of it and what can be done with it, and push it where asked."""
    from . import pipeline
    from .artifacts import PLAN_FILE, read_json
    from .card import name_repository
    from .hub import push_folder

    output = Path(args.output)
    report = pipeline.shrink(
        session, output, overwrite=args.overwrite, command=command, on_plan=partial(_show_plan, args)
    )
    _show_report(args, report)
    _say(args, f"Written to {output} (card: {output / 'README.md'})")
    _say(args, f'Load it:  AutoModelForCausalLM.from_pretrained("{output}", dtype="auto")')
    result = {"output": str(output), "plan": read_json(output / PLAN_FILE), "report": report.to_json()}
    repo_id = getattr(args, "push_to_hub", None)
    if repo_id and is_main_process():
        name_repository(output, repo_id)
        result["commit_url"] = push_folder(output, repo_id, private=args.private)
        _say(args, f"Pushed:   {result['commit_url']}")
    else:
        _say(args, f"Push it:  ishrink push --model {output} --repo-id YOUR_NAME/{output.name}")
    return result


def _analyze(args: argparse.Namespace) -> Any:
    from . import pipeline, tables
    from .analysis import AnalysisRequest, advised_command, analyze
    from .output_folder import check_output

    model, config = _config(args)
    names = {"levels": "levels", "samples": "analysis_samples", "length": "analysis_length"}
    names |= {"text": "analysis_text", "max_divergence": "max_divergence"}
    asked = {name: getattr(args, flag) for name, flag in names.items() if getattr(args, flag) is not None}
    request = AnalysisRequest(**asked)
    output = Path(args.output)
    check_output(output, args.overwrite)
    session = pipeline.Session(_open(args, model), config)
    analysis = analyze(session, request, output, overwrite=args.overwrite)
    if args.json:
        return {"output": str(output), **analysis.to_json()}
    title = f"Zero-out of {analysis.model}, nothing repaired"
    tables.print_table(title, tables.level_header(analysis), tables.level_rows(analysis))
    tables.print_table("Layer by layer", tables.SENSITIVITY_HEADER, tables.sensitivity_rows(analysis))
    for line in (*analysis.notes, analysis.advice):
        _say(args, line[0].upper() + line[1:] + ".")
    extra = [
        word
        for flag in ("gguf_file", "revision", "architecture")
        if getattr(args, flag)
        for word in ("--" + flag.replace("_", "-"), getattr(args, flag))
    ]
    _say(args, f"Written to {output} (figures: {output / 'figures'})")
    _say(args, advised_command(config, request, analysis.changes, analysis.finer_levels, model, *extra))
    return None


def _recover(args: argparse.Namespace) -> Any:
    from . import recovering
    from .artifacts import PLAN_FILE, read_json
    from .output_folder import check_output
    from .source import open_source

    args.recovery = args.recovery or "kl"
    args.revision = args.gguf_file = None
    model, config = _config(args)
    output = Path(args.output)
    check_output(output, args.overwrite)
    student = _open(args, model)
    teacher = open_source(config.recovery_teacher) if config.recovery_teacher else None
    report = recovering.recover(student, teacher, config, output, overwrite=args.overwrite)
    if report is None:
        return None
    _show_report(args, report)
    plan = read_json(output / PLAN_FILE) if (output / PLAN_FILE).is_file() else None
    if plan is not None:
        facts = plan["settings"]["recovery"]
        before, after = facts["held_out_loss_before"], facts["held_out_loss"]
        worse = ": worse than before, so the model given is the better one" if after > before else ""
        _say(args, f"Loss on windows that were held out: {before:.4f} before, {after:.4f} after{worse}")
    _say(args, f"Written to {output}")
    return {"output": str(output), "plan": plan, "report": report.to_json()}


def _plan(args: argparse.Namespace) -> Any:
    from . import pipeline
    from .artifacts import write_json

    if "help" in (args.importance, args.layer_importance):
        return _criteria(args)
    model, config = _config(args)
    if args.output:
        if args.shape_only:
            raise RequestError("--shape-only chooses nothing, so there is no plan to save; leave out --output")
        if Path(args.output).exists():
            raise RequestError(f"{args.output} exists already; name another file")
        if not Path(args.output).absolute().parent.is_dir():
            raise RequestError(f"{Path(args.output).parent} is not a folder; make it first, or name another file")
    source = _open(args, model)
    if args.shape_only:
        return _plan_shape(args, source, config)
    plan = pipeline.plan_cut(pipeline.Session(source, config), measure=False).plan
    if args.output:
        write_json(Path(args.output), plan.to_json())
    _show_plan(args, plan, layers=True)
    return plan.to_json()


def _plan_shape(args: argparse.Namespace, source: Source, config: IShrinkConfig) -> Any:
    from . import tables
    from .planning import resolve_shape

    binding = source.binding
    shape = resolve_shape(binding, config.request)
    before, after = binding.num_parameters(), binding.num_parameters(shape)
    if not args.json:
        rows = [(key, f"{value:,}", f"{shape[key]:,}") for key, value in binding.shape.items()]
        rows.append(("parameters", f"{before:,}", f"{after:,} (-{1 - after / before:.2%})"))
        tables.print_table(f"Shape for {source.name}", ("dimension", "before", "after"), rows)
    return {"shape": binding.shape, "new_shape": shape, "num_parameters": before, "new_num_parameters": after}


def _measure(args: argparse.Namespace, **what: bool) -> Any:
    from . import measuring
    from .session import Session
    from .source import open_source

    model, config = _config(args)
    source = _open(args, model)
    base = open_source(args.base) if args.base else None
    report = measuring.measure_alone(Session(source, config), base, **what)
    _show_report(args, report)
    return report.to_json()


def _evaluate(args: argparse.Namespace) -> Any:
    return _measure(args, evaluate=True, benchmark=False)


def _benchmark(args: argparse.Namespace) -> Any:
    return _measure(args, evaluate=False, benchmark=True)


def _card(args: argparse.Namespace) -> Any:
    from .card import build_card

    folder = Path(args.model)
    build_card(folder)
    sys.stdout.write(f"Written to {folder / 'README.md'}\n")
    return None


def _push(args: argparse.Namespace) -> Any:
    from .card import name_repository
    from .hub import push_folder

    name_repository(Path(args.model), args.repo_id)
    url = push_folder(Path(args.model), args.repo_id, private=args.private, revision=args.revision)
    _say(args, f"Pushed: {url}")
    return {"commit_url": url}


def _demo(args: argparse.Namespace) -> Any:
    from . import pipeline
    from .demo import INSTALL, demo_config, demo_source
    from .output_folder import check_output

    check_output(Path(args.output), args.overwrite)
    session = pipeline.Session(demo_source(), demo_config(args.target, args.seed))
    command = f"{INSTALL}\nishrink demo --target {args.target} --seed {args.seed} --output {Path(args.output).name}"
    return _run_pipeline(args, session, command)


_VERBS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "shrink": _shrink,
    "recover": _recover,
    "plan": _plan,
    "analyze": _analyze,
    "evaluate": _evaluate,
    "benchmark": _benchmark,
    "card": _card,
    "push": _push,
    "demo": _demo,
}
