"""Faults on purpose: kills, full and read-only disks, two runs at once, a Hub in trouble.

    make chaos
    python -m benchmarks.chaos --kills 1000 --seed 0 --output chaos.jsonl
    python -m benchmarks.chaos --only 102,1117 --output again.jsonl
    python -m benchmarks.chaos --commands offload --kills 100 --output offload.jsonl

Every run is a command of `ishrink` on tiny models, disturbed once. After it, nothing half-written may be visible,
every input must have its bytes, and the same command must complete with the result that it has undisturbed. The runs
so far are read from the output file, so an interrupted campaign continues; what is drawn for a run depends on the seed
and its number alone.

The process imports everything once, runs each command once, and forks: a fork needs no imports, and it is the fork
that gets SIGKILL. The converter of llama.cpp, a program of its own, is forked in the same way.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.helpers.chaos_commands import COMMANDS, USUAL, Bench, Command

FAULTS = {"kill": 80, "full disk": 6, "read-only": 3, "two at once": 6, "hub": 5}
"""The faults and how often, of 100 runs."""

HUB_FAULTS = ("429", "500", "503", "drop", "lost answer", "cut", "stall")


@dataclass
class Record:
    """One run: what was done, and what was wrong after it."""

    number: int
    fault: str
    verb: str
    killed: bool = False
    overwrite: bool = False
    lost: str = ""
    half: str = ""
    changed: str = ""
    untidy: str = ""
    detail: str = ""
    seconds: float = 0.0

    @property
    def wrong(self) -> bool:
        """Whether anything is not as it has to be."""
        return bool(self.lost or self.half or self.changed or self.untidy)


class Place:
    """The folder of a run, on a small disk where it is to be full or read-only.

    Args:
        folder: An existing, empty folder.
        nbytes: Size of a tmpfs, or None for no disk of its own. Where mounting is not permitted, `limit` is set.
    """

    def __init__(self, folder: Path, nbytes: int | None = None) -> None:
        self.folder, self.limit, self.mounted = folder, None if nbytes is None else nbytes, False
        if nbytes is not None:
            size = f"size={max(nbytes // 1024, 8)}k"
            self.mounted = _quietly(["mount", "-t", "tmpfs", "-o", size, "chaos", str(folder)])
            self.limit = None if self.mounted else nbytes

    def remount(self, options: str) -> bool:
        """Change the disk, such as to `ro` or to another size."""
        return self.mounted and _quietly(["mount", "-o", f"remount,{options}", str(self.folder)])

    def close(self) -> None:
        """Give the disk back."""
        if self.mounted:
            _quietly(["umount", "-l", str(self.folder)])
        shutil.rmtree(self.folder, ignore_errors=True)


def _quietly(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


class Campaign:
    """All runs of one seed.

    Args:
        bench: Inputs, commands and the Hub.
        seed: Seed of everything that is drawn.
        names: The commands that are disturbed.
    """

    def __init__(self, bench: Bench, seed: int, names: Sequence[str] = USUAL) -> None:
        self.bench, self.seed, self.names = bench, seed, names

    def run(self, number: int) -> Record:
        """Do one run and judge it."""
        chance = random.Random(f"{self.seed}:{number}")
        fault = chance.choices(list(FAULTS), list(FAULTS.values()))[0]
        verbs = ["push"] if fault == "hub" and "push" in self.names else list(self.names)
        if fault == "hub" and "push" not in verbs:
            fault = "kill"
        if "push" in verbs and fault in ("full disk", "read-only"):
            verbs.remove("push")  # it writes nothing
        command = COMMANDS[chance.choice(verbs)]
        record = Record(number, fault, command.verb)
        folder = self.bench.root / f"run-{number}"
        folder.mkdir()  # `Place.close` removes it
        began = time.monotonic()
        size = None
        if fault == "full disk":
            size = int(command.nbytes * chance.uniform(0.02, 0.95))
        elif fault == "read-only":
            size = 64 * 2**20
        place = Place(folder, size)
        try:
            getattr(self, "_" + fault.replace(" ", "_").replace("-", "_"))(record, command, place, chance)
            record.changed = self.bench.changed_inputs()
        finally:
            place.close()
        record.seconds = round(time.monotonic() - began, 2)
        return record

    def _kill(self, record: Record, command: Command, place: Place, chance: random.Random) -> None:
        record.overwrite = command.verb != "push" and chance.random() < 0.4
        if record.overwrite:
            command.put_old(self.bench, place.folder)
        fork = self.bench.start(command, place.folder, record)
        time.sleep(chance.uniform(0, command.seconds * 1.05))
        fork.kill()
        record.killed = fork.wait() == -signal.SIGKILL
        if not record.killed:  # the machine is faster now than at the first run
            command.seconds *= 0.8
        if record.overwrite and not command.output(place.folder).exists():
            record.lost = "what was to be replaced is gone"
        self._judge(record, command, place)

    def _full_disk(self, record: Record, command: Command, place: Place, chance: random.Random) -> None:
        fork = self.bench.start(command, place.folder, record, limit=place.limit)
        self._refused(record, fork.wait(), fork.errors, may_succeed=True)
        place.remount("size=256m")
        self._judge(record, command, place)

    def _read_only(self, record: Record, command: Command, place: Place, chance: random.Random) -> None:
        if not place.remount("ro"):
            place.folder.chmod(0o500)
        fork = self.bench.start(command, place.folder, record, cache=self.bench.root / "cache")
        self._refused(record, fork.wait(), fork.errors, may_succeed=os.access(place.folder, os.W_OK))
        place.remount("rw")
        place.folder.chmod(0o700)
        self._judge(record, command, place)

    def _two_at_once(self, record: Record, command: Command, place: Place, chance: random.Random) -> None:
        forks = [self.bench.start(command, place.folder, record)]
        time.sleep(chance.choice((0.0, chance.uniform(0, command.seconds))))
        forks.append(self.bench.start(command, place.folder, record))
        ends = [fork.wait() for fork in forks]
        if 0 not in ends:
            record.lost = "neither of two runs completed"
            record.detail = " | ".join(fork.errors[-200:] for fork in forks)
        for fork, end in zip(forks, ends, strict=True):
            self._refused(record, end, fork.errors, may_succeed=True)
        self._judge(record, command, place)

    def _hub(self, record: Record, command: Command, place: Place, chance: random.Random) -> None:
        kinds = [chance.choice(HUB_FAULTS) for _ in range(chance.randint(1, 4))]
        record.detail = ", ".join(kinds)
        for kind in kinds:
            self.bench.trouble(kind, chance)
        fork = self.bench.start(command, place.folder, record)
        self._refused(record, fork.wait(), fork.errors, may_succeed=True)
        self.bench.no_trouble()
        self._judge(record, command, place)

    def _refused(self, record: Record, end: int, errors: str, *, may_succeed: bool) -> None:
        """Judge a run that could not complete: one line says why."""
        if "Traceback" in errors or end not in ((0, 1, 2) if may_succeed else (1, 2)):
            record.untidy = f"exit status {end}: {' '.join(errors.split())[-300:]}"
        elif end and f"ishrink {record.verb}: error: " not in errors:
            record.untidy = f"no reason: {errors[-200:]}"
        elif end and not record.detail:
            record.detail = errors.strip().splitlines()[-1][-200:]

    def _judge(self, record: Record, command: Command, place: Place) -> None:
        """Judge what is visible, repeat the command, and judge its result."""
        record.half = command.half_written(self.bench, place.folder)
        done = command.is_complete(self.bench, place.folder) and not record.overwrite
        if done and command.verb != "push":
            self._judge_leftovers(record, command, place, done=True)
            return
        fork = self.bench.start(command, place.folder, record)
        end = fork.wait()
        if end:
            record.lost = record.lost or f"repeated, it ends with {end}: {' '.join(fork.errors.split())[-300:]}"
            return
        record.lost = record.lost or command.wrong_result(self.bench, place.folder)
        record.half = record.half or command.half_written(self.bench, place.folder)
        self._judge_leftovers(record, command, place, done=False)

    def _judge_leftovers(self, record: Record, command: Command, place: Place, *, done: bool) -> None:
        """After a command that completed, nothing is left but its output."""
        kept = {command.output(place.folder).name, "cache", "stderr.txt"}
        left = sorted(path.name for path in place.folder.iterdir() if path.name not in kept)
        if left and not done:  # a run that is complete is not repeated, so nobody tidies up after its kill
            record.untidy = record.untidy or f"left behind: {', '.join(left)}"


def read_records(path: Path, seed: int) -> list[Record]:
    """Return the runs in a file; a last line that was cut off is dropped.

    Args:
        path: A file of JSON lines, or none yet.
        seed: The seed that they must have.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    if lines != whole:
        path.write_bytes(b"".join(whole))
    found = [json.loads(line) for line in whole]
    if any(each.pop("seed") != seed for each in found):
        raise SystemExit(f"{path} has runs of another seed; name another file")
    return [Record(**each) for each in found]


