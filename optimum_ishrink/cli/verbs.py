"""The verbs: each turns its flags into options, calls the API, and prints what it returns."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..architectures.composite import composites
from ..configuration import IShrinkConfig
from ..core.processes import is_main_process
from ..edge.options import ExportOptions, RuntimeOptions
from ..errors import RequestError
from ..hub.options import PushOptions
from .app_verbs import app
from .chat_verbs import chat
from .describe_verb import describe
from .draft_verb import draft
from .flags import given
from .plan_verb import plan, show_plan_alone
from .requests import (
    checked_output,
    lists_criteria,
    open_shrinker,
    quiet_transformers,
    read_request,
    register_description,
)
from .search_verbs import advise, profile, search
from .show import print_table, say

if TYPE_CHECKING:
    from ..api.result import ShrinkResult
    from ..api.shrinker import IShrinker
    from ..report.plan import Plan
    from ..report.report import Report


Verb = Callable[[argparse.Namespace], Any]


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.json:
        say(text)


def _shrink(args: argparse.Namespace) -> Any:
    from .show import show_criteria

    if lists_criteria(args):
        return show_criteria(args)
    model, config = read_request(args)
    if not args.output and not args.dry_run:
        raise RequestError("name the output folder with --output, or pass --dry-run")
    if args.output and not args.dry_run:
        checked_output(args)
    if args.push_to_hub:
        _check_destination(args)
    shrinker = open_shrinker(args, model)
    if args.dry_run:
        return show_plan_alone(args, shrinker, config, check_all=True)
    words = ["--architecture", Path(args.architecture).name] if args.architecture else []
    return _run_shrink(args, shrinker, config, command_words=words)


def _check_destination(args: argparse.Namespace) -> None:
    """Check that the push at the end can succeed; a dry run checks the name alone, and asks no server."""
    from ..hub.destination import check_destination, check_repo_id

    if args.dry_run:
        check_repo_id(args.push_to_hub)
    elif is_main_process():
        check_destination(args.push_to_hub)


def _run_shrink(args: argparse.Namespace, shrinker: IShrinker, config: IShrinkConfig, **how: Any) -> Any:
    """Shrink, print the result and what can be done with it, and push it if requested."""
    from .show import show_plan, show_runtime

    output = Path(args.output)

    def show(plan: Any) -> None:
        if not args.json:
            show_plan(plan)
            show_runtime(shrinker.source.binding, config, plan.new_shape)

    result = shrinker.shrink(config, save_directory=output, overwrite=args.overwrite, on_plan=show, **how)
    _show_report(args, result.report, result.plan)
    _say(args, f"Written to {output} (card: {output / 'README.md'})")
    several = result.plan is not None and result.plan.model_type in composites()
    opener = "AutoModelForImageTextToText" if several else "AutoModelForCausalLM"
    if not hasattr(args, "uploads"):  # transformers opens no URL
        _say(args, f'Load it:  {opener}.from_pretrained("{output}", dtype="auto")')
    found = _result(output, result)
    repo_id = getattr(args, "push_to_hub", None)
    if repo_id and is_main_process():
        found["commit_url"] = _upload(args, result.folder, repo_id)
        _say(args, f"Pushed:   {found['commit_url']}")
    elif not hasattr(args, "uploads"):
        _say(args, f"Push it:  ishrink push --model {output} --repo-id YOUR_NAME/{output.name}")
    return found


def _result(output: Path, result: ShrinkResult) -> dict[str, Any]:
    plan = None if result.plan is None else result.plan.to_json()
    return {"output": str(output), "plan": plan, "report": result.report.to_json()}


def _show_report(args: argparse.Namespace, report: Report, plan: Plan | None = None) -> None:
    from .show import show_report

    if not args.json:
        show_report(report, plan)


def _analyze(args: argparse.Namespace) -> Any:
    from ..analysis.advised_command import advised_command
    from ..analysis.options import AnalysisOptions
    from .show import show_analysis

    if lists_criteria(args):
        from .show import show_criteria

        return show_criteria(args)
    model, config = read_request(args)
    values = given(args, AnalysisOptions)
    options = AnalysisOptions(**values)
    output = checked_output(args)
    analysis = open_shrinker(args, model).analyze(config, save_directory=output, overwrite=args.overwrite, **values)
    if args.json:
        return {"output": str(output), **analysis.to_json()}
    show_analysis(analysis)
    extra = [
        word
        for flag in ("gguf_file", "revision", "architecture")
        if getattr(args, flag)
        for word in ("--" + flag.replace("_", "-"), getattr(args, flag))
    ]
    _say(args, f"Written to {output} (figures: {output / 'figures'})")
    _say(args, advised_command(config, options, analysis.changes, analysis.finer_levels, model, *extra))
    return None


def _recover(args: argparse.Namespace) -> Any:
    if args.recovery == "none":
        raise RequestError("--recovery none trains nothing; name a loss such as kl")
    model, config = read_request(args)
    output = checked_output(args)
    result = open_shrinker(args, model).recover(config, save_directory=output, overwrite=args.overwrite)
    if not is_main_process():
        return None
    _show_report(args, result.report)
    found = result.report.recovery
    if found is not None and found.helped:  # else a note says that the weights are unchanged
        before, after = found.held_out_loss_before, found.held_out_loss
        weights = "" if found.recovery_for is None else f" in {found.recovery_for}"
        _say(args, f"Loss on the held-out windows{weights}: {before:.4f} before, {after:.4f} after")
    _say(args, f"Written to {output}")
    return _result(output, result)


def _evaluate(args: argparse.Namespace) -> Any:
    model, config = read_request(args)
    report = open_shrinker(args, model).evaluate(config, base=args.base, update_report=not args.no_update_report)
    _show_report(args, report)
    return report.to_json()


def _benchmark(args: argparse.Namespace) -> Any:
    options = RuntimeOptions(**given(args, RuntimeOptions))
    if options.runtime == "llama.cpp":
        return _benchmark_llama_cpp(args, options)
    from ..evaluation.options import BENCHMARK_LENGTHS

    args.benchmark_prompt_length = args.benchmark_prompt_length or BENCHMARK_LENGTHS
    model, config = read_request(args)
    report = open_shrinker(args, model).benchmark(config, base=args.base, update_report=not args.no_update_report)
    _show_report(args, report)
    return report.to_json()


def _benchmark_llama_cpp(args: argparse.Namespace, options: RuntimeOptions) -> Any:
    from ..api.llama_cpp import benchmark_llama_cpp
    from ..evaluation.options import SpeedOptions
    from .show_export import show_llama_cpp

    quiet_transformers()
    register_description(args)
    found = benchmark_llama_cpp(
        str(Path(args.model) / args.gguf_file) if args.gguf_file else args.model,
        args.base,
        options,
        revision=args.revision,
        update=not args.no_update_report,
        base_model=args.base_model,
        **{name: value for name, value in given(args, SpeedOptions).items() if name.startswith("benchmark_")},
    )
    if not args.json:
        show_llama_cpp(found)
    return found.report.to_json()


def _export(args: argparse.Namespace) -> Any:
    from .show_export import show_export

    values = given(args, ExportOptions)
    ExportOptions(**values)
    found = open_shrinker(args, args.model).export(Path(args.output), overwrite=args.overwrite, **values)
    if not args.json:
        show_export(found)
    return found.to_json()


def _card(args: argparse.Namespace) -> Any:
    from ..card.build import build_card

    folder = Path(args.model)
    if args.device_report:
        from ..api.device_evidence import add_device_reports

        add_device_reports(folder, [Path(each) for each in args.device_report])
    else:
        build_card(folder)
    say(f"Written to {folder / 'README.md'}")
    return None


def _report(args: argparse.Namespace) -> Any:
    from ..report.page.overview import build_overview, overview_rows
    from ..report.page.pareto import plots
    from ..report.page.reading import read_reports
    from ..report.page.render import check_page, render_page, write_page

    if args.output:
        check_page(Path(args.output), overwrite=args.overwrite)
    overview = build_overview(read_reports([Path(each) for each in args.outputs]))
    drawn = plots(overview, args.metric)
    if args.output:
        title = args.title or "Shrunk models compared"
        write_page(render_page(overview, drawn, title=title), Path(args.output), overwrite=args.overwrite)
    if not args.json:
        header, rows = overview_rows(overview)
        print_table("Compared", header, rows)
        for line in overview.notes:
            _say(args, line)
        for plot in drawn:
            best = ", ".join(point.label for point in plot.points if point.optimal)
            _say(args, f"{plot.title}, Pareto-optimal: {best}")
        _say(args, f"Written to {args.output}" if args.output else "For a page with plots: --output FILE.html")
    return {"output": args.output, **overview.to_json(), "pictures": [plot.to_json() for plot in drawn]}


def _push(args: argparse.Namespace) -> Any:
    if args.url is not None:
        return _push_to_url(args)
    url = _upload(args, Path(args.model), args.repo_id)
    _say(args, f"Pushed: {url}")
    return {"commit_url": url}


def _push_to_url(args: argparse.Namespace) -> Any:
    """Upload a folder or file to a place of fsspec; options of the Hub do not go with it."""
    from ..core.storage import is_url, open_storage
    from ..core.uploading import check_upload, upload

    if values := given(args, PushOptions):
        raise RequestError(f"--{next(iter(values)).replace('_', '-')} is for --repo-id; a URL has no such thing")
    if not is_url(args.url):
        raise RequestError(f"{args.url} is no URL; give one of fsspec, such as s3://bucket/small, or --repo-id")
    if not Path(args.model).exists():
        raise RequestError(f"{args.model} does not exist; name an output folder")
    storage = open_storage(args.url, RequestError)
    check_upload(storage, args.overwrite)
    upload(Path(args.model), storage)
    _say(args, f"Uploaded: {storage.shown}")
    return {"output": storage.shown}


def _upload(args: argparse.Namespace, folder: Path, repo_id: str) -> str:
    """Push a folder, with the bars that other verbs do without: gigabytes take their time."""
    from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]

    from ..hub.push import push_folder

    if sys.stderr.isatty():
        enable_progress_bars()
    values = given(args, PushOptions)
    if args.verb != "push":  # of `shrink`, the revision is that of the model which is read
        values = {name: value for name, value in values.items() if name.startswith("private")}
    options = PushOptions(**values)
    return push_folder(
        folder,
        repo_id,
        private=options.private,
        private_until_complete=options.private_until_complete,
        revision=options.revision,
        commit_message=options.commit_message,
    )


def _demo(args: argparse.Namespace) -> Any:
    from ..demo import INSTALL, demo_config, demo_source

    quiet_transformers()
    checked_output(args)
    config = demo_config(args.target, args.seed, args.recovery)
    from ..api.shrinker import IShrinker

    recovery = "" if args.recovery == "none" else f" --recovery {args.recovery}"
    output = Path(args.output).name
    command = f"{INSTALL}\nishrink demo --target {args.target}{recovery} --seed {args.seed} --output {output}"
    return _run_shrink(args, IShrinker(demo_source()), config, command=command)


VERBS: dict[str, Verb] = {
    "shrink": _shrink,
    "recover": _recover,
    "plan": plan,
    "analyze": _analyze,
    "search": search,
    "profile": profile,
    "advise": advise,
    "describe": describe,
    "draft": draft,
    "evaluate": _evaluate,
    "benchmark": _benchmark,
    "chat": chat,
    "export": _export,
    "app": app,
    "card": _card,
    "report": _report,
    "push": _push,
    "demo": _demo,
}
