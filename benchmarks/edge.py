"""Shrink, then quantise: size, quality and speed in llama.cpp of base and shrunk models at several bit widths.

    python benchmarks/edge.py run MODEL WORK --output edge.jsonl [--threads N] [--rounds 16]
        [--tasks a,b --include-path DIR] [--calibration SRC[,SRC...]]
    python benchmarks/edge.py table edge.jsonl

MODEL is a checkpoint folder or Hub id. WORK keeps the shrunk checkpoints and the GGUF files; existing files are
not made again, nor are rows that are in the output. Every speed is measured in turn with the unpruned model at the
same quantisation. The KL divergence is that of llama.cpp's predictions from the unpruned model's in float32. Tasks run
in transformers on the dequantised file.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.core.json_codec import from_plain
from optimum_ishrink.core.table import markdown_table
from optimum_ishrink.edge.agreement import AgreementSettings, measure_agreement
from optimum_ishrink.edge.benchmark import BenchmarkSettings, fitting_lengths, run_benchmark
from optimum_ishrink.edge.gguf_file import read_gguf
from optimum_ishrink.edge.gguf_quantizations import parse_gguf_quantization
from optimum_ishrink.edge.gguf_tokenizer import GgufTokenizer
from optimum_ishrink.edge.llama_server import default_threads
from optimum_ishrink.edge.row_fallbacks import check_rows
from optimum_ishrink.edge.write_gguf import write_gguf
from optimum_ishrink.evaluation.harness import evaluate_tasks, open_tasks
from optimum_ishrink.pipeline.job import shrink_job
from optimum_ishrink.pipeline.runner import SHRINK
from optimum_ishrink.pipeline.runner import run as run_stages
from optimum_ishrink.report.measurement import Measurement

PERCENTS = (0, 10, 15, 20)
QUANTIZATIONS = ("f16", "q8_0", "q4_0")
AGREEMENT = AgreementSettings(windows=16, length=128, predicted=64, documents=40)


def checkpoint(base: Any, percent: int, args: argparse.Namespace) -> Path:
    """Return the checkpoint with a share removed, shrunk once."""
    folder = Path(args.work) / f"shrunk-{percent}"
    if not folder.is_dir():
        config = IShrinkConfig(
            target=f"params=-{percent}%",
            prune=["intermediate_size"],
            for_runtime="llama.cpp",
            calibration=args.calibration,
            evaluate=False,
            benchmark=False,
        )
        run_stages(SHRINK, shrink_job(Session(base, config), config, folder))
    return folder


def run(args: argparse.Namespace) -> None:
    """Measure what the output lacks."""
    Path(args.work).mkdir(parents=True, exist_ok=True)
    output = Path(args.output)
    done = [json.loads(line) for line in output.read_text().splitlines()] if output.is_file() else []
    known = {(row["percent"], row["quantization"]) for row in done}
    base = open_source(args.model)
    model, tokenizer = base.load_model(torch.float32, torch.device("cpu")), base.load_tokenizer()
    threads = args.threads or default_threads()
    for percent in PERCENTS:
        source = base if percent == 0 else open_source(checkpoint(base, percent, args))
        for name in QUANTIZATIONS:
            path = Path(args.work) / f"{percent}-{name}.gguf"
            check_rows(source.binding, parse_gguf_quantization(name))
            if not path.is_file():
                write_gguf(
                    source.folder, parse_gguf_quantization(name), path, name=path.stem, tokenizer=GgufTokenizer()
                )
            if (percent, name) in known:
                continue
            found = measure_agreement(model, tokenizer, path, threads=threads, settings=AGREEMENT)
            file = read_gguf(path)
            row: dict[str, Any] = {
                "percent": percent,
                "quantization": name,
                "params": file.params,
                "bytes": file.nbytes,
                "kl": [found.divergence.value, found.divergence.stderr],
                "top1": [found.top1.value, found.top1.stderr],
                "tasks": tasks(path, args),
            }
            if percent:
                unpruned = read_gguf(Path(args.work) / f"0-{name}.gguf")
                lengths = fitting_lengths(None, 32, file.context)
                settings = BenchmarkSettings(threads, lengths, rounds=args.rounds)
                result = run_benchmark({"base": unpruned, "shrunk": file}, settings)
                row["build"] = result.build
                row["speed"] = [asdict(found) for found in result.measurements["shrunk"]]
                row["base_speed"] = [asdict(found) for found in result.measurements["base"]]
            with output.open("a", encoding="utf-8") as file_out:
                file_out.write(json.dumps(row) + "\n")


def tasks(path: Path, args: argparse.Namespace) -> dict[str, float]:
    """Return what the tasks say of a GGUF file's weights."""
    if not args.tasks:
        return {}
    names = tuple(args.tasks.split(","))
    source = open_source(path.parent, gguf_file=path.name, gguf_dtype=torch.float32)
    model = source.load_model(torch.float32, torch.device("cpu"))
    manager = open_tasks(names, args.include_path)
    found = evaluate_tasks(model, source.load_tokenizer(), names, manager, num_fewshot=None, batch_size=4, seed=0)
    return {f"{entry.dataset} {entry.metric}": entry.value for entry in found}


