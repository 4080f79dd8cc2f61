"""The command of the program that profiles another device. Imports the standard library alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import IShrinkError
from ..search.on_device import RUNTIMES, DeviceRequest, measure_device, read_plan


def main(archive: Path, words: Sequence[str] | None = None) -> int:
    """Measure this device, and write its profile.

    Args:
        archive: The program.
        words: Arguments; those of the command line by default.

    Returns:
        The exit status.
    """
    plan = read_plan(archive)
    model = plan["profile"]["model"]
    parser = argparse.ArgumentParser(
        prog=archive.name,
        description=f"Measure what the parts of {model} cost on this device, with files of random weights in "
        "llama.cpp. It needs Python, and the package xllamacpp or llama.cpp's program llama-bench.",
    )
    threads = plan["threads"] or "all usable cores"
    parser.add_argument(
        "--output", metavar="FILE", type=Path, default="profile.json", help="the profile (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the profile")
    parser.add_argument("--threads", metavar="N", type=int, help=f"threads for llama.cpp ({threads})")
    parser.add_argument("--rounds", metavar="N", type=int, help=f"turns of each file ({plan['rounds']})")
    parser.add_argument(
        "--with", dest="runtime", choices=RUNTIMES, help="what runs the files (the first that is there)"
    )
    parser.add_argument(
        "--folder", metavar="DIR", type=Path, help="where the files lie meanwhile (the system's temporary folder)"
    )
    args = parser.parse_args(words)
    try:
        measure_device(archive, DeviceRequest(**vars(args)))
    except IShrinkError as error:
        sys.stderr.write(f"{archive.name}: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(
        f"Written to {args.output}. On the other machine:\n"
        f"  ishrink search --model {model} --target decode=+20% --profile {args.output} --output small\n"
    )
    return 0
