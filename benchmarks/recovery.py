"""Labels against self-distillation, and what the trainer costs.

    python benchmarks/recovery.py experiment MODEL DATA_FOLDER --output table.md
    python benchmarks/recovery.py speed MODEL PRUNED TEXT

`experiment` prunes the MLPs of a model by their L2 norm at 10 to 50 %, and recovers each pruned model twice: with
cross-entropy on the answers (L2PFT) and with the KL divergence to the unpruned model (L2PSD), on the same windows for
the same steps. It writes test accuracy and the divergence from the base on other text as a Markdown table. The data
folder holds openbookqa and arc_easy as .train.jsonl and .test.jsonl. After arXiv:2505.18166.

`speed` trains a pruned model for a few steps, in a process of its own: by the trainer, the trainer with the teacher's
top k from disk, and by a bare loop with the same loss; and prints tokens per second and each process's peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from optimum_ishrink import IShrinkConfig, IShrinker
from optimum_ishrink.cli import main as ishrink
from optimum_ishrink.compute import resolve_device, resolve_dtype
from optimum_ishrink.data import TextSource, token_windows
from optimum_ishrink.evaluation import evaluate_tasks, open_tasks, text_measurements
from optimum_ishrink.recovery.run import choose_teacher, train
from optimum_ishrink.recovery.text import RecoveryText
from optimum_ishrink.recovery.trained import add_lora, keep_autocast_inputs
from optimum_ishrink.source import load_model, load_tokenizer
from optimum_ishrink.tables import markdown_table

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)
TASKS = ("openbookqa", "arc_easy")
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""


def write_tasks(data: Path, folder: Path, questions: int | None) -> None:
    """Write lm-eval tasks for the test files, and as many of their questions as are wanted."""
    for name in TASKS:
        rows = (data / f"{name}.test.jsonl").read_text(encoding="utf-8").splitlines()[:questions]
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=folder / f"{name}.jsonl"), encoding="utf-8")


def measure(folder: Path | None, base: Any, tokenizer: Any, tasks: Path, windows: torch.Tensor) -> list[str]:
    """Return test accuracies and the divergence from the base on other text, as they stand in the table."""
    model = base if folder is None else load_model(folder, base.dtype, base.device)
    found = evaluate_tasks(model, tokenizer, TASKS, open_tasks(TASKS, str(tasks)), batch_size=16)
    accuracy = {m.dataset: f"{m.value:.3f} ± {m.stderr:.3f} (n={m.n})" for m in found if m.metric == "acc"}
    _, quality = text_measurements(model, base, windows, "Python reference topics", {})
    (divergence,) = [m for m in quality if m.metric == "kl_divergence"]
    return [*(accuracy[name] for name in TASKS), f"{divergence.value:.3f} ± {divergence.stderr:.3f}"]


def experiment(args: argparse.Namespace) -> None:
    """Run the experiment and write its table."""
    data = Path(args.data)
    shrinker = IShrinker.from_pretrained(args.model)
    device = resolve_device("auto")
    base = shrinker.source.load_model(resolve_dtype("auto", device), device)
    tokenizer = shrinker.source.load_tokenizer()
    width = shrinker.source.binding.shape["intermediate_size"]
    topics = TextSource("pydoc").documents()
    windows = token_windows(topics, tokenizer, 512, 32, seed=0, label="topics")
    rows = []
    with tempfile.TemporaryDirectory(prefix="recovery-") as name:
        work = Path(name)
        write_tasks(data, work, args.questions)
        rows.append(("0 %", "the base", *measure(None, base, tokenizer, work, windows)))
        for share in SHARES:
            cut = work / f"cut-{share}"
            shrinker.shrink(
                IShrinkConfig(
                    intermediate_size=round(width * (1 - share) / 32) * 32,
                    importance="l2-norm",
                    compensation="none",
                    evaluate=False,
                    benchmark=False,
                ),
                save_directory=cut,
            )
            folders = {"cut": cut}
            for loss in ("ce", "kl"):
                folders[loss] = work / f"{loss}-{share}"
                status = ishrink(
                    [
                        *("recover", "--model", str(cut), "--teacher", args.model, "--output", str(folders[loss])),
                        *("--recovery", loss, "--recovery-labels", "answers", "--recovery-tokens", str(args.tokens)),
                        *("--recovery-data", ",".join(str(data / f"{task}.train.jsonl") for task in TASKS)),
                        *("--no-evaluate", "--no-benchmark"),
                    ]
                )
                if status:
                    raise SystemExit(status)
            for what, folder in folders.items():
                rows.append((f"{share:.0%}", what, *measure(folder, base, tokenizer, work, windows)))
                print(*rows[-1], sep=" | ", flush=True)
    header = ("MLP cut", "recovered with", *(f"{name}, accuracy" for name in TASKS), "KL to the base, other text")
    Path(args.output).write_text(markdown_table(header, rows) + "\n", encoding="utf-8")


# Speed and memory.

LENGTH, BATCH, MICRO, HELD_OUT, TOP_K = 256, 8, 4, 2, 64
WAYS = ("student", "bare", "trainer", "cached")


def settings(**changes: Any) -> Any:
    """Return the default settings of a recovery with some values changed."""
    config = IShrinkConfig(recovery="kl", recovery_batch_size=BATCH, batch_size=MICRO, recovery_save_steps=10**6)
    return config.replace(**changes).recovery_settings


def bare_loop(model: Any, teacher: Any, windows: torch.Tensor, steps: int) -> float:
    """Train as a script of twenty lines would, and return tokens per second. Without a teacher, with cross-entropy."""
    add_lora(model, settings().lora, seed=0)
    keep_autocast_inputs(model)
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-4, weight_decay=0.0)
    began = time.perf_counter()
    for step in range(steps):
        for part in windows[step * BATCH : (step + 1) * BATCH].split(MICRO):
            ids = part.to(model.device)
            with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=model.dtype == torch.bfloat16):
                logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
                if teacher is None:
                    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
                else:
                    with torch.no_grad():
                        wanted = teacher(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
                    loss = (wanted.exp() * (wanted - logits.log_softmax(-1))).sum(-1).mean()
            (loss * MICRO / BATCH).backward()
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
    teacher = None if args.way == "student" else load_model(Path(args.model), dtype, device)
    if args.way in ("student", "bare"):
        speed = bare_loop(model, teacher, ids, steps)
    else:
        text = RecoveryText(ids, ids, HELD_OUT)
        with tempfile.TemporaryDirectory(prefix="recovery-") as name:
            how = settings(recovery_top_k=TOP_K) if args.way == "cached" else settings()
            cache = Path(name) / "cache" if args.way == "cached" else None
            learnt = choose_teacher(teacher, how, text, cache, MICRO)
            found = train(model, learnt, text, how, Path(name) / "work", layers=[], micro=MICRO)
        speed = found.facts["tokens_per_second"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    print(json.dumps({"tokens_per_second": speed, "peak_bytes": peak}))


def speed(args: argparse.Namespace) -> None:
    """Train every way, each in a process of its own, and print a table."""
    rows = []
    for way in WAYS:
        command = [sys.executable, __file__, "speed", args.model, args.pruned, args.text, "--steps", str(args.steps)]
        done = subprocess.run([*command, "--way", way], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append((way, f"{found['tokens_per_second']:.0f}", f"{found['peak_bytes'] / 1e6:.0f}"))
    print(markdown_table(("way", "tokens/s", "peak memory, MB"), rows))


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    parts = verbs.add_parser("experiment")
    parts.add_argument("model")
    parts.add_argument("data")
    parts.add_argument("--output", default="recovery-table.md")
    parts.add_argument("--tokens", type=int, default=120_000)
    parts.add_argument("--questions", type=int, help="questions of each test file (default: all)")
    parts.set_defaults(run=experiment)
    parts = verbs.add_parser("speed")
    parts.add_argument("model")
    parts.add_argument("pruned")
    parts.add_argument("text")
    parts.add_argument("--steps", type=int, default=12)
    parts.add_argument("--way", choices=WAYS)
    parts.set_defaults(run=speed)
    args = parser.parse_args()
    run = one_way if getattr(args, "way", None) else args.run
    run(args)


if __name__ == "__main__":
    main()
