"""Ways to recover a pruned model, at an equal budget of tokens.

    python benchmarks/recovery.py methods MODEL --text self,train.txt --output methods.jsonl [--tokens 100000]
    python benchmarks/recovery.py methods-table methods.jsonl

`methods` prunes a model once, by its layers and the width of its MLPs, and recovers it by each loss, with shares of
on-policy text, with an average of the weights and with learning rates by layer; and it prunes and recovers it in turn.
Every row trains on as many tokens of the same text, and has its divergence from the base measured on text that nothing
was calibrated, chosen or trained on.

    python benchmarks/recovery.py run MODEL DATA_FOLDER --output recovery.jsonl [--shares 10,20,30,40,50]
    python benchmarks/recovery.py table recovery.jsonl

Labels against self-distillation, after arXiv:2505.18166.

`run` prunes the MLPs of a model by their L2 norm, and recovers each pruned model twice: with cross-entropy on the
answers (L2PFT) and with the KL divergence to the unpruned model (L2PSD), on the same windows for the same steps. A row
is written as soon as it was measured, and one that is there is not measured again: stopped, the same command resumes.
The data folder holds openbookqa and arc_easy as .train.jsonl and .test.jsonl.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optimum_ishrink import IShrinkConfig, IShrinker
from optimum_ishrink.checkpoint.loading import load_model
from optimum_ishrink.cli.program import main as ishrink
from optimum_ishrink.core.device import resolve_device, resolve_dtype
from optimum_ishrink.core.table import markdown_table
from optimum_ishrink.evaluation.harness import evaluate_tasks, open_tasks
from optimum_ishrink.evaluation.passages import TextWindows
from optimum_ishrink.evaluation.text_quality import text_measurements, window_figures
from optimum_ishrink.text.sources import TextSource
from optimum_ishrink.text.windows import token_windows

TASKS = {"openbookqa": "openbookqa.test.jsonl", "arc_easy": "arc_easy.test.jsonl"}
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
  - metric: acc_norm
"""


def write_tasks(data: Path, folder: Path, questions: int | None, tasks: Mapping[str, str] = TASKS) -> None:
    """Write lm-eval tasks for test files, by the tasks' names, and as many of their questions as are wanted."""
    for name, file in tasks.items():
        rows = (data / file).read_text(encoding="utf-8").splitlines()[:questions]
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=folder / f"{name}.jsonl"), encoding="utf-8")


class Meter:
    """Measures models on the test files, and against the base on other text.

    Args:
        model: Name or folder of the base.
        tasks: Folder of the task files.
        batch_size: Answers scored at once.
    """

    def __init__(self, model: str, tasks: Path, batch_size: int) -> None:
        self.source = IShrinker.from_pretrained(model).source
        device = resolve_device("auto")
        self.base = self.source.load_model(resolve_dtype("auto", device), device)
        self.tokenizer = self.source.load_tokenizer()
        self.tasks = tasks
        self.batch_size = batch_size
        topics = TextSource("pydoc").documents()
        self.windows = token_windows(topics, self.tokenizer, 512, 32, seed=0, label="topics")

    def __call__(self, folder: Path | None) -> dict[str, Any]:
        """Return test accuracies and the divergence from the base on other text, each with standard error and n."""
        model = self.base if folder is None else load_model(folder, self.base.dtype, self.base.device)
        manager = open_tasks(tuple(TASKS), str(self.tasks))
        scores = evaluate_tasks(model, self.tokenizer, tuple(TASKS), manager, batch_size=self.batch_size)
        found = [m for m in scores if m.metric == "acc"]
        _, quality = text_measurements(model, self.base, self.windows, "Python reference topics", {})
        found += [m for m in quality if m.metric == "kl_divergence"]
        return {m.dataset: {"value": m.value, "stderr": m.stderr, "n": m.n} for m in found}


def run(args: argparse.Namespace) -> None:
    """Measure what is not in the output file yet."""
    data, output = Path(args.data), Path(args.output)
    rows = [json.loads(line) for line in output.read_text().splitlines()] if output.is_file() else []
    done = {(row["share"], row["recovery"]) for row in rows}
    work = output.with_suffix(".work")
    work.mkdir(parents=True, exist_ok=True)
    write_tasks(data, work, args.questions)
    meter = Meter(args.model, work, args.batch_size)

    def add(share: int, recovery: str, folder: Path | None) -> None:
        row = {"share": share, "recovery": recovery, "tokens": args.tokens, **meter(folder)}
        with output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    if (0, "base") not in done:
        add(0, "base", None)
    for share in map(int, args.shares.split(",")):
        wanted = [name for name in ("none", "ce", "kl") if (share, name) not in done]
        cut = work / f"cut-{share}"
        if wanted and not cut.is_dir():
            prune(args.model, meter, share, cut)
        for name in wanted:
            folder = cut if name == "none" else work / f"{name}-{share}"
            if name != "none":
                recover(args, data, name, cut, folder)
            add(share, name, folder)
        shutil.rmtree(cut, ignore_errors=True)
        for name in ("ce", "kl"):
            shutil.rmtree(work / f"{name}-{share}", ignore_errors=True)


