"""What calibrated rounding is worth: the unpruned model in each type, with nearest and with calibrated values.

    python benchmarks/rounding.py MODEL DATA WORK --output rounding.jsonl [--quantizations q5_0,q4_0] [--base BASE]
        [--roundings nearest,calibrated]
    python benchmarks/rounding.py MODEL DATA WORK --output rounding.jsonl --table

MODEL is a checkpoint's folder, DATA a folder with the text files of `CALIBRATION` and `TEXTS`, WORK one for the GGUF
files. The divergence from the checkpoint is measured with the values that the files hold, on text that nothing was
calibrated on. Rows that are in the output already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from stored_values import TEXTS, stored_checkpoint

from optimum_ishrink import IShrinker
from optimum_ishrink.checkpoint.source import open_source

CALIBRATION = ("wikitext2.train.txt", "arc_easy.train.jsonl", "openbookqa.train.jsonl")
ROUNDINGS = ("nearest", "calibrated")


def measure(args: argparse.Namespace, name: str, rounding: str) -> dict[str, Any]:
    """Export the model and measure the file."""
    file = args.work / f"{args.model.name}-{name}-{rounding}.gguf"
    start = time.monotonic()
    if not file.exists():
        calibration = {"calibration": ["self", *(str(args.data / each) for each in CALIBRATION)]}
        more: dict[str, Any] = calibration if rounding == "calibrated" else {}
        IShrinker.from_pretrained(args.model).export(file, quantization=name, rounding=rounding, verify=False, **more)
    seconds = time.monotonic() - start
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        stored = stored_checkpoint(open_source(args.model), file, Path(folder) / "stored")
        report = IShrinker.from_pretrained(stored).evaluate(
            base=args.base or args.model,
            eval_text=[text if text == "pydoc" else str(args.data / text) for text in TEXTS],
            eval_samples=args.eval_samples,
            eval_length=256,
            sample_new_tokens=0,
        )
    found = {
        each.dataset: (each.value, each.stderr) for each in report.shrunk.quality if each.metric == "kl_divergence"
    }
    size = file.stat().st_size
    return {"type": name, "rounding": rounding, "bytes": size, "seconds": round(seconds), "divergence": found}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    names = list(rows[0]["divergence"])
    head = ["type", "rounding", "file, MB", *(f"KL, {name}" for name in names), "mean", "seconds to export"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for row in rows:
        found = row["divergence"]
        cells = [row["type"], row["rounding"], f"{row['bytes'] / 1e6:.2f}"]
        cells += [f"{found[name][0]:.3f} ± {found[name][1]:.3f}" for name in names]
        cells += [f"{sum(found[name][0] for name in names) / len(names):.3f}", str(row["seconds"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the command that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--quantizations", default="q5_0,q4_0")
    parser.add_argument("--roundings", default=",".join(ROUNDINGS))
    parser.add_argument("--base", type=Path, help="measure the divergence from this model, which MODEL was cut from")
    parser.add_argument("--eval-samples", type=int, default=8)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in args.output.read_text().splitlines()] if args.output.exists() else []
    for name in () if args.table else args.quantizations.split(","):
        for rounding in args.roundings.split(","):
            if not any((row["type"], row["rounding"]) == (name, rounding) for row in rows):
                rows.append(measure(args, name, rounding))
                with args.output.open("a") as output:
                    output.write(json.dumps(rows[-1]) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
