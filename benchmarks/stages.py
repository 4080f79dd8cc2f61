"""What the stages of the demo take against their limits on this machine, and how long the program takes to start.

    python benchmarks/stages.py stages [--rounds 3]
    python benchmarks/stages.py starts [--rounds 7] [--model DIR]

The limit of a stage is its matrix products, reads of weights and sums by the arithmetic of `ishrink plan --estimate`,
at the speeds of bare products of the model's own shapes and of the disk, which are measured beside each run. Nothing
but products counts in it: no norm, no softmax, no sampling of tokens. Each round runs the whole demo in a process of
its own, and a stage's time is that of its progress bar. Set OMP_NUM_THREADS for the threads of all of it.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from optimum_ishrink.core.device import resolve_device, resolve_dtype
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.core.table import markdown_table
from optimum_ishrink.demo import demo_config, demo_source
from optimum_ishrink.pipeline.estimate import estimate_shrink
from optimum_ishrink.pipeline.machine_speed import measure_speed
from optimum_ishrink.report.files import PLAN_FILE
from optimum_ishrink.report.plan import Plan

BARS = {
    "sampling from the model itself": "sampling text",
    "fisher": "importance (fisher)",
    "block-influence": "layer importance (block-influence)",
    "writing the checkpoint (MB)": "writing the checkpoint",
    "compensation": "compensation (ridge)",
    "quality on Python reference topics": "measuring quality",
}
"""Stages of the estimate by the names of their progress bars."""

_BAR = re.compile(r"^(.+?) +━+ +\S+ (\d+):(\d\d):(\d\d) left")
_STARTS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import torch": [sys.executable, "-c", "import torch"],
    "import torch, transformers' Llama": [
        sys.executable,
        "-c",
        "import torch; from transformers import LlamaForCausalLM, AutoTokenizer",
    ],
}
VERBS = ("shrink", "plan", "search", "recover", "evaluate", "export", "chat", "push")


def run_demo(folder: Path) -> tuple[float, dict[str, float]]:
    """Return the seconds of a whole demo, and of each of its stages.

    Args:
        folder: Where its output goes.
    """
    start = time.perf_counter()
    command = [sys.executable, "-m", "optimum_ishrink", "demo", "--output", str(folder)]
    # Scores and qualities of an earlier run would not be computed again.
    alone = {**os.environ, "ISHRINK_CACHE": str(folder.with_name(f"{folder.name}-cache"))}
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=alone)
    seconds = time.perf_counter() - start
    bars: dict[str, float] = {}
    for line in found.stderr.splitlines():
        if match := _BAR.match(line):
            name, hours, minutes, rest = match.groups()
            bars[name] = bars.get(name, 0) + 3600 * int(hours) + 60 * int(minutes) + int(rest)
    return seconds, bars


def limits(folder: Path) -> dict[str, float]:
    """Return the least seconds of each stage of the demo at the speeds that this machine has now.

    Args:
        folder: A finished demo's output.
    """
    source, config = demo_source(), demo_config("params=-15%", 0)
    device = resolve_device(config.device)
    sizes = source.binding.sizes
    dtype = resolve_dtype(config.dtype, device)
    speed = measure_speed(device, dtype, sizes["hidden"], sizes["ffn"], folder)
    shape = Plan.from_json(read_json(folder / PLAN_FILE)).new_shape
    found = estimate_shrink(source.binding, shape, config, folder=folder, speed=speed)
    weights = source.binding.num_parameters() * dtype.itemsize
    return {stage.work.stage: stage.work.seconds(speed, weights) for stage in found.stages}


def stages(rounds: int) -> str:
    """Return the table of stages, medians over rounds.

    Args:
        rounds: How often the demo runs.
    """
    measured: dict[str, list[float]] = {}
    least: dict[str, list[float]] = {}
    whole = []
    with tempfile.TemporaryDirectory() as place:
        for number in range(rounds):
            seconds, bars = run_demo(Path(place) / f"demo-{number}")
            whole.append(seconds)
            for name, took in bars.items():
                measured.setdefault(name, []).append(took)
            for name, took in limits(Path(place) / f"demo-{number}").items():
                least.setdefault(name, []).append(took)
    rows = []
    for bar, times in measured.items():
        time_taken = statistics.median(times)
        limit = statistics.median(least[BARS[bar]]) if BARS.get(bar) in least else None
        share = ("", "") if limit is None else (f"{limit:.1f}", f"{time_taken / limit:.1f}")
        rows.append((bar, share[0], f"{time_taken:.0f}", share[1]))
    rows.append(("the whole demo", "", f"{statistics.median(whole):.0f}", ""))
    return markdown_table(("stage", "limit, s", "measured, s", "ratio"), rows)


def starts(rounds: int, model: str | None) -> str:
    """Return the table of starts, medians over rounds in turn.

    Args:
        rounds: How often each is started.
        model: A model's folder for the verbs that answer without weights; None leaves these out.
    """
    commands = dict(_STARTS)
    program = [sys.executable, "-m", "optimum_ishrink"]
    commands |= {f"ishrink {verb} --help": [*program, verb, "--help"] for verb in VERBS}
    if model is not None:
        shape = ["--model", model, "--target", "params=-15%"]
        commands["ishrink plan --shape-only"] = [*program, "plan", *shape, "--shape-only"]
        commands["ishrink advise"] = [*program, "advise", "--model", model, "--target", "bytes=80MB"]
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            times[name].append(_seconds(command))
    rows = [(name, f"{statistics.median(each):.2f}") for name, each in times.items()]
    return markdown_table(("command", "seconds"), rows)


def _seconds(command: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, dest="what")
    verbs.add_parser("stages").add_argument("--rounds", type=int, default=3)
    start = verbs.add_parser("starts")
    start.add_argument("--rounds", type=int, default=7)
    start.add_argument("--model")
    args = parser.parse_args()
    print(stages(args.rounds) if args.what == "stages" else starts(args.rounds, args.model))


if __name__ == "__main__":
    main()
