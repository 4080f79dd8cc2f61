"""How often the benchmark's verdict is right: A/A runs of a model against itself, A/B runs against a smaller one.

    python benchmarks/aa.py MODEL SMALLER [--runs 20] [--output aa.jsonl]
    python benchmarks/aa.py --table aa.jsonl
    python benchmarks/aa.py --simulate [--runs 2000]

A run is what `ishrink benchmark` times, with a short prompt: both checkpoints are loaded again, timed in turn, and
judged. A/A and A/B runs alternate. Every run is written down when it is done, so that an interrupted command resumes
where it was. The last form needs no model and no quiet machine: it judges made-up timings with a known difference.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from simulated_timings import NOISE, simulate

from optimum_ishrink.checkpoint.loading import load_model
from optimum_ishrink.core.device import resolve_device, resolve_dtype
from optimum_ishrink.core.json_codec import to_plain
from optimum_ishrink.core.table import markdown_table
from optimum_ishrink.evaluation.environment import environment
from optimum_ishrink.evaluation.latency import LatencySettings, measure_latency


def one_run(base: Path, other: Path, settings: LatencySettings, device: torch.device, dtype: torch.dtype) -> Any:
    """Load both checkpoints, time them in turn, and return what was found of the second."""
    gc.collect()
    models = {"base": load_model(base, dtype, device), "shrunk": load_model(other, dtype, device)}
    start = time.monotonic()
    found = measure_latency(models, settings)["shrunk"]
    return {
        "seconds": time.monotonic() - start,
        "verdicts": {m.metric: to_plain(m.versus_base) for m in found if m.metric.endswith("tokens_per_second")},
    }


def measure(args: argparse.Namespace) -> None:
    """Do the runs that are not yet in the output file."""
    transformers.utils.logging.disable_progress_bar()
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    settings = LatencySettings(args.prompt_length, args.new_tokens, args.rounds)
    output = Path(args.output)
    rows = [json.loads(line) for line in output.read_text().splitlines()] if output.is_file() else []
    done = Counter(row["kind"] for row in rows)
    with output.open("a", encoding="utf-8") as file:
        for number in range(args.runs):
            for kind, other in (("A/A", args.model), ("A/B", args.smaller)):
                if number < done[kind]:
                    continue
                row = one_run(Path(args.model), Path(other), settings, device, dtype)
                where = environment(device, dtype)
                file.write(json.dumps({"kind": kind, "label": settings.label, **row, "environment": where}) + "\n")
                file.flush()
                words = ", ".join(f"{m} {v['ratio']:.3f} {v['verdict']}" for m, v in row["verdicts"].items())
                sys.stderr.write(f"{kind} {number + 1}/{args.runs} ({row['seconds']:.0f} s): {words}\n")
    print_table(output)


def print_table(path: Path) -> None:
    """Print how many runs were called what."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    cells = []
    for kind in sorted({row["kind"] for row in rows}):
        mine = [row["verdicts"] for row in rows if row["kind"] == kind]
        for metric in mine[0]:
            found = [verdicts[metric] for verdicts in mine]
            calls = Counter(each["verdict"] for each in found)
            ratios = torch.tensor([each["ratio"] for each in found], dtype=torch.float64)
            low, middle, high = (float(ratios.quantile(q)) for q in (0.0, 0.5, 1.0))
            spread = float(torch.tensor([each["spread"] for each in found]).median())
            words = ", ".join(f"{verdict} {count}" for verdict, count in calls.most_common())
            ratio = f"{middle:.3f} [{low:.3f}, {high:.3f}]"
            cells.append((kind, metric, str(len(found)), words, ratio, f"± {spread:.1%}"))
        right = sum(all(v["verdict"] == "no difference" for v in verdicts.values()) for verdicts in mine)
        if kind == "A/A":
            cells.append((kind, "both at once", str(len(mine)), f"no difference {right}", "", ""))
    header = ("runs", "timing", "n", "called", "ratio: median [least, most]", "base against itself, median")
    print(markdown_table(header, cells))


def print_simulation(runs: int) -> None:
    """Print how often made-up timings are called what."""
    cells = []
    for name in NOISE:
        for difference in (0.0, 0.05, 0.07, 0.10, 0.14):
            found = simulate(NOISE[name], difference, runs=runs, seed=0)
            for metric in ("prefill", "decode"):
                calls = Counter(verdicts[metric] for verdicts in found)
                row = [f"{calls[verdict] / runs:.2%}" for verdict in ("faster", "slower", "no difference")]
                cells.append((name, f"{difference:.0%}", metric, *row))
            if not difference:
                both = sum(set(verdicts.values()) == {"no difference"} for verdicts in found)
                cells.append((name, "0%", "both at once", "", "", f"{both / runs:.2%}"))
    print(markdown_table(("noise", "truly faster by", "timing", "faster", "slower", "no difference"), cells))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder of the base")
    parser.add_argument("smaller", nargs="?", help="folder of a pruned model")
    parser.add_argument("--runs", type=int, help="runs of each kind (default: 20; simulated: 2000)")
    parser.add_argument("--prompt-length", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=13)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--output", default="aa.jsonl", help="a line for each run")
    parser.add_argument("--table", metavar="FILE", help="only print the table of an earlier run's output")
    parser.add_argument("--simulate", action="store_true", help="only judge made-up timings")
    args = parser.parse_args()
    if args.simulate:
        print_simulation(args.runs or 2000)
    elif args.table:
        print_table(Path(args.table))
    elif not args.model or not args.smaller:
        parser.error("name the folders of the base and of the smaller model")
    else:
        args.runs = args.runs or 20
        measure(args)


if __name__ == "__main__":
    main()
