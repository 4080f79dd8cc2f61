"""What each criterion keeps, with and without compensation, at several ratios: the experiment behind the defaults.

    python benchmarks/quality.py run MODEL DATA --output quality.jsonl [--part width|depth|mixed] [--samples 64]
        [--only ratio=15,10 compensation=ridge importance=fisher,taylor]
    python benchmarks/quality.py table quality.jsonl

MODEL is a folder with SmolLM2-135M-Instruct as safetensors, DATA one with the text files named below. Calibration
reads the `train` files and the model's own words. `chosen on` is the mean KL divergence from the base on further
windows of the train files and on docstrings of Python's standard library: what defaults may be chosen by. The three
texts of `reported` were not looked at before the choice. Rows that are in the output already are not made again.
"""

from __future__ import annotations

import argparse
import ast
import json
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.checkpoint.loading import load_model
from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.evaluation.text_statistics import kl_divergence
from optimum_ishrink.importance.criterion import LAYER_CRITERIA, UNIT_CRITERIA
from optimum_ishrink.pipeline.job import shrink_job
from optimum_ishrink.pipeline.runner import SHRINK
from optimum_ishrink.pipeline.runner import run as run_stages
from optimum_ishrink.text.calibration import Calibration
from optimum_ishrink.text.sources import PYDOC, TextSource
from optimum_ishrink.text.windows import token_windows

CALIBRATION = ("wikitext2.train.txt", "arc_easy.train.jsonl", "openbookqa.train.jsonl")
REPORTED = ("wikitext2.test.txt", "commonsense_qa.validation.jsonl", PYDOC)
WIDTHS = {10: 1280, 15: 1152, 20: 1024, 30: 768}
DEPTHS = {10: 26, 15: 24, 20: 22, 30: 19}
MIXED = {10: (28, 1408), 15: (28, 1280), 20: (27, 1184), 30: (26, 928)}
SLOW = ("logits-mse", "thesis-mix")
"""They run the model once a unit: scored on one window, where others of width have 32 and those of depth 8."""


def cells(part: str) -> Iterator[dict[str, Any]]:
    """Yield what to ask for."""
    for compensation in ("none", "ridge"):
        for ratio in (15, 10, 20, 30):
            common = {"ratio": ratio, "compensation": compensation}
            if part == "width":
                for name in UNIT_CRITERIA.names():
                    how = {"importance": name, "importance_samples": 1 if name in SLOW else 32}
                    yield {**common, "intermediate_size": WIDTHS[ratio], **how}
            if part == "depth":
                ways = [(name, "one-shot") for name in LAYER_CRITERIA.names()]
                for name, way in (*ways, ("block-influence", "contiguous"), ("divergence", "greedy")):
                    shape = {"num_hidden_layers": DEPTHS[ratio], "layer_selection": way}
                    yield {
                        **common,
                        **shape,
                        "layer_importance": name,
                        "importance": "taylor",
                        "importance_samples": 8,
                    }
            if part == "mixed":
                layers, width = MIXED[ratio]
                shape = {"num_hidden_layers": layers, "intermediate_size": width, "layer_selection": "one-shot"}
                for unit, layer in (("fisher", "divergence"), ("fisher", "fisher"), ("fisher", "block-influence")):
                    how = {"importance": unit, "layer_importance": layer, "importance_samples": 32}
                    yield {**common, **shape, **how}


def docstrings() -> list[str]:
    """Return long docstrings of the standard library's top modules."""
    found = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node)
                if text and len(text) > 300:
                    found.append(text)
    return found


class Judge:
    """Compares a model with the base on texts whose base logits are kept."""

    def __init__(self, base: Any, texts: Mapping[str, torch.Tensor]) -> None:
        self.texts = texts
        with torch.no_grad():
            self.base = {name: [base(row[None]).logits[0, :-1] for row in rows] for name, rows in texts.items()}

    @torch.no_grad()
    def __call__(self, model: Any) -> dict[str, dict[str, float]]:
        """Return KL divergence, top-1 agreement and negative log-likelihood on each text."""
        found = {}
        for name, rows in self.texts.items():
            kl, agree, nll = [], [], []
            for row, before in zip(rows, self.base[name], strict=True):
                after = model(row[None]).logits[0, :-1]
                for p, q, label in zip(before.split(128), after.split(128), row[1:].split(128), strict=True):
                    kl.append(kl_divergence(p, q))
                    agree.append((p.argmax(-1) == q.argmax(-1)).float())
                    nll.append(torch.nn.functional.cross_entropy(q.float(), label, reduction="none"))
            values = (torch.cat(part).mean().item() for part in (kl, agree, nll))
            found[name] = dict(zip(("kl", "agreement", "nll"), values, strict=True))
        return found


