"""The commands that `benchmarks.chaos` disturbs: their inputs, the forks that run them, and their right result."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tests.helpers.chaos_forks import Fork, fork_converter, hasten, save_blank
from tests.helpers.hub_server import HubServer, hub_environment

if TYPE_CHECKING:
    from tests.helpers.hub_endpoints import Request


FAST = shlex.split(
    """
    --importance l2-norm --layer-importance l2-norm --compensation none --no-evaluate --no-benchmark
    """
)
TEXT = ["--calibration-samples", "8", "--calibration-length", "64", "--importance-samples", "4"]
TRAIN = shlex.split(
    """
    --recovery kl --recovery-train norms --recovery-tokens 2000 --recovery-length 64 --recovery-batch-size 4
    --recovery-save-steps 2 --recovery-learning-rate 1e-2 --no-evaluate --no-benchmark --dtype float32
    """
)
ANALYZE = shlex.split(
    """
    --importance fisher --levels 0.25,0.5 --analysis-samples 4 --analysis-length 32 --no-score-cache --dtype
    float32
    """
)


@dataclass
class Command:
    """One command of `ishrink`, with `{base}`, `{cut}`, `{text}`, `{out}` and `{repo}` in its words.

    Args:
        verb: Its verb.
        words: Its other words.
        result: Name of its output in the folder of a run.
        compared: Files of the output that have the same bytes in every run; the output itself where it is a file.
    """

    verb: str
    words: Sequence[str]
    result: str = "out"
    compared: Sequence[str] = ()
    seconds: float = 0.0
    nbytes: int = 0
    reference: dict[str, str] = field(default_factory=dict)
    files: frozenset[str] = frozenset()

    def output(self, folder: Path) -> Path:
        """Return its output in the folder of a run."""
        return folder / self.result

    def learn(self, bench: Bench, folder: Path, seconds: float) -> None:
        """Remember what an undisturbed run gave."""
        self.seconds = seconds
        self.reference, self.files = self._found(folder), self._names(folder)
        output = self.output(folder)
        if self.verb != "push":
            paths = [output] if output.is_file() else output.rglob("*")
            self.nbytes = sum(path.stat().st_size for path in paths if path.is_file())

    def _names(self, folder: Path) -> frozenset[str]:
        output = self.output(folder)
        return frozenset(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())

    def _found(self, folder: Path) -> dict[str, str]:
        output = self.output(folder)
        paths = {name: output / name for name in self.compared} or ({"": output} if output.is_file() else {})
        return {name: _digest(path) for name, path in paths.items() if path.is_file()}

    def put_old(self, bench: Bench, folder: Path) -> None:
        """Put an output there that is to be replaced: a whole one, with a mark."""
        output = self.output(folder)
        if self.result.endswith(".gguf"):
            output.write_bytes(b"old")
        else:
            output.mkdir()
            (output / "old").write_text("old")

    def is_complete(self, bench: Bench, folder: Path) -> bool:
        """Whether the result is there, whole."""
        if self.verb == "push":
            return not bench.missing_on_hub(folder)
        return self.output(folder).exists() and not self.wrong_result(bench, folder)

    def half_written(self, bench: Bench, folder: Path) -> str:
        """Return what is visible and neither the old output nor the whole new one; empty where nothing is."""
        if self.verb == "push":
            return bench.half_on_hub(folder)
        output = self.output(folder)
        is_old = (output / "old").is_file() if output.is_dir() else output.is_file() and output.read_bytes() == b"old"
        if output.exists() and not is_old and (wrong := self.wrong_result(bench, folder)):
            return wrong
        known = {output.name, "cache", "stderr.txt"}
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or path.name in known:
                continue
            # The analysis keeps its finished measurements there, in whole files.
            if path.name != f"{output.name}.partial" or self.verb != "analyze":
                return f"{path.name} is visible"
            for name in path.glob("[!.]*.json"):
                json.loads(name.read_text())
        return ""

    def wrong_result(self, bench: Bench, folder: Path) -> str:
        """Return how the result differs from that of an undisturbed run; empty where it does not."""
        if self.verb == "push":
            return bench.missing_on_hub(folder)
        if not self.output(folder).exists():
            return "there is no output"
        if self._names(folder) != self.files:
            return f"files differ: {sorted(self._names(folder) ^ self.files)}"
        for path in self.output(folder).rglob("*.json"):
            try:
                json.loads(path.read_text())
            except ValueError as error:
                return f"{path.name}: {error}"
        found = self._found(folder)
        wrong = [name for name in self.reference if found.get(name) != self.reference[name]]
        return f"other bytes: {wrong}" if wrong else ""


_WEIGHTS = ("model.safetensors", "config.json", "tokenizer.json")
COMMANDS = {
    "shrink": Command(
        "shrink",
        ["--model", "{base}", "--num-hidden-layers", "3", "--intermediate-size", "16", *FAST, "--output", "{out}"],
        compared=_WEIGHTS,
    ),
    "recover": Command(
        "recover",
        ["--model", "{cut}", "--recovery-teacher", "{base}", "--recovery-data", "{text}", *TRAIN, "--output", "{out}"],
        compared=_WEIGHTS,
    ),
    "analyze": Command(
        "analyze",
        [
            *("--model", "{base}", *TEXT, "--calibration", "{text}", "--analysis-text", "{text}", *ANALYZE),
            *("--output", "{out}"),
        ],
    ),
    "export": Command(
        "export",
        ["--model", "{edge}", "--quantization", "f16", "--no-verify", "--threads", "1", "--output", "{out}"],
        result="out.gguf",
    ),
    "push": Command("push", ["--model", "{cut}", "--repo-id", "{repo}"]),
    "offload": Command(
        "shrink",
        [
            *("--model", "{base}", "--num-hidden-layers", "3", "--intermediate-size", "16", *TEXT),
            *("--calibration", "{text}", "--offload", "always", "--dtype", "float32", "--no-score-cache"),
            *("--no-evaluate", "--no-benchmark", "--output", "{out}"),
        ],
        compared=_WEIGHTS,
    ),
}
USUAL = tuple(COMMANDS)[:5]
"""The commands of a campaign that names none: what a seed draws does not change when others are added."""


class Bench:
    """Inputs and the Hub, and forks of this process that run commands.

    Args:
        root: An empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.hub = root, HubServer()
        self._count = 0
        self._stalls: list[float] = []

    def __enter__(self) -> Bench:
        """Start the Hub, import everything, make the inputs, and run each command once."""
        self.hub.__enter__()
        self.hub.on_request = self._stall
        os.environ.update(hub_environment(self.hub, self.root / "home"), OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
        os.environ["MPLCONFIGDIR"] = str(self.root / "matplotlib")
        self._make_inputs()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the Hub."""
        self.hub.__exit__(kind, error, trace)

    def _make_inputs(self) -> None:
        import huggingface_hub.hf_api  # noqa: F401  (after HF_ENDPOINT is set, and before the forks)

        from tests.helpers.edge_models import save_edge
        from tests.helpers.tiny import save_tiny, tiny_config

        inputs = self.root / "inputs"
        inputs.mkdir()
        (self.root / "cache").mkdir()
        save_tiny(inputs / "base", tiny_config("llama"))
        save_edge(inputs / "edge")
        lines = (f"Ferry {i} leaves pier {i * 7 % 13} with {i * 11 % 17} bicycles and a dog." for i in range(300))
        (inputs / "words.txt").write_text("\n".join(lines))
        self.words = {"base": inputs / "base", "edge": inputs / "edge", "text": inputs / "words.txt"}
        self.words["cut"] = inputs / "cut"
        # Each command once in this process, so that all imports are done, and once in a fork, which is measured.
        self._run_here(COMMANDS["shrink"], self.root, self.words["cut"])
        for name, command in COMMANDS.items():
            folder = self.root / f"first-{name}"
            folder.mkdir()
            if name != "push":  # its connections must not be shared with the forks
                self._run_here(command, folder, command.output(folder))
        self.inputs = self._hash_inputs()
        for name, command in COMMANDS.items():
            folder = self.root / f"second-{name}"
            folder.mkdir()
            began = time.monotonic()
            fork = self.start(command, folder)
            if fork.wait():
                raise SystemExit(f"{name} failed without any fault: {fork.errors}")
            command.learn(self, folder, time.monotonic() - began)

    def _hash_inputs(self) -> dict[str, str]:
        return {str(path): _digest(path) for path in (self.root / "inputs").rglob("*") if path.is_file()}

    def changed_inputs(self) -> str:
        """Return the inputs that were changed, added or removed."""
        now = self._hash_inputs()
        return ", ".join(sorted(name for name in now.keys() | self.inputs if now.get(name) != self.inputs.get(name)))

    def _run_here(self, command: Command, folder: Path, output: Path) -> None:
        with (
            (self.root / "here.txt").open("w") as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            status = self._run(command, folder, output)
        if status:
            raise SystemExit(f"{command.verb} failed without any fault: {(self.root / 'here.txt').read_text()[-300:]}")

    def _run(self, command: Command, folder: Path, output: Path, *more: str) -> int:
        """Run a command in this process."""
        from matplotlib.figure import Figure

        from optimum_ishrink.cli.program import main
        from optimum_ishrink.edge import write_gguf

        setattr(write_gguf, "run_program", fork_converter)  # noqa: B010
        setattr(Figure, "savefig", save_blank)  # noqa: B010  (no method to a type checker)
        names = {**self.words, "out": output, "repo": self.repo(folder)}
        os.environ["ISHRINK_CACHE"] = str(folder / "cache")
        return main([command.verb, *(word.format(**names) for word in command.words), *more])

    def repo(self, folder: Path) -> str:
        """Return the repository that the run in a folder pushes to."""
        return f"me/{folder.name}"

    def start(
        self,
        command: Command,
        folder: Path,
        record: Any = None,
        *,
        limit: int | None = None,
        cache: Path | None = None,
    ) -> Fork:
        """Fork a process that runs a command.

        Args:
            command: The command.
            folder: Folder of the run.
            record: The run, if it is one; it says whether to overwrite.
            limit: Largest file in bytes that it may write.
            cache: Folder of its cache, where it is not in the run's folder.
        """
        self._count += 1
        log = self.root / f"stderr-{self._count % 8}.txt"
        more = ["--overwrite"] if record is not None and record.overwrite else []
        pid = os.fork()
        if pid:
            return Fork(pid, log)
        status = 70
        try:
            with log.open("w") as file:
                os.dup2(file.fileno(), 2)
                os.dup2(file.fileno(), 1)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            hasten()
            status = self._run(command, folder, command.output(folder), *more)
            sys.stderr.flush()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            import traceback

            os.write(2, traceback.format_exc().encode())
        os._exit(status)

    def trouble(self, kind: str, chance: random.Random) -> None:
        """Let the Hub fail at one of the next requests."""
        method, path = chance.choice((("POST", "."), ("GET", "."), ("PUT", "."), ("POST", "commit")))
        times = chance.randint(1, 3)
        if kind == "stall":
            self._stalls += [chance.uniform(0.2, 1.0)] * times
        elif kind == "cut":
            self.hub.cut_next(method, path, after=chance.randint(0, 200), times=times)
        elif kind in ("drop", "lost answer"):
            self.hub.drop_next(method, path, times=times, applied=kind == "lost answer")
        else:
            headers = {"Retry-After": "1"} if kind == "429" else None
            self.hub.fail_next(method, path, status=int(kind), times=times, headers=headers)

    def no_trouble(self) -> None:
        """Let the Hub work again."""
        self.hub._faults.clear()
        self._stalls.clear()

    def _stall(self, request: Request) -> None:
        if self._stalls:
            time.sleep(self._stalls.pop())

    def half_on_hub(self, folder: Path) -> str:
        """Return what a repository holds that is neither empty nor everything."""
        repo = self.hub.repos.get(self.repo(folder))
        return self.missing_on_hub(folder) if repo is not None and repo.head.files else ""

    def missing_on_hub(self, folder: Path) -> str:
        """Return the names of files that the Hub lacks or holds with other bytes; the card differs by its name."""
        repo = self.hub.repos.get(self.repo(folder))
        found = {} if repo is None else repo.head.files
        local = {path.name: path.read_bytes() for path in self.words["cut"].iterdir() if path.is_file()}
        return ", ".join(
            sorted(name for name in local if name not in found or (name != "README.md" and found[name] != local[name]))
        )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