def prune(model: str, meter: Meter, share: int, folder: Path) -> None:
    """Prune a share of the MLP's neurons, in percent, by their L2 norm; nothing is repaired."""
    width = meter.source.binding.shape["intermediate_size"]
    config = IShrinkConfig(
        intermediate_size=round(width * (1 - share / 100) / 32) * 32,
        importance="l2-norm",
        compensation="none",
        evaluate=False,
        benchmark=False,
    )
    IShrinker.from_pretrained(model).shrink(config, save_directory=folder)


def recover(args: argparse.Namespace, data: Path, loss: str, cut: Path, folder: Path) -> None:
    """Recover a pruned model; a run that was stopped resumes."""
    status = ishrink(
        [
            *("recover", "--model", str(cut), "--teacher", args.model, "--output", str(folder), "--overwrite"),
            *("--recovery", loss, "--recovery-labels", "answers", "--recovery-tokens", str(args.tokens)),
            *("--recovery-data", ",".join(str(data / f"{task}.train.jsonl") for task in TASKS)),
            *(("--recovery-learning-rate", str(args.learning_rate)) if args.learning_rate else ()),
            *("--no-evaluate", "--no-benchmark"),
        ]
    )
    if status:
        raise SystemExit(status)


def table(args: argparse.Namespace) -> None:
    """Print the rows as a Markdown table."""
    rows = [json.loads(line) for line in Path(args.rows).read_text(encoding="utf-8").splitlines()]
    order = ("base", "none", "ce", "kl")
    rows.sort(key=lambda row: (row["share"], order.index(row["recovery"])))
    kinds = [name for name in rows[0] if name not in ("share", "recovery", "tokens")]

    def cell(row: dict[str, Any], kind: str) -> str:
        found = row.get(kind)
        if found is None or (row["recovery"] == "base" and kind not in TASKS):
            return "" if found is None else "0"
        return f"{found['value']:.3f} ± {found['stderr']:.3f}"

    header = ("MLP cut", "recovered with", *(f"{kind}, n={rows[0][kind]['n']}" for kind in kinds))
    print(
        markdown_table(
            header, [(f"{row['share']} %", row["recovery"], *(cell(row, k) for k in kinds)) for row in rows]
        )
    )


KL = {"recovery": "kl"}

METHODS: Mapping[str, Mapping[str, Any]] = {
    "no recovery": {},
    "ce": {"recovery": "ce"},
    "kl": KL,
    "reverse-kl": {"recovery": "reverse-kl"},
    "jsd": {"recovery": "jsd"},
    "skew-kl": {"recovery": "skew-kl"},
    "skew-reverse-kl": {"recovery": "skew-reverse-kl"},
    "kl+hidden:0.1": {"recovery": "kl+hidden:0.1"},
    "kl, on-policy 0.25": {**KL, "recovery_on_policy": 0.25},
    "kl, on-policy 0.5": {**KL, "recovery_on_policy": 0.5},
    "kl, on-policy 1": {**KL, "recovery_on_policy": 1.0},
    "jsd, on-policy 0.5": {"recovery": "jsd", "recovery_on_policy": 0.5},
    "reverse-kl, on-policy 0.5": {"recovery": "reverse-kl", "recovery_on_policy": 0.5},
    "kl, EMA 0.99": {**KL, "recovery_ema": 0.99},
    "kl, layer decay 0.9": {**KL, "recovery_layer_decay": 0.9},
    "kl, all weights": {**KL, "recovery_train": "full"},
    "jsd, all weights": {"recovery": "jsd", "recovery_train": "full"},
    "skew-reverse-kl, all weights": {"recovery": "skew-reverse-kl", "recovery_train": "full"},
    "kl, width then depth": {**KL, "schedule": "width,recover,depth,recover"},
    "kl, two steps": {**KL, "schedule": "2x(cut,recover)"},
}
"""The rows, each with what it adds to the same request. Those with a schedule cut the base themselves; the others
recover one cut, as a schedule of one cut and one recovery would to the bit."""


