"""Rows of the vocabulary against bits per byte: alone and with neurons, untrained and recovered.

    python -m benchmarks.vocabulary run MODEL DATA --output vocabulary.jsonl [--rows 40960,32768,24576]
        [--targets 15] [--widths 1344,1152] [--samples 64] [--recovery-tokens 0,200000] [--eval-samples 32]
        [--self] [--drop-reserved]
    python -m benchmarks.vocabulary table vocabulary.jsonl

MODEL is a folder, DATA one with the text files named below. What stays is chosen by the `train` files, by English word
frequencies, by the vocabulary's order and, with `--self`, by text that the model samples itself. Bits per byte are
measured on three texts that nothing was chosen on. Rows that are in the output already are not made again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optimum_ishrink import IShrinkConfig, IShrinker

CALIBRATION = ("wikitext2.train.txt", "arc_easy.train.jsonl", "openbookqa.train.jsonl")
REPORTED = ("wikitext2.test.txt", "commonsense_qa.validation.jsonl", "pydoc")
METRICS = ("bits_per_byte", "kl_divergence", "tokens_per_byte")


def requests(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what to ask for."""
    for tokens in args.recovery_tokens:
        trained = {"recovery": "kl", "recovery_tokens": tokens} if tokens else {}
        for rows in args.rows:
            yield {"vocab_size": rows, **trained}
            for width in args.widths:
                yield {"vocab_size": rows, "intermediate_size": width, **trained}
        for width in args.widths:
            yield {"intermediate_size": width, **trained}
        for target in args.targets:
            yield {"target": f"params=-{target}%", **trained}


def run(args: argparse.Namespace) -> None:
    """Make the rows that are not in the output yet."""
    done = [json.loads(line)["asked"] for line in args.output.read_text().splitlines()] if args.output.exists() else []
    texts = [str(args.data / name) for name in CALIBRATION] + (["self"] if args.self else [])
    common = {
        "calibration": texts,
        "calibration_samples": args.samples,
        "eval_text": [name if name == "pydoc" else str(args.data / name) for name in REPORTED],
        "eval_samples": args.eval_samples,
        "eval_length": 512,
        "benchmark": False,
        "sample_new_tokens": 0,
    }
    for request in requests(args):
        asked = {**request, "samples": args.samples, "self": args.self}
        if args.drop_reserved:
            asked["vocab_drop_reserved"] = request["vocab_drop_reserved"] = True
        if asked in done:
            continue
        config = IShrinkConfig(**{**common, **request, **({"recovery_data": texts} if "recovery" in request else {})})
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            result = IShrinker.from_pretrained(args.model).shrink(config, save_directory=Path(folder) / "small")
            report, plan = result.report, result.plan
            assert report.base is not None
            assert plan is not None
            row = {
                "asked": asked,
                "seconds": round(time.perf_counter() - started),
                "shape": dict(plan.new_shape),
                "removed": plan.removed_share,
                "base": _figures(report.base.quality),
                "shrunk": _figures(report.shrunk.quality),
            }
        with args.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(markdown([row]), flush=True)


def _figures(measurements: Any) -> dict[str, dict[str, tuple[float, float | None]]]:
    found: dict[str, dict[str, tuple[float, float | None]]] = {}
    for each in measurements:
        if each.metric in METRICS:
            found.setdefault(each.metric, {})[each.dataset] = (each.value, each.stderr)
    return found


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table, sorted by what is removed."""
    names = list(rows[0]["shrunk"]["bits_per_byte"])
    head = ["removed", "rows", "neurons", "layers", *(f"bits per byte, {name}" for name in names), "mean", "tokens"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for row in sorted(rows, key=lambda row: row["removed"]):
        before, after = row["base"]["bits_per_byte"], row["shrunk"]["bits_per_byte"]
        changes = [after[name][0] / before[name][0] - 1 for name in names]
        shape = row["shape"]
        cells = [
            f"{row['removed']:.1%}",
            f"{shape['vocab_size']:,}",
            f"{shape['intermediate_size']:,}",
            str(shape["num_hidden_layers"]),
            *(f"{after[name][0]:.4f} ({change:+.1%})" for name, change in zip(names, changes, strict=True)),
            f"{sum(changes) / len(changes):+.1%}",
            f"{row['asked'].get('recovery_tokens', 0):,}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the experiment, or print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    runs = verbs.add_parser("run")
    runs.add_argument("model")
    runs.add_argument("data", type=Path)
    runs.add_argument("--output", type=Path, required=True)
    for name, default in (("rows", ""), ("targets", ""), ("widths", ""), ("recovery-tokens", "0")):
        runs.add_argument(f"--{name}", type=_numbers, default=_numbers(default))
    runs.add_argument("--samples", type=int, default=64)
    runs.add_argument("--eval-samples", type=int, default=32)
    runs.add_argument("--self", action="store_true")
    runs.add_argument("--drop-reserved", action="store_true")
    runs.set_defaults(work=run)
    tables = verbs.add_parser("table")
    tables.add_argument("output", type=Path)
    tables.set_defaults(
        work=lambda args: print(markdown([json.loads(line) for line in args.output.read_text().splitlines()]))
    )
    args = parser.parse_args()
    args.work(args)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


if __name__ == "__main__":
    main()