SHOWN = (
    ("model_load_seconds", "cold file cache", "load cold"),
    ("model_load_seconds", "warm file cache", "load warm"),
    ("time_to_first_token_seconds", "prompt 256", "first token, 256"),
    ("decode_tokens_per_second", "prompt 64", "decode, 64"),
    ("decode_tokens_per_second", "prompt 256", "decode, 256"),
    ("peak_memory_bytes", "", "memory"),
)


def speed(row: dict[str, Any], metric: str, where: str) -> str:
    """Return a ratio to the unpruned model, with the verdict where rounds were compared."""
    for base, shrunk in zip(row.get("base_speed", ()), row.get("speed", ()), strict=True):
        if shrunk["metric"] == metric and shrunk["dataset"].endswith(where):
            found = from_plain(Measurement, shrunk, kind="row").versus_base
            if found is None:
                return f"x{shrunk['value'] / base['value']:.3f}"
            return f"x{found.ratio:.3f}, {found.verdict}"
    return ""


def table(args: argparse.Namespace) -> None:
    """Print the rows as Markdown: speeds as ratios to the unpruned model at the same quantisation."""
    rows = [json.loads(line) for line in Path(args.output).read_text().splitlines()]
    names = sorted({name for row in rows for name in row["tasks"]})
    body = []
    for row in sorted(rows, key=lambda row: row["bytes"], reverse=True):
        cells = [
            f"-{row['percent']} %" if row["percent"] else "base",
            row["quantization"],
            f"{row['bytes'] / 1e6:.1f}",
        ]
        cells += [f"{row['kl'][0]:.3f} ± {row['kl'][1]:.3f}", f"{row['top1'][0]:.3f}"]
        cells += [f"{row['tasks'][name]:.3f}" if name in row["tasks"] else "" for name in names]
        cells += [speed(row, metric, where) for metric, where, _ in SHOWN]
        body.append(tuple(cells))
    header = ("model", "quantisation", "MB", "KL from the base", "top-1", *names, *(title for *_, title in SHOWN))
    print(markdown_table(header, body))


def main() -> None:
    """Run the benchmark or print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    runner = verbs.add_parser("run")
    runner.add_argument("model")
    runner.add_argument("work")
    runner.add_argument("--output", required=True)
    runner.add_argument("--threads", type=int)
    runner.add_argument("--rounds", type=int, default=16)
    runner.add_argument("--tasks")
    runner.add_argument("--include-path")
    runner.add_argument("--calibration", default="self")
    printer = verbs.add_parser("table")
    printer.add_argument("output")
    args = parser.parse_args()
    {"run": run, "table": table}[args.verb](args)


if __name__ == "__main__":
    main()