def table(records: list[Record]) -> str:
    """Return the counts of each fault and verb as a Markdown table."""
    rows = ["| fault | verb | runs | kills | lost | half outputs | changed inputs | untidy |", "| --- " * 8 + "|"]
    keys = sorted({(each.fault, each.verb) for each in records})
    for key in [*keys, None]:
        group = [each for each in records if key in ((each.fault, each.verb), None)]
        count = Counter({name: sum(bool(getattr(each, name)) for each in group) for name in _COUNTED})
        cells = [*(key or ("all", "")), len(group), *(count[name] for name in _COUNTED)]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def _numbers(only: str | None, kills: int, records: list[Record]) -> Iterator[int]:
    """Yield the numbers of the runs to do: those that are named, or the next ones until there are enough kills."""
    if only is not None:
        yield from map(int, only.split(","))
        return
    while sum(each.killed for each in records) < kills:
        yield len(records)


_COUNTED = ("killed", "lost", "half", "changed", "untidy")


def main() -> None:
    """Run until there are enough kills; leave with status 1 when anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="runs that are to be killed (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is drawn (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("chaos.jsonl"), help="one line of JSON a run")
    parser.add_argument("--commands", default=",".join(USUAL), help=f"what is disturbed, of {', '.join(COMMANDS)}")
    parser.add_argument("--only", metavar="NUMBERS", help="do these runs alone, such as 102,1117")
    args = parser.parse_args()
    records = read_records(args.output, args.seed)
    with tempfile.TemporaryDirectory(prefix="chaos-") as name, Bench(Path(name)) as bench:
        campaign = Campaign(bench, args.seed, args.commands.split(","))
        for number in _numbers(args.only, args.kills, records):
            record = campaign.run(number)
            records.append(record)
            with args.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"seed": args.seed, **asdict(record)}) + "\n")
            if record.wrong:
                print(f"run {record.number}, {record.fault}, {record.verb}: {asdict(record)}", file=sys.stderr)
    print(table(records))
    raise SystemExit(any(each.wrong for each in records))


if __name__ == "__main__":
    main()
