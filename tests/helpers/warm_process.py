"""New Python processes that have torch and transformers imported: forks of one process that does nothing else.

These imports take seconds in every new interpreter. This package is not imported there, so what runs in a fork imports
it itself, or shows that it needs none of it. Where the environment is read by an import, as the Hub's address is, a
fork has that of the session: such a test starts its own interpreter. `make test-all` starts one for every command.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

_forking = False


def fork_from_now_on() -> None:
    """Run Python in forks, where the system has them."""
    global _forking
    _forking = sys.platform == "linux"


def run_warm(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input: str | None = None,
    check: bool = False,
    **_: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a command as `subprocess.run` does with its output captured as text."""
    (done,) = run_together([command], envs=[env], cwd=cwd, input=input)
    if check:
        done.check_returncode()
    return done


def run_together(
    commands: Sequence[Sequence[str]],
    *,
    envs: Sequence[Mapping[str, str] | None],
    cwd: Path | None = None,
    input: str | None = None,
) -> list[subprocess.CompletedProcess[str]]:
    """Run several commands at the same time."""
    if not _forking or any(command[0] != sys.executable for command in commands):
        return _run_plainly(commands, envs, cwd, input)
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        source = Path(folder) / "input"
        source.write_text(input or "", encoding="utf-8")
        jobs = [
            {
                "arguments": [str(word) for word in command[1:]],
                "environment": dict(os.environ if env is None else env),
                "folder": str(cwd or Path.cwd()),
                "input": str(source),
                "output": f"{folder}/{number}.out",
                "error": f"{folder}/{number}.err",
            }
            for number, (command, env) in enumerate(zip(commands, envs, strict=True))
        ]
        return [
            subprocess.CompletedProcess(
                list(command), status, *(Path(job[name]).read_text("utf-8", "replace") for name in ("output", "error"))
            )
            for command, job, status in zip(commands, jobs, _server().run(jobs), strict=True)
        ]


def _run_plainly(
    commands: Sequence[Sequence[str]], envs: Sequence[Mapping[str, str] | None], cwd: Path | None, input: str | None
) -> list[subprocess.CompletedProcess[str]]:
    how: dict[str, Any] = {"cwd": cwd, "input": input, "encoding": "utf-8", "errors": "replace"}
    with ThreadPoolExecutor(len(commands)) as pool:
        started = [
            pool.submit(subprocess.run, command, env=env, capture_output=True, check=False, **how)
            for command, env in zip(commands, envs, strict=True)
        ]
        return [each.result() for each in started]


class _Server:
    """The process that has the imports."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )
        atexit.register(self.close)

    def run(self, jobs: list[dict[str, Any]]) -> list[int]:
        """Run jobs at the same time, and return their exit statuses."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(jobs) + "\n")
        self._process.stdin.flush()
        statuses: list[int] = json.loads(self._process.stdout.readline())
        return statuses

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@cache
def _server() -> _Server:
    return _Server()


def _serve() -> None:
    """Import what takes long, then fork for every job."""
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    assert "optimum_ishrink" not in sys.modules
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        children = []
        for job in json.loads(line):
            child = os.fork()
            if not child:
                _work(job)
            children.append(child)
        answers.write(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]) + "\n")
        answers.flush()


def _work(job: dict[str, Any]) -> None:
    """Do one job in a fork, and end it."""
    for number, name, flags in ((0, "input", os.O_RDONLY), (1, "output", os.O_WRONLY), (2, "error", os.O_WRONLY)):
        os.dup2(os.open(job[name], flags | os.O_CREAT), number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    how, *arguments = job["arguments"]
    status: Any = 0
    try:
        if how == "-c":
            sys.argv, sys.path[0] = ["-c", *arguments[1:]], ""
            exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
        elif how == "-m":
            sys.argv, sys.path[0] = arguments, str(Path.cwd())
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = [how, *arguments], str(Path(how).parent)
            runpy.run_path(how, run_name="__main__")
    except SystemExit as leaving:
        status = leaving.code
        if isinstance(status, str):
            print(status, file=sys.stderr)  # noqa: T201
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    _serve()
