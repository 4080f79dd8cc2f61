"""A search on texts that it did not choose on, and what was expected against what was measured.

    python benchmarks/search.py measure FOUND MODEL DATA --output search.jsonl [--eval-samples 16] [--eval-length 256]
    python benchmarks/search.py table search.jsonl
    python benchmarks/search.py expected FOUND
    python benchmarks/search.py files MODEL [--seed 0]
    python benchmarks/search.py times MODEL [--runtime torch] [--files 10] [--found FOUND] [--threads 1] [--rounds 5]
        [--seed 0]

FOUND is the output folder of `ishrink search`, MODEL the base's folder, DATA one with the text files named below.
`measure` takes the best model of every budget and the unpruned model in every plain quantisation, gives their matrices
the values that the files hold, and compares them with the base on three texts. Rows that are in the output already are
not made again. `files` compares the bytes of two files of mixed types with what is expected. `times` takes the profile
of this machine, and times further files of random sizes and types in the same rounds: how far expectations are off.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stored_values import TEXTS, stored_checkpoint

from optimum_ishrink import IShrinkConfig, IShrinker
from optimum_ishrink.architectures.description import GROUPS, NEURONS
from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.checkpoint.source import Source, open_source
from optimum_ishrink.edge.mixed_types import MIXED_TYPES
from optimum_ishrink.planning.limits import readable
from optimum_ishrink.planning.prices import MEASURED
from optimum_ishrink.report.search import FoundModel, SearchRecord, kind_of
from optimum_ishrink.search.gguf_files import write_base_file, write_mixed_file
from optimum_ishrink.search.layout import Layout
from optimum_ishrink.search.making import Maker
from optimum_ishrink.search.options import DEFAULT_RUNTIME, RUNTIMES, ProfileOptions
from optimum_ishrink.search.profile import ProbeRecipe, Profile, measure_profile
from optimum_ishrink.search.recipe import QUERY_HEADS
from optimum_ishrink.search.runtime import open_runtime
from optimum_ishrink.search.shapes import dimension_sizes
from optimum_ishrink.search.template import read_template
from optimum_ishrink.text.calibration import Calibration

METRICS = ("kl_divergence", "bits_per_byte")


def plain_file(source: Source, types: dict[str, str], folder: Path) -> Path:
    """Write the unpruned model with the nearest values of types."""
    write_base_file(source, folder / "exact.gguf")
    write_mixed_file(folder / "exact.gguf", types, folder / "plain.gguf")
    return folder / "plain.gguf"


def measure(args: argparse.Namespace) -> None:
    """Measure what is not in the output yet."""
    record = SearchRecord.read(args.found)
    done = [json.loads(line)["name"] for line in args.output.read_text().splitlines()] if args.output.exists() else []
    folders = {answer.best: answer.folder for answer in record.answers if answer.best}
    files = {answer.best: args.found / answer.file for answer in record.answers if answer.best and answer.file}
    for model in record.models:
        if model.name in done or not (model.unpruned or model.name in folders):
            continue
        place = folders.get(model.name)
        source = open_source(args.model if place is None else args.found / place)
        with tempfile.TemporaryDirectory() as folder:
            file = files.get(model.name) or plain_file(source, dict(model.types), Path(folder))
            stored = stored_checkpoint(source, file, Path(folder) / "stored")
            report = IShrinker.from_pretrained(stored).evaluate(
                base=args.model,
                eval_text=[name if name == "pydoc" else str(args.data / name) for name in TEXTS],
                eval_samples=args.eval_samples,
                eval_length=args.eval_length,
                sample_new_tokens=0,
            )
        row: dict[str, Any] = {"name": model.name, "bytes": model.figures.costs["bytes"], "figures": {}}
        for each in report.shrunk.quality:
            if each.metric in METRICS:
                row["figures"].setdefault(each.metric, {})[each.dataset] = (each.value, each.stderr)
        with args.output.open("a") as output:
            output.write(json.dumps(row) + "\n")
        print(markdown([row]), flush=True)


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the measured rows as a Markdown table, the smallest file first."""
    names = list(rows[0]["figures"]["kl_divergence"])
    head = ["model", "file, MB", *(f"KL, {name}" for name in names), "mean"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for row in sorted(rows, key=lambda row: row["bytes"]):
        found = row["figures"]["kl_divergence"]
        cells = [row["name"], f"{row['bytes'] / 1e6:.2f}"]
        cells += [f"{found[name][0]:.3f} ± {found[name][1]:.3f}" for name in names]
        lines.append("| " + " | ".join([*cells, f"{sum(found[name][0] for name in names) / len(names):.3f}"]) + " |")
    return "\n".join(lines)


def expected(record: SearchRecord) -> str:
    """Return what was expected against what was measured, as a Markdown table."""
    lines = [
        "| model | KL expected | measured | bytes expected | measured | decode, expected / measured | first token, "
        "expected / measured | memory, expected / measured |",
        "| --- " * 8 + "|",
    ]
    lines += [_expected_row(model) for model in sorted(record.models, key=lambda each: each.figures.costs["bytes"])]
    return "\n".join(lines)


def _expected_row(model: FoundModel) -> str:
    wanted, found = model.expected, model.figures
    cells = [model.name, f"{wanted.divergence:.3f}", f"{found.divergence:.3f}"]
    cells += [f"{wanted.costs['bytes']:,.0f}", f"{found.costs['bytes']:,.0f}"]
    for metric in ("decode", "ttft", "memory"):
        ratio = metric in wanted.costs and metric in found.costs
        cells.append(f"{wanted.costs[metric] / found.costs[metric]:.3f}" if ratio else "not timed")
    return "| " + " | ".join(cells) + " |"


def random_recipes(layout: Layout, maker: Maker, types: Sequence[str], count: int, seed: int) -> list[ProbeRecipe]:
    """Return recipes of sizes that a search considers; each matrix, or in two of three each kind, has its own type."""
    binding = layout.binding
    sizes = {key: dimension_sizes(binding, key, rows=maker.rows, protected=1) for key in binding.shape}
    group = binding.shape[QUERY_HEADS] // binding.shape[GROUPS]
    draw, found = random.Random(seed), []
    for number in range(count):
        shape = {key: draw.choice(sizes[key]) for key in binding.shape if key != QUERY_HEADS}
        shape = {key: shape[GROUPS] * group if key == QUERY_HEADS else shape[key] for key in binding.shape}
        units = layout.matrices if number % 3 == 0 else sorted({kind_of(name) for name in layout.matrices})
        chosen = {unit: draw.choice(list(types)) for unit in units}
        named = {name: chosen[name if number % 3 == 0 else kind_of(name)] for name in layout.matrices}
        found.append(ProbeRecipe(f"random {number + 1}", shape, named, fitted=False))
    return found


def times(args: argparse.Namespace) -> None:
    """Print what prices predict of files that they were not fitted to, and what these take in the same rounds."""
    config = IShrinkConfig(calibration=["self"])
    session = Session(open_source(args.model), config)
    with tempfile.TemporaryDirectory() as folder:
        options = ProfileOptions(
            runtime=args.runtime, quantization=args.quantization, threads=args.threads, timing_rounds=args.rounds
        )
        runtime = open_runtime(session, options, Path(folder))
        maker = Maker(session, config, Calibration(config, session), Path(folder), runtime.shaped_for)
        recipes = random_recipes(runtime.layout, maker, runtime.types, args.files, args.seed)
        if args.found is not None:
            record = SearchRecord.read(args.found)
            recipes += [ProbeRecipe(each.name, each.shape, each.types, fitted=False) for each in record.models]
        workload = options.workload
        profile = measure_profile(runtime, maker, model=session.base_name, workload=workload, held_out=recipes)
    if args.profile is not None:
        profile.write(args.profile)
    print(times_table(profile))
    print(f"\nLoad average of the last 1, 5 and 15 minutes: {', '.join(f'{load:.1f}' for load in os.getloadavg())}.")


def files(args: argparse.Namespace) -> None:
    """Print the bytes of two files, expected and written: the unpruned model's, and a narrower one's."""
    source = open_source(args.model)
    print("| file | bytes expected | bytes written |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        base = folder / "base.gguf"
        write_base_file(source, base)
        template = read_template(base, source.binding)
        width = max(size for size in dimension_sizes(source.binding, NEURONS, rows=None, protected=1)[1:])
        draw = random.Random(args.seed)
        types = {name: draw.choice(args.quantization) for name in template.matrices}
        shape = {**source.binding.shape, NEURONS: width}
        config = IShrinkConfig(
            importance="l2-norm",
            intermediate_size=width,
            compensation="none",
            evaluate=False,
            benchmark=False,
            calibration=["self"],
        )
        IShrinker(source).shrink(config, save_directory=folder / "narrower")
        narrower = folder / "narrower.gguf"
        write_base_file(open_source(folder / "narrower"), narrower)
        for name, exact, of in (("unpruned", base, source.binding.shape), (f"{width:,} neurons", narrower, shape)):
            path = folder / "mixed.gguf"
            write_mixed_file(exact, types, path, general=template.general(of), overwrite=True)
            print(f"| {name}, mixed types | {template.nbytes(of, types):,} | {path.stat().st_size:,} |", flush=True)


def times_table(profile: Profile) -> str:
    """Return the files that prices are not fitted to, measured and expected, and how far nine of ten are off."""
    lines = ["| file | decode | expected | first token | expected | memory | expected |", "| --- " * 7 + "|"]
    away: dict[str, list[float]] = {metric: [] for metric in MEASURED}
    for probe in profile.probes:
        if probe.fitted:
            continue
        expected = profile.costs.predict(probe.features)
        cells = [probe.name]
        for metric in MEASURED:
            off = expected[metric] / probe.figures[metric] - 1
            away[metric].append(abs(off))
            cells += [readable(metric, probe.figures[metric]), f"{off:+.1%}"]
        lines.append("| " + " | ".join(cells) + " |")
    cells = ["nine of ten are within"]
    for metric in MEASURED:
        cells += ["", f"{sorted(away[metric])[math.ceil(0.9 * len(away[metric])) - 1]:.1%}"]
    return "\n".join([*lines, "| " + " | ".join(cells) + " |"])


def main() -> None:
    """Measure, or print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    measures = verbs.add_parser("measure")
    measures.add_argument("found", type=Path)
    measures.add_argument("model")
    measures.add_argument("data", type=Path)
    measures.add_argument("--output", type=Path, required=True)
    measures.add_argument("--eval-samples", type=int, default=16)
    measures.add_argument("--eval-length", type=int, default=256)
    measures.set_defaults(work=measure)
    tables = verbs.add_parser("table")
    tables.add_argument("output", type=Path)
    tables.set_defaults(
        work=lambda args: print(markdown([json.loads(line) for line in args.output.read_text().splitlines()]))
    )
    compares = verbs.add_parser("expected")
    compares.add_argument("found", type=Path)
    compares.set_defaults(work=lambda args: print(expected(SearchRecord.read(args.found))))
    timed = verbs.add_parser("times")
    timed.add_argument("model")
    timed.add_argument("--found", type=Path, help="time models as large as those of a search, too")
    timed.add_argument("--files", type=int, default=10, help="random files")
    timed.add_argument("--seed", type=int, default=0)
    timed.add_argument("--threads", type=int, default=1)
    timed.add_argument("--rounds", type=int, default=5)
    timed.add_argument("--runtime", choices=RUNTIMES, default=DEFAULT_RUNTIME)
    timed.add_argument("--quantization", type=lambda text: text.split(","), help="those of the runtime by default")
    timed.add_argument("--profile", type=Path, help="write what was measured")
    timed.set_defaults(work=times)
    written = verbs.add_parser("files")
    written.add_argument("model")
    written.add_argument("--seed", type=int, default=0)
    written.add_argument("--quantization", type=lambda text: text.split(","), default=list(MIXED_TYPES))
    written.set_defaults(work=files)
    args = parser.parse_args()
    args.work(args)


if __name__ == "__main__":
    main()
