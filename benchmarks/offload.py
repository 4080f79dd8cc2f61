"""Peak memory and time of a shrink whose model is read from disk layer by layer, against one in memory.

    python -m benchmarks.offload --shape llama-3.2-1b --offload never,always --text notes.txt --tokenizer DIR
    python -m benchmarks.offload --shape llama-3.1-8b --offload always --text notes.txt --tokenizer DIR
    python -m benchmarks.offload --layers 2 --cut "--num-key-value-heads 4 --intermediate-size 7680" ...
    python -m benchmarks.offload --shape llama-3.2-1b --offload always --kills 20 --text notes.txt --tokenizer DIR

Each run is `ishrink shrink --target params=-15%` on 4,096 tokens of the text, with the default criteria and
compensation, without evaluation and timing, in a process of its own. The vocabulary stays: the tokenizer that is
written beside the weights has fewer tokens than they have rows, and those rows alone would go. The weights are random,
bfloat16, written to disk tensor by tensor; only the shape is that of the named model. Peak memory is that of the
process (`ru_maxrss`), in which the pages that the kernel caches of files do not count. Beside the time on the clock is
that of the processor, which other programs disturb less. One line of JSON is printed for each run. With `--kills`
the last run is done once more, and its process is killed so many times at random moments; the result has to have the
same bytes, and what its processes took together is printed.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from optimum_ishrink.architectures.model_class import expected_tensors
from optimum_ishrink.checkpoint.tensors import OutgoingTensor
from optimum_ishrink.checkpoint.writing import write_weights

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "vocab_size": 49_152,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128_256,
        "tie_word_embeddings": False,
    },
}
CUT = "--target params=-15% --prune intermediate_size"
SAMPLES, LENGTH = 16, 256
"""Windows of calibration text and their tokens: 4,096 in all."""


def make_checkpoint(folder: Path, shape: dict[str, Any], tokenizer: Path) -> None:
    """Write a checkpoint of random weights.

    Args:
        folder: A new folder.
        shape: Its sizes.
        tokenizer: A folder with tokenizer files.
    """
    folder.mkdir()
    common = {"max_position_embeddings": 8192, "bos_token_id": 1, "eos_token_id": 2, "dtype": "bfloat16"}
    config = AutoConfig.for_model("llama", **shape, **common)
    raw = {**config.to_dict(), "model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(raw, indent=2))
    for path in tokenizer.glob("*token*"):
        shutil.copyfile(path, folder / path.name)
    for name in ("vocab.json", "merges.txt"):
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)

    def values(number: int, sizes: tuple[int, ...]) -> torch.Tensor:
        if len(sizes) == 1:
            return torch.ones(sizes, dtype=torch.bfloat16)
        generator = torch.Generator().manual_seed(number)
        made = torch.empty(sizes, dtype=torch.bfloat16)
        return made.uniform_(-0.03, 0.03, generator=generator)

    outgoing = [
        OutgoingTensor(name, "BF16", tuple(sizes), make=partial(values, number, tuple(sizes)))
        for number, (name, sizes) in enumerate(expected_tensors(config).items())
    ]
    write_weights(outgoing, folder)


def command(folder: Path, offload: str, text: Path, output: Path, cut: list[str]) -> list[str]:
    """Return the command that shrinks a checkpoint.

    Args:
        folder: The checkpoint.
        offload: `never` or `always`.
        text: The calibration text.
        output: The output folder.
        cut: Arguments that say what is cut.
    """
    words = [sys.executable, "-m", "optimum_ishrink", "shrink", "--model", str(folder), *cut]
    words += ["--calibration", str(text), "--calibration-samples", str(SAMPLES), "--calibration-length", str(LENGTH)]
    return [
        *words,
        "--no-evaluate",
        "--no-benchmark",
        "--no-score-cache",
        "--offload",
        offload,
        "--output",
        str(output),
    ]


def run_killed(words: list[str], output: Path, undisturbed: Path, kills: int, seconds: float) -> dict[str, Any]:
    """Run a command whose process is killed at random moments, and compare its result.

    Args:
        words: The command.
        output: Its output folder.
        undisturbed: That of the same command, which was not killed.
        kills: How many times, at most: it may be done before.
        seconds: How long it takes undisturbed.
    """
    chance = random.Random(0)
    start, killed = time.perf_counter(), 0
    while killed < kills and not output.exists():
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            # Ten seconds and more of each life are imports: the last kill is near the end of the work, and not after.
            if process.wait(10 + chance.uniform(0, 1.7 * seconds / kills)):
                raise SystemExit(f"the command failed with status {process.returncode}")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    if not output.exists():
        subprocess.run(words, check=True)
    files = sorted(path.name for path in undisturbed.glob("*.safetensors"))
    same = all(filecmp.cmp(undisturbed / name, output / name, shallow=False) for name in files)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "kills": killed,
        "same_bytes": same and bool(files),
        "seconds": round(time.perf_counter() - start),
        "cpu_seconds": round(used.ru_utime + used.ru_stime),
    }


def run(folder: Path, offload: str, text: Path, output: Path, limit: float | None, cut: list[str]) -> dict[str, Any]:
    """Shrink a checkpoint in a process of its own, and return what it took.

    Args:
        folder: The checkpoint.
        offload: `never` or `always`.
        text: The calibration text.
        output: The output folder.
        limit: Seconds after which the run is stopped; None for no limit.
        cut: Arguments that say what is cut.
    """
    words = command(folder, offload, text, output, cut)
    start = time.perf_counter()
    process = subprocess.Popen(words)
    finished = True
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        finished = False
        process.kill()
        process.wait()
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = used.ru_maxrss * 2**10
    return {
        "offload": offload,
        "finished": finished and process.returncode == 0,
        "seconds": round(seconds),
        "cpu_seconds": round(used.ru_utime + used.ru_stime),
        "peak_gib": round(peak / 2**30, 2),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.2-1b")
    parser.add_argument("--offload", default="never,always", help="runs, comma-separated")
    parser.add_argument("--text", type=Path, required=True, help="calibration text")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer files")
    parser.add_argument("--base", type=Path, help="a checkpoint that is there already, which stays")
    parser.add_argument("--folder", type=Path, help="where to work (default: the folder for temporary files)")
    parser.add_argument("--limit", type=float, help="stop a run after so many seconds, and report its peak until then")
    parser.add_argument("--cut", default=CUT, help=f"what is cut (default: {CUT.replace('%', '%%')})")
    parser.add_argument("--layers", type=int, help="write so many layers, for less time (default: those of the shape)")
    parser.add_argument("--kills", type=int, default=0, help="kill a second run so many times, and compare")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="ishrink-offload-bench-") as name:
        place = Path(name)
        base = args.base or place / "base"
        if args.base is None:
            shape = SHAPES[args.shape]
            depth = args.layers or shape["num_hidden_layers"]
            make_checkpoint(base, {**shape, "num_hidden_layers": depth}, args.tokenizer)
        nbytes = sum(path.stat().st_size for path in base.glob("*.safetensors"))
        for offload in args.offload.split(","):
            cut, began = args.cut.split(), time.perf_counter()
            _in_process(args.shape, nbytes, partial(run, base, offload, args.text, place / offload, args.limit, cut))
            if args.kills:
                seconds, again = time.perf_counter() - began, place / "killed"
                words = command(base, offload, args.text, again, cut)
                _in_process(
                    args.shape, nbytes, partial(run_killed, words, again, place / offload, args.kills, seconds)
                )
                shutil.rmtree(again, ignore_errors=True)
            shutil.rmtree(place / offload, ignore_errors=True)


def _in_process(shape: str, nbytes: int, what: Callable[[], dict[str, Any]]) -> None:
    """Print what a function returns, called in a process of its own: the peak of child processes is one figure."""
    done = os.fork()
    if not done:
        sys.stdout.write(json.dumps({"shape": shape, "gb": round(nbytes / 1e9, 2), **what()}) + "\n")
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(done, 0)


if __name__ == "__main__":
    main()