def run(args: argparse.Namespace) -> None:
    """Make the rows that are not in the output yet."""
    done = [json.loads(line)["asked"] for line in args.output.read_text().splitlines()] if args.output.exists() else []
    source = open_source(args.model)
    tokenizer = source.load_tokenizer()
    texts = {}
    for name in CALIBRATION:
        text = TextSource(str(args.data / name))
        taken = -(-args.samples // 4) * 256
        texts[name] = token_windows(text.documents(), tokenizer, 256, 4, seed=0, label=name, skip=taken)
    texts["docstrings"] = token_windows(docstrings(), tokenizer, 256, 4, seed=0, label="docstrings")
    for name in REPORTED:
        text = TextSource(name if name == PYDOC else str(args.data / name))
        texts["reported " + text.label] = token_windows(text.documents(), tokenizer, 256, 8, seed=0, label=text.label)
    common = {
        "calibration": [*(str(args.data / name) for name in CALIBRATION), "self"],
        "calibration_samples": args.samples,
        "evaluate": False,
        "benchmark": False,
    }
    first = Session(source, IShrinkConfig(**common))
    windows = Calibration(IShrinkConfig(**common), first).windows  # drawn once for all
    judge = Judge(first.model, texts)
    only = dict(word.split("=", 1) for word in args.only)
    for asked in cells(args.part):
        asked = {**asked, "samples": args.samples}
        if asked in done or (
            only and not all(str(asked.get(name)) in words.split(",") for name, words in only.items())
        ):
            continue
        how = {name: value for name, value in asked.items() if name not in ("ratio", "samples")}
        config = IShrinkConfig(**common, **how)
        session = Session(source, config)
        session.loaded = first.model
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            job = shrink_job(session, config, Path(folder) / "cut")
            job.calibration.__dict__["windows"] = windows
            run_stages(SHRINK, job)
            seconds = time.perf_counter() - start
            plan = json.loads((Path(folder) / "cut" / "ishrink_plan.json").read_text())
            found = judge(load_model(Path(folder) / "cut", session.dtype, session.device))
        removed = 1 - plan["new_num_parameters"] / plan["num_parameters"]
        with args.output.open("a") as file:
            file.write(json.dumps({"asked": asked, "removed": removed, "seconds": seconds, "found": found}) + "\n")


def table(args: argparse.Namespace) -> None:
    """Print the rows as Markdown, best first within each ratio."""
    rows = [json.loads(line) for line in args.output.read_text().splitlines()]
    names = [name for name in rows[0]["found"] if name.startswith("reported ")]
    print("| removed | what | criterion | compensation | chosen on |", end="")
    print("".join(f" {name.removeprefix('reported ')} |" for name in names) + " mean KL | agreement | seconds |")
    print("| --- " * (8 + len(names)) + "|")
    for row in rows:
        chosen = [value["kl"] for name, value in row["found"].items() if name not in names]
        row["chosen"] = sum(chosen) / len(chosen)
    for row in sorted(rows, key=lambda row: (row["asked"]["ratio"], row["chosen"])):
        asked, found = row["asked"], row["found"]
        layers, width = asked.get("num_hidden_layers"), asked.get("intermediate_size")
        what = "mixed" if layers and width else f"{layers} layers" if layers else f"{width:,} neurons"
        names_of = [asked["importance"]] if width else []
        names_of += [f"{asked['layer_importance']} ({asked['layer_selection']})"] if layers else []
        kl = [found[name]["kl"] for name in names]
        agreement = sum(found[name]["agreement"] for name in names) / len(names)
        print(f"| {row['removed']:.1%} | {what} | {', '.join(names_of)} | {asked['compensation']} |", end="")
        print(f" {row['chosen']:.3f} |" + "".join(f" {value:.3f} |" for value in kl), end="")
        print(f" {sum(kl) / len(kl):.3f} | {agreement:.1%} | {row['seconds']:.0f} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    making = verbs.add_parser("run")
    making.add_argument("model")
    making.add_argument("data", type=Path)
    making.add_argument("--output", type=Path, required=True)
    making.add_argument("--part", choices=("width", "depth", "mixed"), default="width")
    making.add_argument("--samples", type=int, default=64)
    making.add_argument("--only", nargs="*", default=[], metavar="KEY=A,B", help="such as ratio=15 compensation=ridge")
    making.set_defaults(run=run)
    printing = verbs.add_parser("table")
    printing.add_argument("output", type=Path)
    printing.set_defaults(run=table)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
