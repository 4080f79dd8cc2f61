"""The verb `export`, and `benchmark --runtime llama.cpp`: from parsed arguments to tables."""

from __future__ import annotations

import os
import tempfile
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..checkpoint.source import Source, open_source
from ..core.output import check_output_file
from ..core.table import Row, print_table
from ..errors import RequestError, SourceError, VerificationError
from ..report.files import REPORT_FILE
from ..report.report import ModelReport, Report
from ..report.tables import speed_header, speed_rows
from .agreement import EXACT_LIMIT, Agreement, agreement_rows, measure_agreement
from .benchmark import BenchmarkSettings, EdgeResult, fitting_lengths, run_benchmark
from .convert import check_tools, write_gguf
from .files import GgufFile, read_gguf
from .quantization import PROGRAM, Quantization, parse_quantization
from .rows import FALLBACK_HEADER, check_rows, fallback_rows
from .runtime import check_runtime
from .schemes import SCHEMES

DEFAULT_QUANTIZATION, EXPORT_QUANTIZATION = "q8_0", "f16"


def default_threads() -> int:
    """Return the processors that this process may run on, at most the physical cores: more only wait for these."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def export(args: Namespace, source: Source) -> Any:
    """Write a checkpoint as GGUF, compare it with transformers, and print what came of it.

    Args:
        args: Parsed arguments of `export`.
        source: The checkpoint.

    Raises:
        RequestError: The quantisation does not fit, a tool is missing, or the file cannot be written.
        VerificationError: The file does not say what the checkpoint says; nothing was kept.
    """
    quantization = _gguf_quantization(args)
    output = Path(args.output)
    check_output_file(output, args.overwrite)
    if output.suffix != ".gguf":
        raise RequestError(f"{output} does not end in .gguf, which llama.cpp's programs look for; name such a file")
    check_tools(quantization)
    if args.verify:
        try:
            check_runtime()
        except RequestError as error:
            raise RequestError(f"{error}; or pass --no-verify to export without comparing") from None
    check_rows(source.binding, quantization)
    agreements: list[Agreement] = []

    def check(path: Path) -> None:
        if args.verify:
            agreements.append(_verify(source, path, quantization, args.threads or default_threads()))

    name = source.display_name
    write_gguf(source.folder, quantization, output, name=name, overwrite=args.overwrite, check=check)
    file = read_gguf(output)
    if not args.json:
        _print_export(source, file, quantization, agreements)
        print_line(f"Written to {output}")
        print_line(f"Time it:  ishrink benchmark --runtime llama.cpp --model {output} --base BASE.gguf")
    agreement = asdict(agreements[0]) if agreements else None
    facts = {"params": file.params, "bytes": file.nbytes, "quantization": quantization.name}
    return {"output": str(output), **facts, "agreement": agreement}


def _gguf_quantization(args: Namespace) -> Quantization:
    """Return the quantisation of a GGUF export; flags that only safetensors knows are not passed over in silence."""
    names = ("group_size", "keep_layers", "analysis", "keep_share")
    if given := [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None]:
        raise RequestError(f"{given[0]} belongs to --format safetensors")
    asked = args.quantization or EXPORT_QUANTIZATION
    if asked.lower() in SCHEMES:
        raise RequestError(
            f"{asked.lower()} is a quantization of safetensors: pass --format safetensors, or choose one of GGUF, "
            "such as q8_0"
        )
    return parse_quantization(asked)


def _verify(source: Source, path: Path, quantization: Quantization, threads: int) -> Agreement:
    import torch

    model = source.load_model(torch.float32, torch.device("cpu"))
    found = measure_agreement(model, source.load_tokenizer(), path, threads=threads)
    if quantization.is_exact and not found.divergence.value < EXACT_LIMIT:
        raise VerificationError(
            f"llama.cpp reads this model otherwise than transformers: a KL divergence of {found.divergence.value:.4f} "
            f"nats/token in {quantization.name}, where below {EXACT_LIMIT} is right; nothing was kept. "
            "Pass --no-verify to write the file all the same"
        )
    return found


def print_line(text: str) -> None:
    """Print a line on standard output."""
    print(text)  # noqa: T201


def _print_export(source: Source, file: GgufFile, quantization: Quantization, agreements: list[Agreement]) -> None:
    bits = 8 * file.nbytes / file.params
    rows: list[Row] = [
        ("parameters", f"{file.params:,}"),
        ("file", f"{file.nbytes:,} bytes, {bits:.2f} bits a parameter"),
        ("architecture", file.architecture),
    ]
    for found in agreements:
        few = found.divergence.settings["candidates"]
        rest = "" if found.coverage == 1 else f"; its {few:,} likeliest one by one, all others as one"
        rows += agreement_rows(found.divergence, found.top1, rest=rest, dtypes="in float32")
        rows.append(("tokenizer", f"{found.same_lines} of {found.lines} lines split as the checkpoint's does"))
    print_table(f"{source.display_name} as {quantization.name}", ("", ""), rows)
    if quantization.written_by == PROGRAM:
        shape = source.binding.shape
        if fallen := fallback_rows(source.binding, shape, quantization.tensor_type):
            print_table(f"Rows that {quantization.tensor_type.name} does not fit", FALLBACK_HEADER, fallen)


def benchmark(args: Namespace, open_model: Callable[[str], Source]) -> Any:
    """Time one GGUF, or two in turn, and print what came of it.

    Args:
        args: Parsed arguments of `benchmark`.
        open_model: Opens the checkpoint that `--model` names, where that is no GGUF file.

    Raises:
        RequestError: llama.cpp is missing, or the two are not of the same quantisation.
    """
    check_runtime()
    given = {"new_tokens": args.benchmark_new_tokens, "rounds": args.benchmark_rounds}
    settings = BenchmarkSettings(
        args.threads or default_threads(), **{key: value for key, value in given.items() if value is not None}
    )
    asked = _lengths(args.benchmark_prompt_length) if args.benchmark_prompt_length else None
    with ExitStack() as stack:
        model = str(Path(args.model) / args.gguf_file) if args.gguf_file else args.model
        files = {"shrunk": model, **({"base": args.base} if args.base else {})}
        ready = {name: read_gguf(Path(path)) for name, path in files.items() if Path(path).is_file()}
        wanted = _quantization(args.quantization, ready)
        opened = {}
        for name, path in files.items():
            if name not in ready:
                refuse_gguf(path)
                opened[name] = (open_model if name == "shrunk" else open_source)(path)
                check_rows(opened[name].binding, wanted)
        kept = _report_folder(args, opened)
        for name, checkpoint in opened.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ishrink-edge-")))
            target = folder / f"{name}.gguf"
            write_gguf(checkpoint.folder, wanted, target, name=checkpoint.display_name)
            ready[name] = read_gguf(target, checkpoint.display_name)
        if "base" in ready and ready["base"].vocabulary != ready["shrunk"].vocabulary:
            raise RequestError(
                "the two models do not share a vocabulary, so their tokens per second are not comparable"
            )
        contexts = [file.context for file in ready.values() if file.context is not None]
        lengths = fitting_lengths(asked, settings.new_tokens, min(contexts, default=None))
        settings = replace(settings, lengths=lengths)
        order = ("base", "shrunk") if args.base else ("shrunk",)
        result = run_benchmark({name: ready[name] for name in order}, settings)
    report = _report(ready, result, settings)
    if not args.json:
        print_table(f"{ready['shrunk'].name} in llama.cpp", speed_header(report), speed_rows(report))
        threads = "1 thread" if settings.threads == 1 else f"{settings.threads} threads"
        for line in (f"{threads}, {result.build}", *result.notes):
            print_line(line)
    if kept is not None:
        from ..card.update import update_report

        update_report(kept, report)
        if not args.json:
            print_line(f"Added to {kept / REPORT_FILE} and its card; --no-update-report leaves them as they are")
    return report.to_json()


def _report_folder(args: Namespace, opened: dict[str, Source]) -> Path | None:
    """Return the output folder whose report the figures belong into: that of a checkpoint timed beside its base."""
    from ..card.update import can_update
    from ..configuration import IShrinkConfig

    source, base = opened.get("shrunk"), opened.get("base")
    if source is None or base is None or source.is_hub_id or args.no_update_report:
        return None
    return source.folder if can_update(source.folder, base, IShrinkConfig(base_model=args.base_model)) else None


def refuse_gguf(name: str) -> None:
    """Refuse what is named like a GGUF file or holds nothing else, where a checkpoint has to be opened.

    Raises:
        SourceError: It is; the message says what to name.
    """
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file() and (found := sorted(folder.glob("*.gguf"))):
        raise SourceError(f"{folder} holds no checkpoint; name the GGUF file itself, such as {found[0]}")
    if folder.suffix == ".gguf":
        raise SourceError(f"{folder} does not exist")


def _lengths(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise RequestError(f"prompt lengths must be whole numbers such as 64,256, not {text!r}") from None


def _quantization(asked: str | None, ready: dict[str, GgufFile]) -> Quantization:
    """Return the one quantisation of both models."""
    found = {file.quantization: file for file in ready.values()}
    if len(found) > 1:
        names = " and ".join(f"{file.name} is {name}" for name, file in found.items())
        raise RequestError(f"{names}; compare models of the same quantisation")
    own = next(iter(found), None)
    if asked and own and parse_quantization(asked).name != own:
        raise RequestError(f"{found[own].name} is {own}, not {asked}; leave out --quantization, or export it anew")
    return parse_quantization(asked or own or DEFAULT_QUANTIZATION)


def _report(files: dict[str, GgufFile], result: EdgeResult, settings: BenchmarkSettings) -> Report:
    import torch

    from ..evaluation.environment import environment

    models = {
        name: ModelReport(files[name].name, files[name].params, files[name].nbytes, speed=found)
        for name, found in result.measurements.items()
    }
    where = environment(torch.device("cpu"), torch.float32)
    where |= {"runtime": result.build, "threads": settings.threads, "dtype": files["shrunk"].quantization}
    return Report(models.get("base"), models["shrunk"], where)
