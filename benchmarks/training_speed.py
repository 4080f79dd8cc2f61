"""What the recovery trainer costs beside a bare loop with the same loss, in tokens per second and peak memory.

    python benchmarks/training_speed.py MODEL PRUNED TEXT [--rounds 3] [--steps 8]

Each way trains a pruned model for a few steps in a separate process. `student` is a bare loop without a teacher
(cross-entropy), `bare` one with a teacher (KL divergence); `labels` is the trainer without a teacher, `trainer` is it
with one, `cached` with the teacher's top k from disk. The ways take turns in every round; medians are printed, with
each way's range.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.checkpoint.loading import load_model, load_tokenizer
from optimum_ishrink.core.device import resolve_device, resolve_dtype
from optimum_ishrink.core.table import markdown_table
from optimum_ishrink.recovery.teacher_choice import choose_teacher
from optimum_ishrink.recovery.trainable import add_lora, keep_autocast_inputs
from optimum_ishrink.recovery.training import train
from optimum_ishrink.recovery.training_text import RecoveryText
from optimum_ishrink.text.sources import TextSource
from optimum_ishrink.text.windows import token_windows

LENGTH, BATCH, MICRO, HELD_OUT, TOP_K = 256, 8, 4, 2, 64
WAYS = ("student", "bare", "labels", "trainer", "cached")


def settings(**changes: Any) -> IShrinkConfig:
    """Return the default settings of a recovery with some values changed."""
    config = IShrinkConfig(recovery="kl", recovery_batch_size=BATCH, batch_size=MICRO, recovery_save_steps=10**6)
    return config.replace(**changes)


def bare_loop(model: Any, teacher: Any, windows: torch.Tensor, steps: int) -> float:
    """Train as a script of twenty lines would, and return tokens per second. Without a teacher, with cross-entropy."""
    add_lora(model, settings())
    keep_autocast_inputs(model)
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-4, weight_decay=0.0)
    began = time.perf_counter()
    for step in range(steps):
        for part in windows[step * BATCH : (step + 1) * BATCH].split(MICRO):  # type: ignore[no-untyped-call]
            ids = part.to(model.device)
            with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=model.dtype == torch.bfloat16):
                logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
                if teacher is None:
                    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
                else:
                    with torch.no_grad():
                        wanted = teacher(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
                    loss = (wanted.exp() * (wanted - logits.log_softmax(-1))).sum(-1).mean()
            (loss * MICRO / BATCH).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return steps * BATCH * LENGTH / (time.perf_counter() - began)


def one_way(args: argparse.Namespace) -> None:
    """Train one way and print its speed and the peak memory of this process."""
    device = resolve_device("auto")
    dtype = resolve_dtype("auto", device)
    student, steps = Path(args.pruned), args.steps
    documents = TextSource(args.text).documents()
    ids = token_windows(documents, load_tokenizer(student), LENGTH, steps * BATCH + HELD_OUT, seed=0, label=args.text)
    model = load_model(student, dtype, device)
    teacher = None if args.way in ("student", "labels") else load_model(Path(args.model), dtype, device)
    if args.way in ("student", "bare"):
        speed = bare_loop(model, teacher, ids, steps)
    else:
        text = RecoveryText(ids, ids, HELD_OUT, torch.zeros(len(ids), dtype=torch.int64))
        with tempfile.TemporaryDirectory(prefix="recovery-") as name:
            changes: dict[str, dict[str, Any]] = {"cached": {"recovery_top_k": TOP_K}, "labels": {"recovery": "ce"}}
            how = settings(**changes.get(args.way, {}))
            cache = Path(name) / "cache" if args.way == "cached" else None
            learnt = choose_teacher(teacher, how, text, cache, MICRO)
            found = train(model, learnt, text, how, Path(name) / "work", layers=[], micro=MICRO)
        speed = found.record.tokens_per_second
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    print(json.dumps({"tokens_per_second": speed, "peak_bytes": peak}))


def compare(args: argparse.Namespace) -> None:
    """Train every way in turn, each time in a separate process, and print a table."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, args.model, args.pruned, args.text, "--steps", str(args.steps)]
            done = subprocess.run([*command, "--way", way], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for way, results in found.items():
        speeds = [result["tokens_per_second"] for result in results]
        median = statistics.median(speeds)
        bare = statistics.median(result["tokens_per_second"] for result in found["bare"])
        memory = statistics.median(result["peak_bytes"] for result in results)
        rows.append(
            (
                way,
                f"{median:.0f} [{min(speeds):.0f}, {max(speeds):.0f}]",
                f"{median / bare:.2f}",
                f"{memory / 1e6:.0f}",
            )
        )
    print(markdown_table(("way", "tokens/s [range]", "over bare", "peak memory, MB"), rows))


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the base, which is the teacher")
    parser.add_argument("pruned")
    parser.add_argument("text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--way", choices=WAYS, help="one way alone, in this process")
    args = parser.parse_args()
    (one_way if args.way else compare)(args)


if __name__ == "__main__":
    main()
