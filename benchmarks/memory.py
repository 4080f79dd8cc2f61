"""Peak memory of scoring, cutting and repairing a model of Llama-3.2-1B's shape (random weights, bfloat16).

    python benchmarks/memory.py [--tokens 65536] [--layers 16]

It prunes a quarter of the MLP neurons by Fisher information and repairs the rest, in a separate process, and prints
that process's peak. Fewer layers take less time; the weights of those that are left out are added again in the line
that is printed, the activations that scoring keeps for them are not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from streaming import CONFIG, make_checkpoint

CHILD = """
import sys, time, torch
from pathlib import Path
from optimum_ishrink import IShrinkConfig
from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.pipeline.cutting import check_cut, repair_cut, score_and_plan, write_cut
from optimum_ishrink.pipeline.job import Job
folder, tokens, width = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
source = open_source(folder / "base")
config = IShrinkConfig(intermediate_size=width, importance="fisher", compensation="ridge", dtype="bfloat16",
                       evaluate=False, benchmark=False, score_cache=False, importance_samples=8)
job = Job(Session(source, config), config, folder / "out")
windows = torch.randint(0, source.config.vocab_size, (tokens // 256, 256), generator=torch.Generator().manual_seed(0))
job.calibration.__dict__["windows"] = windows
start = time.perf_counter()
check_cut(job)
score_and_plan(job)
scored = time.perf_counter() - start
print("after scoring", peak(), scored, file=sys.stderr)
(folder / "out").mkdir()
write_cut(job)
repair_cut(job)
print(time.perf_counter() - start, peak(), file=sys.stderr)
"""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"])
    args = parser.parse_args()
    left_out = CONFIG["num_hidden_layers"] - args.layers
    CONFIG["num_hidden_layers"] = args.layers
    width = CONFIG["intermediate_size"] * 3 // 4
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
        make_checkpoint(Path(name) / "base")
        command = [sys.executable, "-c", CHILD, name, str(args.tokens), str(width)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True)
        seconds, peak = (float(value) for value in done.stderr.split()[-2:])
        index = json.loads((Path(name) / "base" / "config.json").read_text())
        hidden, inner = index["hidden_size"], index["intermediate_size"]
        heads = index["head_dim"] * (index["num_attention_heads"] + index["num_key_value_heads"])
        layer = 2 * (3 * hidden * inner + 2 * hidden * heads)  # bytes in bfloat16, but for the norms
        peak = (peak * 2**10 + left_out * layer) / 2**30
        print(f"{args.tokens:,} tokens, {args.layers} layers: peak {peak:.2f} GiB, of which", end=" ")
        print(f"{left_out * layer / 2**30:.2f} GiB stand for {left_out} layers that were left out; {seconds:.0f} s")


if __name__ == "__main__":
    main()
