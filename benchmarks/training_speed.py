"""What the recovery trainer costs beside a bare loop with the same loss, and how busy it keeps the device.

    python benchmarks/training_speed.py MODEL PRUNED TEXT [--rounds 3] [--steps 8]

Each way trains a pruned model for a few steps in a separate process. `student` is a bare loop without a teacher
(cross-entropy), `bare` one with a teacher (KL divergence); `labels` is the trainer without a teacher, `trainer` is it
with one, `compiled` the same with `torch_compile`, and `cached` with the teacher's top k from disk. The ways take
turns in every round; medians are printed, with each way's range, and the share of the device's peak that the median
reached: of a plain product of large matrices in the same dtype, measured in the same process.

`sampling` is how fast the base samples text. `profile` is one micro-batch of the trainer with a teacher: how many
operations Python launches for it, with few tokens and with many, and the share of the time that Python itself takes.
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
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.checkpoint.loading import load_model, load_tokenizer
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.core.device import resolve_device, resolve_dtype
from optimum_ishrink.core.matmul_rate import matmul_rate
from optimum_ishrink.core.table import markdown_table
from optimum_ishrink.modeling.compiled_layers import compiled_layers
from optimum_ishrink.recovery.device_use import training_operations
from optimum_ishrink.recovery.student import Student, count_tokens
from optimum_ishrink.recovery.teacher import LiveTeacher
from optimum_ishrink.recovery.teacher_choice import choose_teacher
from optimum_ishrink.recovery.teacher_models import layer_names
from optimum_ishrink.recovery.trainable import add_lora, keep_autocast_inputs, trained_parameters
from optimum_ishrink.recovery.training import train
from optimum_ishrink.recovery.training_text import RecoveryText
from optimum_ishrink.text.sampling import sample_text
from optimum_ishrink.text.sources import TextSource
from optimum_ishrink.text.windows import token_windows

LENGTH, BATCH, MICRO, HELD_OUT, TOP_K = 256, 8, 4, 2, 64
SAMPLED, SAMPLED_LENGTH = 64, 32
FEW, MANY = (2, 32), (2, 256)
"""Windows and tokens of the two micro-batches that are profiled."""

WAYS = ("student", "bare", "labels", "trainer", "compiled", "cached")
TEACHES = ("bare", "trainer", "compiled")


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


def trainer_speed(args: argparse.Namespace, model: Any, teacher: Any, ids: torch.Tensor) -> float:
    """Train with the trainer, and return tokens per second."""
    changes: dict[str, dict[str, Any]] = {"cached": {"recovery_top_k": TOP_K}, "labels": {"recovery": "ce"}}
    how = settings(**changes.get(args.way, {}))
    text = RecoveryText(ids, ids, HELD_OUT, torch.zeros(len(ids), dtype=torch.int64))
    with tempfile.TemporaryDirectory(prefix="recovery-") as name, ExitStack() as stack:
        if args.way == "compiled":
            layers = layer_names(open_source(args.pruned)), layer_names(open_source(args.model))
            warm = load_model(Path(args.pruned), model.dtype, model.device)
            for each, names in ((model, layers[0]), (warm, layers[0]), (teacher, layers[1])):
                stack.enter_context(compiled_layers(each, names))
            # The compilation, which a longer training has once as well.
            short = RecoveryText(ids[-BATCH - HELD_OUT :], ids[-BATCH - HELD_OUT :], HELD_OUT, text.kinds)
            train(warm, LiveTeacher(teacher), short, how, Path(name) / "warm", layers=[], micro=MICRO)
            del warm
        cache = Path(name) / "cache" if args.way == "cached" else None
        learnt = choose_teacher(
            lambda: () if teacher is None else (teacher,), how, text, cache, MICRO, device=model.device
        )
        found = train(model, learnt, text, how, Path(name) / "work", layers=[], micro=MICRO)
    return found.record.tokens_per_second


def one_way(args: argparse.Namespace) -> None:
    """Train one way and print its speed, its share of the peak, and the peak memory of this process."""
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
        speed = trainer_speed(args, model, teacher, ids)
    trained, source = trained_parameters(model), open_source(args.pruned)
    operations = training_operations(
        settings(recovery_length=LENGTH),
        source,
        [open_source(args.model)] if args.way in TEACHES else [],
        trained,
        layer_names(source),
        sum(parameter.numel() for parameter in trained.values()),
    )
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak_bytes = torch.cuda.max_memory_allocated()
    share = operations * speed / matmul_rate(device, dtype)
    print(json.dumps({"tokens_per_second": speed, "peak_bytes": peak_bytes, "share": share}))


def sampling(args: argparse.Namespace) -> None:
    """Sample text from the base, and print how fast."""
    device = resolve_device("auto")
    model = load_model(Path(args.model), resolve_dtype("auto", device), device)
    tokenizer = load_tokenizer(Path(args.model))
    began = time.perf_counter()
    sample_text(model, tokenizer, SAMPLED_LENGTH, SAMPLED, seed=0)
    print(json.dumps({"tokens_per_second": SAMPLED * SAMPLED_LENGTH / (time.perf_counter() - began)}))


def profiled(args: argparse.Namespace) -> None:
    """Profile a micro-batch of the trainer with few tokens and with many, and print what Python launched."""
    device = resolve_device("auto")
    dtype = resolve_dtype("auto", device)
    model, teacher = (load_model(Path(name), dtype, device) for name in (args.pruned, args.model))
    add_lora(model, settings())
    keep_autocast_inputs(model)
    student = Student(model, settings().terms, LiveTeacher(teacher), autocast=dtype, chunk=2**25).train()
    found = []
    for windows, length in (FEW, FEW, MANY):  # the first time warms up
        ids = torch.randint(10, 40_000, (windows, length), device=device)
        counts = count_tokens(ids.cpu()).float()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            began = time.perf_counter()
            student(ids, ids, torch.arange(windows), counts)[0].backward()
            seconds = time.perf_counter() - began
        student.zero_grad()
        events = [event for event in profiler.events() or () if event.cpu_parent is None]
        inside = sum(event.cpu_time_total for event in events) / 1e6
        found.append({"tokens": windows * length, "operations": len(events), "python": max(0.0, 1 - inside / seconds)})
    print(json.dumps(found[1:]))


def run(args: argparse.Namespace, way: str) -> Any:
    """Run one way in a separate process, and return what it prints."""
    command = [sys.executable, __file__, args.model, args.pruned, args.text, "--steps", str(args.steps)]
    done = subprocess.run([*command, "--way", way], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def compare(args: argparse.Namespace) -> None:
    """Train every way in turn, each time in a separate process, and print tables."""
    ways = args.ways or WAYS
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way in ways:
            found[way].append(run(args, way))
    rows = []
    for way, results in found.items():
        speeds = [result["tokens_per_second"] for result in results]
        median = statistics.median(speeds)
        bare = statistics.median(result["tokens_per_second"] for result in found.get("bare", results))
        share = statistics.median(result["share"] for result in results)
        memory = statistics.median(result["peak_bytes"] for result in results)
        rows.append(
            (
                way,
                f"{median:.0f} [{min(speeds):.0f}, {max(speeds):.0f}]",
                f"{median / bare:.2f}" if "bare" in found else "",
                f"{share:.0%}",
                f"{memory / 1e6:.0f}",
            )
        )
    print(markdown_table(("way", "tokens/s [range]", "over bare", "of the peak", "peak memory, MB"), rows))
    drawn = [run(args, "sampling")["tokens_per_second"] for _ in range(args.rounds)]
    print(f"\nsampling, {SAMPLED} windows of {SAMPLED_LENGTH}: {statistics.median(drawn):.0f} tokens/s")
    print("\nOne micro-batch of the trainer with a teacher:\n")
    header = ("tokens", "operations that Python launches", "share of the time in Python")
    parts = run(args, "profile")
    print(markdown_table(header, [(str(p["tokens"]), f"{p['operations']:,}", f"{p['python']:.0%}") for p in parts]))
    if not torch.cuda.is_available():
        print("\nno GPU here: not measured on one")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the base, which is the teacher")
    parser.add_argument("pruned")
    parser.add_argument("text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="some ways alone")
    parser.add_argument("--way", choices=(*WAYS, "sampling", "profile"), help="one way alone, in this process")
    args = parser.parse_args()
    {None: compare, "sampling": sampling, "profile": profiled}.get(args.way, one_way)(args)


if __name__ == "__main__":
    main()
