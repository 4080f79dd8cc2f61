"""What `search`, `profile` and `advise` print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.table import Row
from ..planning.limits import readable
from ..report.search import SearchRecord
from ..report.search_tables import LEVELS_HEADER, conditions_line, levels_rows, models_header, models_rows
from ..search.options import DEFAULT_RUNTIME
from .show import print_table, say

if TYPE_CHECKING:
    from ..search.profile import Profile
    from ..search.ways import Way


def show_search(record: SearchRecord, output: Path) -> None:
    """Print what a search measured and found.

    Args:
        record: The search.
        output: Its output folder.
    """
    if record.levels:
        print_table("What each dimension costs, not quantised", LEVELS_HEADER, levels_rows(record.levels))
    print_table(f"{record.model} on {record.runtime}", models_header(record), models_rows(record))
    say(conditions_line(record))
    for line in record.advice:
        say(f"- {line}")
    for answer in record.answers:
        if answer.file is not None:
            say(f"Run it:   llama-cli -m {output / answer.file}")
        elif answer.folder is not None:
            say(f'Load it:  AutoModelForCausalLM.from_pretrained("{output / answer.folder}")')
        if answer.folder is not None:
            say(f"Measure:  ishrink evaluate --model {output / answer.folder} --base {record.model} --eval-text FILE")
    say(f"A further size, without measuring again:  add --reuse {output} to the same command with another --target")
    say(f"Written to {output} (page: {output / 'index.html'})")


def show_profile(found: Profile, output: Path) -> None:
    """Print what was profiled, and how far the prices are off on files that they were not fitted to.

    Args:
        found: The profile.
        output: Its file.
    """
    rows: list[Row] = []
    for probe in found.probes:
        expected = found.costs.predict(probe.features)
        cells = [probe.name + ("" if probe.fitted else " (not fitted)")]
        for metric in ("decode", "ttft", "memory"):
            if metric not in probe.figures or metric not in expected:
                cells.append("")
                continue
            value = readable(metric, probe.figures[metric])
            cells.append(f"{value} ({expected[metric] / probe.figures[metric] - 1:+.1%})")
        rows.append(tuple(cells))
    header = ("probe", "decode, measured (expected)", "first token", "memory")
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    print_table(f"{found.model} on {found.runtime}, {threads}", header, rows)
    say(f"{found.build}; prompt of {found.workload.prompt} tokens, context of {found.workload.context}")
    how = "" if found.runtime == DEFAULT_RUNTIME else f" --runtime {found.runtime}"
    say(
        f"Search for it:  ishrink search{how} --model {found.model} --target decode=+20% --profile {output} "
        "--output small"
    )
    say(f"Written to {output}")


def show_script(output: Path) -> None:
    """Print how the program that measures another device is used.

    Args:
        output: The program.
    """
    say(f"Written to {output} ({output.stat().st_size / 1e6:.1f} MB). Copy it to the device. There, with llama.cpp:")
    say(f"  python3 {output.name} --output device.json")


def show_ways(ways: Sequence[Way], target: str) -> None:
    """Print ways to meet a budget.

    Args:
        ways: The ways, the best first.
        target: The budget.
    """
    rows: list[Row] = []
    for number, way in enumerate(ways, start=1):
        figures = way.figures
        rows.append(
            (
                str(number),
                way.name,
                f"{way.divergence:.2f} ({way.low:.2f} to {way.high:.2f})",
                readable("bytes", figures["bytes"]),
                *(f"{figures[name]:+.0%}" for name in ("memory", "ttft", "decode")),
            )
        )
    header = ("", "way", "KL, nats/token", "file", "memory", "first token", "decode")
    print_table(f"Ways to {target}", header, rows)
    say(
        "Expected from the config alone: what models of this kind lost on average, after closed-form repair and "
        "without training. Memory and times are relative to the unpruned model in the first type; search measures."
    )
    for number, way in enumerate(ways, start=1):
        for command in way.commands:
            say(f"{number}: {command}")
