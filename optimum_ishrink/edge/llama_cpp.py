"""Timing models in llama.cpp: from GGUF files, or checkpoints that are exported first, to a report."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..checkpoint.source import Source, open_source
from ..errors import RequestError, SourceError
from ..evaluation.environment import environment
from ..report.report import ModelReport, Report
from .benchmark import BenchmarkResult, BenchmarkSettings, fitting_lengths, run_benchmark
from .gguf_export import check_runs
from .gguf_file import GgufFile, read_gguf
from .gguf_quantizations import GgufQuantization, parse_gguf_quantization
from .gguf_tokenizer import find_gguf_tokenizer
from .llama_server import check_runtime, default_threads
from .options import BENCHMARK_QUANTIZATION, RuntimeOptions
from .row_fallbacks import check_rows
from .shared_vocabulary import vocabulary_note
from .write_gguf import write_gguf

Model = str | Path | Source | GgufFile
"""A GGUF file by its path or its header; a checkpoint by its Hub id, its folder, or opened."""


@dataclass(frozen=True)
class LlamaCppBenchmark:
    """Timings of one model in llama.cpp, or of two in turn.

    Args:
        report: The measurements.
        notes: What could not be measured, and why, a line each.
        build: Version of llama.cpp and the processor instructions that it used.
        threads: Threads that it used.
        model: The model's checkpoint; None if it is a GGUF file. The caller can add the report to its folder.
        base: The base's checkpoint; None if it is a GGUF file, or if there is none.
    """

    report: Report
    notes: tuple[str, ...]
    build: str
    threads: int
    model: Source | None
    base: Source | None


def open_for_llama_cpp(model: Model, *, revision: str | None = None) -> Source | GgufFile:
    """Open what llama.cpp is to time: read the header of a GGUF file, or open a checkpoint.

    Args:
        model: Path of a GGUF file; or Hub id or folder of a checkpoint. What is open already is returned as it is.
        revision: Branch, tag or commit on the Hub.

    Raises:
        RequestError: llama.cpp is not installed.
        SourceError: There is no usable file or checkpoint.
    """
    check_runtime()
    if isinstance(model, (Source, GgufFile)):
        return model
    found = find_model(model, revision=revision)
    return read_gguf(found) if isinstance(found, Path) else found


def find_model(model: str | Path, *, revision: str | None = None) -> Source | Path:
    """Return the path of a GGUF file, or a checkpoint, opened.

    Args:
        model: Path of a GGUF file; or Hub id or folder of a checkpoint.
        revision: Branch, tag or commit on the Hub.

    Raises:
        SourceError: There is no file and no usable checkpoint.
    """
    path = Path(model).expanduser()
    if path.is_file():
        return path
    if path.is_dir() and not (path / "config.json").is_file() and (found := sorted(path.glob("*.gguf"))):
        raise SourceError(f"{path} holds no checkpoint; name the GGUF file itself, such as {found[0]}")
    if path.suffix == ".gguf":
        raise SourceError(f"{path} does not exist")
    return open_source(model, revision=revision)


def benchmark_llama_cpp(
    model: Model,
    base: Model | None = None,
    *,
    runtime: RuntimeOptions,
    prompt_lengths: tuple[int, ...] | None = None,
    new_tokens: int | None = None,
    rounds: int | None = None,
) -> LlamaCppBenchmark:
    """Time a model in llama.cpp, alone or in turn with its base.

    Checkpoints are exported to a temporary folder first, as the same quantisation. Where the model's vocabulary was
    cut, a note says so: a text takes more tokens of it.

    Args:
        model: The model.
        base: What it is compared with; None to time the model alone.
        runtime: Quantisation of exported checkpoints, and threads.
        prompt_lengths: Prompt lengths in tokens; by default 64 and 256, as far as they fit the context.
        new_tokens: Tokens decoded after each prompt; 32 by default.
        rounds: Pairs of processes; 16 by default, of which one may then disagree with the others.

    Raises:
        RequestError: llama.cpp is missing or would run a checkpoint otherwise, the two differ in quantisation, neither
            vocabulary was cut from the other, or a prompt does not fit.
        SourceError: A model cannot be opened or exported, or llama.cpp cannot run it.
    """
    check_runtime()
    settings = BenchmarkSettings(runtime.threads or default_threads())
    settings = replace(
        settings,
        new_tokens=settings.new_tokens if new_tokens is None else new_tokens,
        rounds=settings.rounds if rounds is None else rounds,
    )
    models = {"shrunk": model} if base is None else {"base": base, "shrunk": model}
    opened = {name: open_for_llama_cpp(each) for name, each in models.items()}
    files = {name: each for name, each in opened.items() if isinstance(each, GgufFile)}
    checkpoints = {name: each for name, each in opened.items() if isinstance(each, Source)}
    quantization = _shared_quantization(runtime.quantization, files)
    for checkpoint in checkpoints.values():
        check_rows(checkpoint.binding, quantization)
        check_runs(checkpoint)
    with ExitStack() as stack:
        for name, checkpoint in checkpoints.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ishrink-edge-")))
            target = folder / f"{name}.gguf"
            tokenizer = find_gguf_tokenizer(checkpoint.folder, checkpoint.load_tokenizer())
            write_gguf(checkpoint.folder, quantization, target, name=checkpoint.display_name, tokenizer=tokenizer)
            files[name] = read_gguf(target, checkpoint.display_name)
        note = vocabulary_note(files.values())
        contexts = [file.context for file in files.values() if file.context is not None]
        requested = tuple(sorted(set(prompt_lengths))) if prompt_lengths else None
        lengths = fitting_lengths(requested, settings.new_tokens, min(contexts, default=None))
        settings = replace(settings, lengths=lengths)
        result = run_benchmark({name: files[name] for name in models}, settings)
    return LlamaCppBenchmark(
        report=_report(files, result, settings),
        notes=result.notes if note is None else (*result.notes, note),
        build=result.build,
        threads=settings.threads,
        model=checkpoints.get("shrunk"),
        base=checkpoints.get("base"),
    )


def _shared_quantization(requested: str | None, files: Mapping[str, GgufFile]) -> GgufQuantization:
    """Return the one quantisation of both models: that of the GGUF files, else the requested or default one."""
    found = {file.quantization: file for file in files.values()}
    if len(found) > 1:
        names = " and ".join(f"{file.name} is {name}" for name, file in found.items())
        raise RequestError(f"{names}; compare models of the same quantisation")
    stored = next(iter(found), None)
    if requested and stored and parse_gguf_quantization(requested).name != stored:
        raise RequestError(
            f"{found[stored].name} is {stored}, not {requested}; leave out --quantization, or export it again"
        )
    return parse_gguf_quantization(requested or stored or BENCHMARK_QUANTIZATION)


def _report(files: Mapping[str, GgufFile], result: BenchmarkResult, settings: BenchmarkSettings) -> Report:
    models = {
        name: ModelReport(files[name].name, files[name].params, files[name].nbytes, speed=found)
        for name, found in result.measurements.items()
    }
    where = environment(torch.device("cpu"), torch.float32)
    dtype = files["shrunk"].quantization
    where = replace(where, runtime=result.build, threads=settings.threads, dtype=dtype)
    return Report(models.get("base"), models["shrunk"], where)
