"""What lm-eval's multiple-choice tasks cost through this package beside lm-eval's own model, in turn.

    python benchmarks/lm_eval_cost.py MODEL DATA [--questions 100] [--rounds 3] [--batch-size 4]

DATA holds openbookqa and arc_easy as .test.jsonl. Both ways answer the same requests of the same task with the same
loaded model. A batch of lm-eval's is so many sequences, one of this package so many windows of 512 tokens, which hold
more sequences where questions are short. Times are of `lm_eval.simple_evaluate` as a whole, without its bootstrap.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.models.huggingface import HFLM
from recovery import write_tasks

from optimum_ishrink.checkpoint.loading import load_model, load_tokenizer
from optimum_ishrink.core.device import resolve_device, resolve_dtype
from optimum_ishrink.core.table import markdown_table
from optimum_ishrink.evaluation.harness import language_model, open_tasks
from optimum_ishrink.evaluation.timing import in_turn

TASK = "arc_easy"


def one_run(lm: Any, manager: Any) -> tuple[float, dict[str, float]]:
    """Return the seconds that the task takes, and its figures."""
    began = time.perf_counter()
    found = lm_eval.simple_evaluate(lm, tasks=[TASK], task_manager=manager, bootstrap_iters=0, verbosity="ERROR")
    seconds = time.perf_counter() - began
    figures = {name: value for name, value in found["results"][TASK].items() if isinstance(value, float)}
    return seconds, figures


def main() -> None:
    """Parse, time both ways in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    args = parser.parse_args()
    device = resolve_device("auto")
    folder = Path(args.model)
    model, tokenizer = load_model(folder, resolve_dtype("auto", device), device), load_tokenizer(folder)
    ways = {
        "lm-eval alone": HFLM(pretrained=model, tokenizer=tokenizer, batch_size=args.batch_size),
        "through optimum-ishrink": language_model(model, tokenizer, args.batch_size),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="tasks-") as work:
        write_tasks(Path(args.data), Path(work), args.questions)
        manager = open_tasks((TASK,), work)
        for number in range(args.rounds):
            for name in in_turn(ways, number):
                spent, figures[name] = one_run(ways[name], manager)
                seconds[name].append(spent)
                print(f"{name}: {spent:.1f} s {figures[name]}", flush=True)
    plain = statistics.median(seconds["lm-eval alone"])
    rows = [
        (
            name,
            f"{statistics.median(times):.1f} [{min(times):.1f}, {max(times):.1f}]",
            f"{statistics.median(times) / plain:.2f}",
            f"{figures[name]['acc,none']:.3f}",
        )
        for name, times in seconds.items()
    ]
    print(markdown_table(("way", "seconds [range]", "over lm-eval alone", "accuracy"), rows))


if __name__ == "__main__":
    main()