def compare_methods(args: argparse.Namespace) -> None:
    """Measure the rows that are not in the output file yet."""
    output = Path(args.output)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()] if output.is_file() else []
    done = {row["method"] for row in rows}
    wanted = [name for name in (args.rows.split(";") if args.rows else METHODS) if name not in done]
    if unknown := [name for name in wanted if name not in METHODS]:
        raise SystemExit(f"there is no row {unknown[0]!r}; rows: {'; '.join(METHODS)}")
    work = output.with_suffix(".work")
    work.mkdir(parents=True, exist_ok=True)
    shrinker = IShrinker.from_pretrained(args.model)
    device = resolve_device("auto")
    base = shrinker.source.load_model(resolve_dtype("auto", device), device)
    held_out = TextSource(args.held_out)
    documents = held_out.documents()
    windows = token_windows(documents, shrinker.source.load_tokenizer(), 512, args.windows, seed=0, label="held out")
    config = IShrinkConfig(
        target=args.target,
        prune=("num_hidden_layers", "intermediate_size"),
        calibration=args.text,
        recovery_data=args.text,
        recovery_tokens=args.tokens,
        # What the base samples is the same for all.
        recovery_cache=str(work),
        evaluate=False,
        benchmark=False,
    )
    cut = work / "cut"
    if wanted and not cut.is_dir():
        shrinker.shrink(config, save_directory=cut)
    for name in wanted:
        changes, began, folder = METHODS[name], time.monotonic(), work / f"row-{list(METHODS).index(name)}"
        if not changes:
            folder, recovery = cut, None
        elif "schedule" in changes:
            recovery = shrinker.shrink(config, save_directory=folder, overwrite=True, **changes).report.recovery
        else:
            pruned = IShrinker.from_pretrained(cut)
            found = pruned.recover(config, teacher=args.model, save_directory=folder, overwrite=True, **changes)
            recovery = found.report.recovery
        minutes = (time.monotonic() - began) / 60
        model = load_model(folder, base.dtype, base.device)
        _, figures = window_figures(model, base, TextWindows(windows), held_out.label)
        row: dict[str, Any] = {
            "method": name,
            "tokens": args.tokens,
            "minutes": round(minutes, 1),
            "held_out": held_out.label,
            "loss": None if recovery is None else [recovery.held_out_loss_before, recovery.held_out_loss],
            "divergence": figures.divergence,
            "agreement": figures.agreement,
        }
        with output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        if folder != cut:
            shutil.rmtree(folder)


def methods_table(args: argparse.Namespace) -> None:
    """Print the rows of `methods` as a Markdown table, the nearest to the base first, with differences from `kl`."""
    rows = [json.loads(line) for line in Path(args.rows).read_text(encoding="utf-8").splitlines()]
    usual = next(np.array(row["divergence"]) for row in rows if row["method"] == "kl")
    rows.sort(key=lambda row: float(np.mean(row["divergence"])))

    def losses(row: Mapping[str, Any]) -> str:
        return "" if row["loss"] is None else f"{row['loss'][0]:.4f} to {row['loss'][1]:.4f}"

    def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
        found = np.array(row["divergence"])
        less, agreement = found - usual, float(np.mean(row["agreement"]))
        error = less.std(ddof=1) / len(less) ** 0.5
        difference = f"{less.mean():+.4f} ± {error:.4f}" if less.any() else ""
        return row["method"], f"{found.mean():.4f}", difference, f"{agreement:.4f}", losses(row), f"{row['minutes']}"

    first = rows[0]
    header = (
        f"recovered with, {first['tokens']:,} tokens",
        f"KL on {first['held_out']}, n={len(usual)}",
        "less that of `kl`, window by window",
        "agreement",
        "its own loss on held-out windows",
        "minutes",
    )
    print(markdown_table(header, list(map(cells, rows))))


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    parts = verbs.add_parser("run", help="prune, recover and measure")
    parts.add_argument("model")
    parts.add_argument("data")
    parts.add_argument("--output", default="recovery.jsonl")
    parts.add_argument("--shares", default="10,20,30,40,50", help="percent of the MLP's neurons to prune")
    parts.add_argument("--tokens", type=int, default=120_000, help="tokens to recover on")
    parts.add_argument("--questions", type=int, help="questions of each test file (default: all)")
    parts.add_argument("--learning-rate", type=float, help="peak of it (default: that of `ishrink recover`)")
    parts.add_argument("--batch-size", type=int, default=4, help="answers scored at once (default: 4)")
    parts.set_defaults(run=run)
    parts = verbs.add_parser("table", help="print the rows as Markdown")
    parts.add_argument("rows")
    parts.set_defaults(run=table)
    parts = verbs.add_parser("methods", help="prune once, recover in each way, and measure")
    parts.add_argument("model")
    parts.add_argument("--text", default="self", help="text to calibrate and train on (default: self)")
    parts.add_argument("--held-out", default="pydoc", help="text to measure on (default: Python's reference topics)")
    parts.add_argument("--windows", type=int, default=32, help="windows of it, of 512 tokens (default: 32)")
    parts.add_argument("--target", default="params=-15%", help="how far to prune (default: params=-15%%)")
    parts.add_argument("--tokens", type=int, default=100_000, help="tokens to recover on (default: 100,000)")
    parts.add_argument("--rows", help="only these rows, semicolon-separated")
    parts.add_argument("--output", default="methods.jsonl")
    parts.set_defaults(run=compare_methods)
    parts = verbs.add_parser("methods-table", help="print the rows of methods as Markdown")
    parts.add_argument("rows")
    parts.set_defaults(run=methods_table)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
