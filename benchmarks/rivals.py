"""This project against others: at equal parameters and at equal bytes, on text and questions that none of them saw.

    pip install --no-deps --target LIBRARIES optipfair==0.4.2 torch-pruning==1.6.1
    python benchmarks/rivals.py measure MODEL DATA WORK --output rivals.jsonl --libraries LIBRARIES \
        --targets "params=-15%;bytes=80.5MB" [--found FOUND] [--eval-samples 16] [--only NAME ...]
    python benchmarks/rivals.py tasks DATA --output rivals.jsonl [--questions 500] [--only NAME ...]
    python benchmarks/rivals.py times --output rivals.jsonl [--threads 1] [--rounds 7]
    python benchmarks/rivals.py table rivals.jsonl [--short]

MODEL is the base's folder, DATA one with the text files named below, FOUND the output of `ishrink search` with the
same model and targets. Every method gets the same calibration text and writes a checkpoint; each becomes a GGUF file,
at equal parameters in q8_0 and at equal bytes pruned until its q5_0 or q4_0 file fits. Quality is measured with the
values that the file holds. WORK keeps checkpoints and files, and rows that are in the output are not made again:
stopped, the same command resumes. A method that cannot do what is asked gets a row with the reason.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recovery import write_tasks
from rival_methods import METHODS, REFERENCE, Base, Contender
from rival_tables import markdown, short
from stored_values import TEXTS, stored_checkpoint

from optimum_ishrink import IShrinkConfig, IShrinker
from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.core.progress import note
from optimum_ishrink.edge.gguf_file import read_gguf
from optimum_ishrink.edge.gguf_quantizations import GGUF_QUANTIZATIONS
from optimum_ishrink.edge.gguf_tokenizer import find_gguf_tokenizer
from optimum_ishrink.edge.write_gguf import write_gguf
from optimum_ishrink.errors import RequestError
from optimum_ishrink.evaluation.harness import evaluate_tasks, open_tasks
from optimum_ishrink.planning.limits import PARAMS, Limit, parse_families
from optimum_ishrink.report.search import SearchRecord
from optimum_ishrink.search.llama_cpp_runtime import time_files
from optimum_ishrink.search.turns import Workload

PLAIN = ("q8_0", "q5_0", "q4_0")
"""Types of the unpruned model."""

FITTING = ("q4_0", "q5_0")
"""Types that a pruned model may have at equal bytes; in q8_0 it would have to lose far more."""

OWN = ("ishrink", "thesis")
"""Methods of this project: an error that is not a refusal is a mistake of its own, and ends the run."""

METRICS = ("bits_per_byte", "kl_divergence", "tokens_per_byte")
TASKS = {
    "arc_easy": "arc_easy.test.jsonl",
    "openbookqa": "openbookqa.test.jsonl",
    "commonsense_qa": "commonsense_qa.validation.jsonl",
}


def contenders(targets: Sequence[Limit]) -> Iterator[Contender]:
    """Yield the rows of a comparison.

    Args:
        targets: The budgets.
    """
    yield from (Contender("plain", "", name) for name in PLAIN)
    for limit in targets:
        equal_bytes = limit.metric != PARAMS
        if equal_bytes:
            yield Contender("search", limit.text, "mixed")
        for name in FITTING if equal_bytes else (REFERENCE,):
            yield from (Contender(method, limit.text, name) for method in METHODS)


def read(output: Path) -> list[dict[str, Any]]:
    """Return the rows of an output; none where it does not exist yet.

    Args:
        output: The file.
    """
    return [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


def add(output: Path, row: Mapping[str, Any]) -> None:
    """Append a row.

    Args:
        output: The file.
        row: The row.
    """
    with output.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def missing(rows: Sequence[Mapping[str, Any]], kind: str, **key: str) -> bool:
    """Return whether there is no row of a kind yet.

    Args:
        rows: The rows.
        kind: The kind.
        **key: What the row says.
    """
    return not any(row["kind"] == kind and all(row[name] == value for name, value in key.items()) for row in rows)


def found_by_search(folder: Path | None, target: str) -> tuple[Path | None, Path]:
    """Return the checkpoint, None for the base's own, and the file that a search found for a target.

    Args:
        folder: The search's output folder.
        target: The target.

    Raises:
        RequestError: There is none.
    """
    if folder is None:
        raise RequestError("not measured yet: name the output of ishrink search with --found")
    for answer in SearchRecord.read(folder).answers:
        if answer.target == target and answer.file is not None:
            return (None if answer.folder is None else folder / answer.folder), folder / answer.file
    raise RequestError(f"the search in {folder.name} has no answer to {target}")


def make(base: Base, contender: Contender, targets: Mapping[str, Limit], found: Path | None) -> tuple[Path, Path]:
    """Return the checkpoint and the file of a contender, made where they are not there yet.

    Args:
        base: The base.
        contender: The contender.
        targets: The budgets by their texts.
        found: A search's output folder.

    Raises:
        RequestError: The method cannot do it, with the reason.
    """
    if contender.method == "search":
        place, file = found_by_search(found, contender.target)
        return place or base.source.folder, file
    name = base.source.display_name.split("/")[-1]
    try:
        checkpoint = _checkpoint(base, contender, targets, name) if contender.target else base.source.folder
    except RequestError:
        raise
    except Exception as error:  # another library's can be of any kind
        if contender.method in OWN:
            raise
        raise RequestError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    place = checkpoint.parent if contender.target else base.work / "plain"
    place.mkdir(exist_ok=True)
    file = place / f"{name}-{contender.quantization}.gguf"
    if not file.is_file():
        source = open_source(checkpoint)
        tokenizer = find_gguf_tokenizer(source.folder, source.load_tokenizer(), None)
        quantization = GGUF_QUANTIZATIONS[contender.quantization]
        write_gguf(source.folder, quantization, file, name=source.display_name, tokenizer=tokenizer)
    return checkpoint, file


def _checkpoint(base: Base, contender: Contender, targets: Mapping[str, Limit], name: str) -> Path:
    """Return the checkpoint, one for all budgets that take the same size."""
    method = METHODS[contender.method]
    size = method.size(base, targets[contender.target], contender.quantization)
    folder = base.work / f"{contender.method} {size}" / name
    if not folder.is_dir():
        folder.parent.mkdir(exist_ok=True)
        method.make(base, size, folder)
    return folder


def measure(args: argparse.Namespace) -> None:
    """Make and measure what is not in the output yet."""
    args.work.mkdir(parents=True, exist_ok=True)
    base = Base(args.model, args.data, args.work, args.libraries)
    limits = [limit for family in parse_families(args.targets) for limit in family]
    for contender in contenders(limits):
        key = {"model": base.source.display_name, "name": contender.name}
        asked = not args.only or contender.name in args.only
        if not asked or not missing(read(args.output), "quality", **key):
            continue
        row: dict[str, Any] = {"kind": "quality", **key, **vars(contender)}
        try:
            checkpoint, file = make(base, contender, {limit.text: limit for limit in limits}, args.found)
        except RequestError as error:
            note(f"{contender.name}: {error}")
            if contender.method != "search" or args.found is not None:  # a search may come later
                add(args.output, {**row, "error": str(error)})
            continue
        header = read_gguf(file)
        row |= {"checkpoint": str(checkpoint), "file": str(file), "params": header.params, "bytes": header.nbytes}
        row |= {"shape": dict(open_source(checkpoint).binding.shape), "unpruned": base.source.binding.num_parameters()}
        with tempfile.TemporaryDirectory(dir=args.work) as folder:
            report = IShrinker.from_pretrained(
                stored_checkpoint(open_source(checkpoint), file, Path(folder) / "stored")
            ).evaluate(
                base=args.model,
                eval_text=[name if name == "pydoc" else str(args.data / name) for name in TEXTS],
                eval_samples=args.eval_samples,
                eval_length=args.eval_length,
                sample_new_tokens=0,
                result_cache=False,
            )
        assert report.base is not None
        row["figures"] = _figures(report.shrunk.quality)
        row["base"] = _figures(report.base.quality)
        add(args.output, row)
        print(markdown([row]), flush=True)


def _figures(measurements: Any) -> dict[str, dict[str, tuple[float, float | None, int]]]:
    found: dict[str, dict[str, tuple[float, float | None, int]]] = {}
    for each in measurements:
        if each.metric in METRICS:
            found.setdefault(each.metric, {})[each.dataset] = (each.value, each.stderr, each.n)
    return found


def tasks(args: argparse.Namespace) -> None:
    """Put the questions to every model that was measured, where that is not in the output yet."""
    session_config = IShrinkConfig()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_tasks(args.data, folder, args.questions, TASKS)
        manager = open_tasks(tuple(TASKS), str(folder))
        for row in read(args.output):
            if row["kind"] != "quality" or "error" in row or (args.only and row["name"] not in args.only):
                continue
            key = {"model": row["model"], "name": row["name"]}
            asked = [task for task in TASKS if missing(read(args.output), "task", task=task, **key)]
            if not asked:
                continue
            source = open_source(
                stored_checkpoint(open_source(row["checkpoint"]), Path(row["file"]), folder / row["name"])
            )
            model = Session(source, session_config).model
            for task in asked:
                scores = evaluate_tasks(model, source.load_tokenizer(), [task], manager, num_fewshot=0, batch_size=4)
                (score,) = (each for each in scores if each.metric == "acc_norm")
                found = {"value": score.value, "stderr": score.stderr, "n": score.n}
                add(args.output, {"kind": "task", **key, "task": task, **found})
                print(row["name"], task, found, flush=True)


def times(args: argparse.Namespace) -> None:
    """Time all files of each model in turn; what was timed before is replaced in the table."""
    rows = [row for row in read(args.output) if row["kind"] == "quality" and "error" not in row]
    for model in dict.fromkeys(row["model"] for row in rows):
        files = {row["name"]: Path(row["file"]) for row in rows if row["model"] == model}
        vocabulary = min(read_gguf(file).vocabulary for file in files.values())
        workload = Workload(prompt=args.prompt_length, context=1024)
        found, build = time_files(files, workload, threads=args.threads, vocabulary=vocabulary, rounds=args.rounds)
        how = {"threads": args.threads, "rounds": args.rounds, "build": build}
        add(args.output, {"kind": "times", "model": model, **how, "figures": found})


def table(args: argparse.Namespace) -> None:
    """Print the tables."""
    print(short(read(args.output)) if args.short else markdown(read(args.output)))


def main() -> None:
    """Measure, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    measures = verbs.add_parser("measure")
    measures.add_argument("model")
    measures.add_argument("data", type=Path)
    measures.add_argument("work", type=Path)
    measures.add_argument("--targets", required=True)
    measures.add_argument("--libraries", type=Path, nargs="*", default=[])
    measures.add_argument("--found", type=Path)
    measures.add_argument("--eval-samples", type=int, default=16)
    measures.add_argument("--eval-length", type=int, default=512)
    measures.set_defaults(verb=measure)
    asks = verbs.add_parser("tasks")
    asks.add_argument("data", type=Path)
    asks.add_argument("--questions", type=int)
    asks.set_defaults(verb=tasks)
    timed = verbs.add_parser("times")
    timed.add_argument("--threads", type=int, default=1)
    timed.add_argument("--rounds", type=int, default=7)
    timed.add_argument("--prompt-length", type=int, default=64)
    timed.set_defaults(verb=times)
    for each in (measures, asks):
        each.add_argument("--only", nargs="*", default=[], metavar="NAME", help="names of rows")
    for each in (measures, asks, timed):
        each.add_argument("--output", type=Path, required=True)
    tables = verbs.add_parser("table")
    tables.add_argument("output", type=Path)
    tables.add_argument("--short", action="store_true")
    tables.set_defaults(verb=table)
    args = parser.parse_args()
    args.verb(args)


if __name__ == "__main__":
    main()
