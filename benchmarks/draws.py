"""How much of a result is luck of the draw: one request with several seeds, each of which samples other text.

    python -m benchmarks.draws run MODEL DATA --output draws.jsonl [--seeds 6] [--target params=-15%]
        [--set calibration_samples=256]
    python -m benchmarks.draws table draws.jsonl

The request is the demo's. A seed chooses the text that the model samples for its own calibration, and the labels of
Fisher information. All results are compared with MODEL on the same windows of three texts that nothing was chosen on.
Rows that are in the output already are not made again; the table has a line for each request.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimum_ishrink import IShrinker
from optimum_ishrink.core.table import markdown_table
from optimum_ishrink.demo import demo_config

REPORTED = ("wikitext2.test.txt", "commonsense_qa.validation.jsonl", "pydoc")
METRICS = ("kl_divergence", "bits_per_byte")


def run(args: argparse.Namespace) -> None:
    """Make the rows that are not in the output yet."""
    done = [json.loads(line) for line in args.output.read_text().splitlines()] if args.output.exists() else []
    changes = {name: json.loads(value) for name, _, value in (word.partition("=") for word in args.set)}
    texts = [name if name == "pydoc" else str(args.data / name) for name in REPORTED]
    for seed in range(args.seeds):
        asked = {"target": args.target, **changes}
        if any(row["asked"] == asked and row["seed"] == seed for row in done):
            continue
        config = demo_config(args.target, seed).replace(evaluate=False, benchmark=False, **changes)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            result = IShrinker.from_pretrained(args.model).shrink(config, save_directory=Path(folder) / "small")
            seconds = time.perf_counter() - started
            report = IShrinker.from_pretrained(result.folder).evaluate(
                base=args.model, update_report=False, eval_text=texts, eval_length=256, sample_new_tokens=0
            )
        assert report.base is not None and result.plan is not None
        row = {
            "asked": asked,
            "seed": seed,
            "seconds": round(seconds),
            "shape": dict(result.plan.new_shape),
            "base": _means(report.base.quality),
            "shrunk": _means(report.shrunk.quality),
        }
        with args.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def _means(measurements: Sequence[Any]) -> dict[str, float]:
    """Return each metric's mean over the texts."""
    found: dict[str, list[float]] = {}
    for each in measurements:
        if each.metric in METRICS:
            found.setdefault(each.metric, []).append(each.value)
    return {name: statistics.mean(values) for name, values in found.items()}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a line for each request: mean, standard deviation and range over its seeds."""
    requests: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        requests.setdefault(", ".join(f"{name}={value}" for name, value in row["asked"].items()), []).append(row)
    lines: list[tuple[str, ...]] = []
    for name, of in requests.items():
        divergence = [row["shrunk"]["kl_divergence"] for row in of]
        ratio = [row["shrunk"]["bits_per_byte"] / row["base"]["bits_per_byte"] for row in of]
        seconds = statistics.median(row["seconds"] for row in of)
        lines.append((name, str(len(of)), _spread(divergence), _spread(ratio), f"{seconds:.0f}"))
    return markdown_table(("request", "seeds", "KL divergence, nats/token", "bits per byte, x", "seconds"), lines)


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run")
    one.add_argument("model", type=Path)
    one.add_argument("data", type=Path)
    one.add_argument("--output", type=Path, required=True)
    one.add_argument("--seeds", type=int, default=6)
    one.add_argument("--target", default="params=-15%")
    one.add_argument("--set", nargs="*", default=[], metavar="OPTION=VALUE", help="changes of the request, in JSON")
    one.set_defaults(call=run)
    two = commands.add_parser("table")
    two.add_argument("output", type=Path)
    two.set_defaults(call=lambda args: print(markdown([json.loads(x) for x in args.output.read_text().splitlines()])))
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
