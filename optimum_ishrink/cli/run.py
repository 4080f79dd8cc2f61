"""The command line, the same under `ishrink` and `optimum-cli ishrink`. Thin: it parses, calls and prints."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.processes import is_main_process
from ..errors import IShrinkError, RequestError
from .verbs import BENCHMARK_LENGTHS, DESCRIPTION, Parser, add_verbs

if TYPE_CHECKING:
    from ..checkpoint.source import Source
    from ..configuration import IShrinkConfig
    from ..report.plan import Plan
    from ..report.report import Report

__all__ = ["DESCRIPTION", "add_verbs", "main", "run"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ishrink`.

    Args:
        argv: The arguments; those of the process when None.

    Returns:
        Exit status: 0 done, 2 bad request, 1 any other failure, a task that could not be measured among them.
    """
    from ..core.version import __version__

    parser = Parser(prog="ishrink", allow_abbrev=False)
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
        failures = _failures(result)
        if failures:
            sys.stderr.write(f"ishrink {args.verb}: incomplete: {'; '.join(failures)}\n")
        return 1 if failures else 0
    except IShrinkError as error:
        sys.stderr.write(f"ishrink {args.verb}: error: {error}\n")
        return 2 if isinstance(error, RequestError) else 1
    except KeyboardInterrupt as stop:
        what = str(stop) or "nothing was left half written"
        kept = "; the same command goes on from its last checkpoint" if args.verb == "recover" else ""
        if args.verb == "evaluate" and not args.no_result_cache:
            kept = "; the same command goes on at the first text or task that is not measured yet"
        sys.stderr.write(f"ishrink {args.verb}: interrupted; {what}{kept}\n")
        return 130
    except BrokenPipeError:
        # The reader of our output has left; so do we, and Python must not try to flush to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _failures(result: Any) -> list[str]:
    """Return why something that a verb was to measure is not in its report."""
    report = result.get("report", result) if isinstance(result, dict) else None
    return [failure["reason"] for failure in report.get("failures", ())] if isinstance(report, dict) else []


