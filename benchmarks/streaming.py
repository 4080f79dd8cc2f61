"""Memory and time of cutting a checkpoint of Llama-3.2-1B's shape (random weights, 2.5 GB in bfloat16, 5 shards).

    make bench-streaming

It runs `ishrink shrink` in a separate process and prints its peak resident memory beyond the imports, and the time
of cutting and writing against `cp` of the output: five rounds, in turn, medians.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from optimum_ishrink.architectures.model_class import expected_tensors, parse_config
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.checkpoint.tensors import DTYPES, OutgoingTensor
from optimum_ishrink.checkpoint.writing import write_weights
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.report.plan import Plan
from optimum_ishrink.surgery.cut import outgoing_tensors

ROUNDS = 5
CONFIG = json.loads((Path(__file__).parent.parent / "configs" / "dimensions.json").read_text())[
    "meta-llama/Llama-3.2-1B"
]

PEAK = """
import sys
from pathlib import Path
sys.argv[0] = "ishrink"
from optimum_ishrink.api import shrinker
from optimum_ishrink.cli.program import main
from transformers import AutoModelForCausalLM, LlamaForCausalLM
def peak():  # VmHWM is this process's own; ru_maxrss would start at that of the process which forked it
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("VmHWM"))
before = peak()
status = main(sys.argv[1:])
print(status, before, peak(), file=sys.stderr)
"""


def random_weight(shape: tuple[int, ...]) -> torch.Tensor:
    """Return a weight as large as an initial one."""
    return torch.randn(shape, dtype=DTYPES["BF16"]) * 0.02


def make_checkpoint(folder: Path) -> None:
    """Write random weights of the right shapes, shard by shard."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    outgoing = [
        OutgoingTensor(name, "BF16", shape, make=partial(random_weight, shape))
        for name, shape in expected_tensors(parse_config(CONFIG)).items()
    ]
    write_weights(outgoing, folder, max_shard_size=550 * 1000**2)


def cut_time(base: Path, plan: Plan, target: Path) -> float:
    """Time cutting and writing the weights."""
    source = open_source(base)
    outgoing = outgoing_tensors(source.tensors, source.binding, plan)
    return timed(target, lambda: write_weights(outgoing, target))


def copy_time(source: Path, target: Path) -> float:
    """Time plain `cp` of a folder's weights."""
    command = ["cp", *map(str, source.glob("*.safetensors")), str(target)]
    return timed(target, lambda: subprocess.run(command, check=True))


def timed(target: Path, work: Callable[[], object]) -> float:
    """Time work that fills a new folder, from a disk that has nothing left to write; then remove the folder."""
    target.mkdir()
    os.sync()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def main() -> None:
    """Run the benchmark."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
        folder = Path(name)
        make_checkpoint(folder / "base")
        shards = len(list((folder / "base").glob("*.safetensors")))
        size = sum(path.stat().st_size for path in (folder / "base").glob("*.safetensors"))
        print(f"base: {size / 1e9:.2f} GB in {shards} shards")
        arguments = ["shrink", "--model", str(folder / "base"), "--output", str(folder / "out")]
        arguments += ["--num-hidden-layers", "14", "--intermediate-size", "7168"]
        arguments += ["--importance", "l2-norm", "--layer-importance", "l2-norm", "--compensation", "none"]
        arguments += ["--no-evaluate", "--no-benchmark"]
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True)
        status, before, after = map(int, done.stderr.split()[-3:])
        assert status == 0, done.stderr
        print(f"the whole command: {time.perf_counter() - start:.1f} s")
        gib = 2**20
        print(
            f"peak resident memory beyond the imports: {(after - before) / gib:.2f} GiB (imports {before / gib:.2f})"
        )
        times: dict[str, list[float]] = {"cut": [], "cp": []}
        plan = Plan.from_json(read_json(folder / "out" / "ishrink_plan.json"))
        for i in range(ROUNDS + 1):  # the first round fills the file cache and does not count
            cut = cut_time(folder / "base", plan, folder / "again")
            copy = copy_time(folder / "out", folder / "again")
            if i:
                times["cut"].append(cut)
                times["cp"].append(copy)
        cut, copy = (statistics.median(times[what]) for what in ("cut", "cp"))
        print(f"cut and write {cut:.2f} s, cp {copy:.2f} s, ratio {cut / copy:.2f} (n = {ROUNDS}, medians; {times})")


if __name__ == "__main__":
    main()
