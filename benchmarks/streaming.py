"""Memory and time of cutting a checkpoint of Llama-3.2-1B's shape (random weights, 2.5 GB in bfloat16, 5 shards).

    make bench-streaming

It runs `ishrink shrink` in a separate process and prints its peak resident memory beyond the imports, and the time
of cutting and writing against `cp` of the output: five rounds, in turn, medians.

Twice: once units are removed, and once rows of the vocabulary alone, of a model whose head is not tied (3.0 GB). Its
tokenizer is the demo model's, so that 79,104 of its rows have no token; 16,384 more go that have one. Rows are
written and then compared with what was to be written; both times are printed.
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
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from optimum_ishrink.architectures.model_class import expected_tensors, parse_config
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.checkpoint.tensors import DTYPES, OutgoingTensor
from optimum_ishrink.checkpoint.writing import write_weights
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.demo import demo_source
from optimum_ishrink.pipeline.trimming import Trim
from optimum_ishrink.report.plan import Plan
from optimum_ishrink.surgery.cut import outgoing_tensors
from optimum_ishrink.surgery.embeddings import outgoing_embeddings

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


def make_checkpoint(folder: Path, **changes: Any) -> None:
    """Write random weights of the right shapes, shard by shard."""
    folder.mkdir()
    config = {**CONFIG, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    outgoing = [
        OutgoingTensor(name, "BF16", shape, make=partial(random_weight, shape))
        for name, shape in expected_tensors(parse_config(config)).items()
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


def measure_command(base: Path, output: Path, *words: str) -> None:
    """Run the whole command in another process, and print its time and its peak of memory."""
    shards = len(list(base.glob("*.safetensors")))
    size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    print(f"base: {size / 1e9:.2f} GB in {shards} shards; {' '.join(words[::2])}")
    arguments = ["shrink", "--model", str(base), "--output", str(output), *words]
    arguments += ["--compensation", "none", "--no-evaluate", "--no-benchmark"]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    status, before, after = map(int, done.stderr.split()[-3:])
    assert status == 0, done.stderr
    print(f"the whole command: {time.perf_counter() - start:.1f} s")
    gib = 2**20
    print(f"peak resident memory beyond the imports: {(after - before) / gib:.2f} GiB (imports {before / gib:.2f})")


def compare_times(times: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Return the median of each time, measured in turn."""
    found: dict[str, list[float]] = {name: [] for name in times}
    for i in range(ROUNDS + 1):  # the first round fills the file cache and does not count
        for name, measure in times.items():
            seconds = measure()
            if i:
                found[name].append(seconds)
    print(f"n = {ROUNDS}, in turn: {found}")
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def cut_units(folder: Path) -> None:
    """Remove layers and neurons."""
    make_checkpoint(folder / "base")
    shape = ("--num-hidden-layers", "14", "--intermediate-size", "7168")
    measure_command(
        folder / "base", folder / "out", *shape, "--importance", "l2-norm", "--layer-importance", "l2-norm"
    )
    plan = Plan.from_json(read_json(folder / "out" / "ishrink_plan.json"))
    found = compare_times(
        {
            "cut": lambda: cut_time(folder / "base", plan, folder / "again"),
            "cp": lambda: copy_time(folder / "out", folder / "again"),
        }
    )
    print(f"cut and write {found['cut']:.2f} s, cp {found['cp']:.2f} s, ratio {found['cut'] / found['cp']:.2f}")


def cut_rows(folder: Path) -> None:
    """Remove rows of the vocabulary alone."""
    base, text = folder / "base", folder / "text.txt"
    make_checkpoint(base, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
    model = demo_source()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(model.folder / name, base / name)
    shutil.copyfile(Path(__file__).parent.parent / "README.md", text)
    # Text of a file: text that the model samples itself would load the model.
    measure_command(base, folder / "out", "--vocab-size", "32768", "--calibration", str(text))
    plan = Plan.from_json(read_json(folder / "out" / "ishrink_plan.json"))
    assert plan.vocabulary is not None
    start = time.perf_counter()
    trim = Trim(open_source(base), plan.vocabulary.rows)
    print(f"the tokenizer rewritten: {time.perf_counter() - start:.1f} s")

    def written(verify: bool) -> float:
        def work() -> None:
            shutil.copyfile(trim.folder / "config.json", folder / "again" / "config.json")
            if verify:
                trim.write_weights(folder / "again")
            else:
                source = trim.base
                write_weights(outgoing_embeddings(source.tensors, source.binding, trim.rows), folder / "again")

        return timed(folder / "again", work)

    found = compare_times(
        {
            "rows": lambda: written(verify=False),
            "verified": lambda: written(verify=True),
            "cp": lambda: copy_time(folder / "out", folder / "again"),
        }
    )
    print(
        f"write {found['rows']:.2f} s, write and compare {found['verified']:.2f} s, cp {found['cp']:.2f} s, ratios "
        f"{found['rows'] / found['cp']:.2f} and {found['verified'] / found['cp']:.2f}"
    )


def main() -> None:
    """Run the benchmark, or the parts that are named."""
    parts = {"units": cut_units, "rows": cut_rows}
    for part in sys.argv[1:] or parts:
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
            parts[part](Path(name))


if __name__ == "__main__":
    main()