def _quiet_libraries() -> None:
    """Silence other libraries' bars and advice: ours say what is going on."""
    import logging
    import warnings

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # torchao, where it is installed, is imported with every model, and tells of kernels that do not fit the machine.
    for name in ("lm_eval", "datasets", "httpx", "huggingface_hub", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _config(args: argparse.Namespace) -> tuple[str, IShrinkConfig]:
    """Return the model's name and the config: the recipe's values, with the flags on top."""
    from ..configuration import IShrinkConfig, read_recipe

    values: dict[str, Any] = read_recipe(args.config) if getattr(args, "config", None) else {}
    recipe_model = values.pop("model", None)
    for name in IShrinkConfig.DEFAULTS:
        given = getattr(args, name, None)
        if given is not None:
            values[name] = given
    for name in ("evaluate", "benchmark", "score_cache", "result_cache"):
        if getattr(args, f"no_{name}", False):
            values[name] = False
    model = args.model or recipe_model
    if not model:
        raise RequestError("name the model: --model with a Hub id or folder, or --config with a recipe that names it")
    return str(model), IShrinkConfig(**values)


def _open(args: argparse.Namespace, model: str) -> Source:
    from ..architectures.spec import register_architecture
    from ..checkpoint.source import open_source

    if args.architecture:
        register_architecture(args.architecture)
    return open_source(model, revision=args.revision, gguf_file=args.gguf_file)


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.json:
        sys.stdout.write(text + "\n")


def _show_plan(args: argparse.Namespace, plan: Plan, *, layers: bool = False) -> None:
    from ..core.table import print_table
    from ..report.plan_tables import CONFIG_HEADER, LAYER_HEADER, SHAPE_HEADER, config_rows, layer_rows, shape_rows

    if args.json:
        return
    print_table(f"Plan for {plan.model}", SHAPE_HEADER, shape_rows(plan))
    if layers:
        print_table("Layer by layer", LAYER_HEADER, layer_rows(plan))
    print_table("Config", CONFIG_HEADER, config_rows(plan))
    for reason in plan.inexact:
        _say(args, f"Not exact: {reason}. Recovery by fine-tuning is expected.")


def _show_runtime(args: argparse.Namespace, binding: Any, config: IShrinkConfig, shape: Any) -> None:
    """Say what the runtime that a plan was made for would store otherwise than asked."""
    from ..core.table import print_table

    if config.for_runtime is None or args.json:
        return
    from ..edge.rows import FALLBACK_HEADER, runtime_table

    rows, lines = runtime_table(binding, shape)
    if rows:
        print_table(f"What {config.for_runtime}'s quantisations do not fit", FALLBACK_HEADER, rows)
    for line in lines:
        _say(args, line + ".")


def _show_report(args: argparse.Namespace, report: Report) -> None:
    from ..core.table import print_table
    from ..report.tables import (
        KEPT_HEADER,
        REPORT_HEADER,
        kept_rows,
        report_rows,
        sample_text,
        speed_header,
        speed_rows,
    )

    if args.json:
        return
    header, rows = REPORT_HEADER, report_rows(report, ("quality",))
    if report.base is None:
        header = (*header[:3], "model")
        rows = [(*row[:3], row[4]) for row in rows]
    print_table("Measured", header, rows)
    if report.comparisons:
        print_table("Kept of the base", KEPT_HEADER, kept_rows(report))
    for sample in report.samples:
        _say(args, sample_text(sample))
    if report.shrunk.speed:
        print_table("Speed and footprint", speed_header(report), speed_rows(report))


def _criteria(args: argparse.Namespace) -> Any:
    """Print what `--importance help` or `--layer-importance help` asks for: the criteria that exist."""
    from ..core.table import print_table
    from ..importance.criterion import LAYER_CRITERIA, UNIT_CRITERIA

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
                print_table(title, header, rows)
            result[flag] = [dict(zip(header, row, strict=True)) for row in rows]
    return result


def _shrink(args: argparse.Namespace) -> Any:
    from .. import pipeline
    from ..core.output import check_output

    if "help" in (args.importance, args.layer_importance):
        return _criteria(args)
    model, config = _config(args)
    if not args.output and not args.dry_run:
        raise RequestError("name the output folder with --output, or pass --dry-run")
    if args.output and not args.dry_run:
        check_output(Path(args.output), args.overwrite)
    if args.push_to_hub:
        _check_destination(args)
    source = _open(args, model)
    session = pipeline.Session(source, config)
    if args.dry_run:
        plan = pipeline.plan_cut(session).plan
        _show_plan(args, plan, layers=True)
        _show_runtime(args, source.binding, config, plan.new_shape)
        return plan.to_json()
    extra = ["--architecture", Path(args.architecture).name] if args.architecture else []
    command = pipeline.command_line(session, Path(args.output), *extra)
    return _run_pipeline(args, session, command)


def _check_destination(args: argparse.Namespace) -> None:
    """Check that the push at the end can succeed; a dry run checks the name alone, and asks no one."""
    from ..hub.destination import check_destination, check_repo_id

    if args.dry_run:
        check_repo_id(args.push_to_hub)
    elif is_main_process():
        check_destination(args.push_to_hub)


def _run_pipeline(args: argparse.Namespace, session: Any, command: str) -> Any:
    """Shrink, print what came of it and what can be done with it, and push it where asked."""
    from .. import pipeline
    from ..core.json_files import read_json
    from ..report.files import PLAN_FILE

    output = Path(args.output)

    def show(plan: Plan) -> None:
        _show_plan(args, plan)
        _show_runtime(args, session.source.binding, session.config, plan.new_shape)

    report = pipeline.shrink(session, output, overwrite=args.overwrite, command=command, on_plan=show)
    _show_report(args, report)
    _say(args, f"Written to {output} (card: {output / 'README.md'})")
    _say(args, f'Load it:  AutoModelForCausalLM.from_pretrained("{output}", dtype="auto")')
    result = {"output": str(output), "plan": read_json(output / PLAN_FILE), "report": report.to_json()}
    repo_id = getattr(args, "push_to_hub", None)
    if repo_id and is_main_process():
        result["commit_url"] = _upload(args, output, repo_id)
        _say(args, f"Pushed:   {result['commit_url']}")
    else:
        _say(args, f"Push it:  ishrink push --model {output} --repo-id YOUR_NAME/{output.name}")
    return result


def _analyze(args: argparse.Namespace) -> Any:
    from .. import pipeline
    from ..analysis.advised_command import advised_command
    from ..analysis.request import AnalysisRequest
    from ..analysis.tables import SENSITIVITY_HEADER, level_header, level_rows, sensitivity_rows
    from ..analysis.zero_out import analyze
    from ..core.output import check_output
    from ..core.table import print_table

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
    print_table(title, level_header(analysis), level_rows(analysis))
    print_table("Layer by layer", SENSITIVITY_HEADER, sensitivity_rows(analysis))
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
    from ..checkpoint.source import open_source
    from ..core.json_files import read_json
    from ..core.output import check_output
    from ..recovery import stage as recovering
    from ..report.files import PLAN_FILE

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
        if facts["helped"]:  # else a note has said that the weights stayed
            _say(args, f"Loss on windows that were held out: {before:.4f} before, {after:.4f} after")
    _say(args, f"Written to {output}")
    return {"output": str(output), "plan": plan, "report": report.to_json()}


def _plan(args: argparse.Namespace) -> Any:
    from .. import pipeline
    from ..core.json_files import write_json

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
    _show_runtime(args, source.binding, config, plan.new_shape)
    return plan.to_json()


def _plan_shape(args: argparse.Namespace, source: Source, config: IShrinkConfig) -> Any:
    from ..core.table import print_table
    from ..planning.plan import resolve_shape

    binding = source.binding
    shape = resolve_shape(binding, config.request)
    before, after = binding.num_parameters(), binding.num_parameters(shape)
    if not args.json:
        rows = [(key, f"{value:,}", f"{shape[key]:,}") for key, value in binding.shape.items()]
        rows.append(("parameters", f"{before:,}", f"{after:,} (-{1 - after / before:.2%})"))
        print_table(f"Shape for {source.name}", ("dimension", "before", "after"), rows)
    _show_runtime(args, binding, config, shape)
    return {"shape": binding.shape, "new_shape": shape, "num_parameters": before, "new_num_parameters": after}


def _measure(args: argparse.Namespace, **what: bool) -> Any:
    from ..card.update import can_update, update_report
    from ..checkpoint.session import Session
    from ..checkpoint.source import open_source
    from ..evaluation import stage as measuring
    from ..report.files import REPORT_FILE

    model, config = _config(args)
    source = _open(args, model)
    base = open_source(args.base) if args.base else None
    folder = source.folder if base is not None and not source.is_hub_id and not args.no_update_report else None
    if folder is not None and base is not None and not can_update(folder, base, config):
        folder = None
    report = measuring.measure_alone(Session(source, config), base, **what)
    _show_report(args, report)
    if folder is not None:
        update_report(folder, report)
        _say(args, f"Added to {folder / REPORT_FILE} and its card; --no-update-report leaves them as they are")
    return report.to_json()


def _evaluate(args: argparse.Namespace) -> Any:
    return _measure(args, evaluate=True, benchmark=False)


def _benchmark(args: argparse.Namespace) -> Any:
    if args.runtime == "llama.cpp":
        from ..edge import gguf_verbs as commands

        return commands.benchmark(args, lambda model: _open(args, model))
    args.benchmark_prompt_length = args.benchmark_prompt_length or BENCHMARK_LENGTHS
    return _measure(args, evaluate=False, benchmark=True)


def _export(args: argparse.Namespace) -> Any:
    if args.format == "safetensors":
        from ..edge.quantized_export import export_checkpoint

        return export_checkpoint(args, _open(args, args.model))
    from ..edge.gguf_verbs import export

    return export(args, _open(args, args.model))


def _card(args: argparse.Namespace) -> Any:
    from ..card.build import build_card

    folder = Path(args.model)
    build_card(folder)
    sys.stdout.write(f"Written to {folder / 'README.md'}\n")
    return None


def _report(args: argparse.Namespace) -> Any:
    from ..core.table import print_table
    from ..report.page.overview import build_overview, overview_rows
    from ..report.page.pareto import pictures
    from ..report.page.reading import read_reports
    from ..report.page.render import check_page, render_page, write_page

    if args.output:
        check_page(Path(args.output), overwrite=args.overwrite)
    overview = build_overview(read_reports([Path(each) for each in args.outputs]))
    drawn = pictures(overview, args.metric)
    if args.output:
        title = args.title or "Shrunk models compared"
        write_page(render_page(overview, drawn, title=title), Path(args.output), overwrite=args.overwrite)
    if not args.json:
        header, rows = overview_rows(overview)
        print_table("Compared", header, rows)
        for line in overview.notes:
            _say(args, line)
        for picture in drawn:
            best = ", ".join(point.label for point in picture.points if point.optimal)
            _say(args, f"{picture.title}, Pareto-optimal: {best}")
        _say(args, f"Written to {args.output}" if args.output else "For a page with pictures: --output FILE.html")
    return {"output": args.output, **overview.to_json(), "pictures": [picture.to_json() for picture in drawn]}


def _push(args: argparse.Namespace) -> Any:
    url = _upload(args, Path(args.model), args.repo_id, revision=args.revision, commit_message=args.commit_message)
    _say(args, f"Pushed: {url}")
    return {"commit_url": url}


def _upload(args: argparse.Namespace, folder: Path, repo_id: str, **how: str | None) -> str:
    """Push a folder, with the bars that other verbs do without: gigabytes take their time."""
    from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]

    from ..hub.push import push_folder

    if sys.stderr.isatty():
        enable_progress_bars()
    return push_folder(
        folder, repo_id, private=args.private, private_until_complete=args.private_until_complete, **how
    )


def _demo(args: argparse.Namespace) -> Any:
    from .. import pipeline
    from ..core.output import check_output
    from ..demo import INSTALL, demo_config, demo_source

    check_output(Path(args.output), args.overwrite)
    config = demo_config(args.target, args.seed, args.recovery)
    session = pipeline.Session(demo_source(), config)
    recovery = "" if args.recovery == "none" else f" --recovery {args.recovery}"
    output = Path(args.output).name
    command = f"{INSTALL}\nishrink demo --target {args.target}{recovery} --seed {args.seed} --output {output}"
    return _run_pipeline(args, session, command)


_VERBS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "shrink": _shrink,
    "recover": _recover,
    "plan": _plan,
    "analyze": _analyze,
    "evaluate": _evaluate,
    "benchmark": _benchmark,
    "export": _export,
    "card": _card,
    "report": _report,
    "push": _push,
    "demo": _demo,
}
