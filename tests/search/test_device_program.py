from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from optimum_ishrink import IShrinker
from optimum_ishrink.checkpoint.source import Source
from optimum_ishrink.cli.on_device import main as run
from optimum_ishrink.cli.program import main
from optimum_ishrink.edge.llama_bench import LlamaBench, _memory_before
from optimum_ishrink.errors import OutputError, SourceError
from optimum_ishrink.search import on_device as device
from optimum_ishrink.search import probe_weights
from optimum_ishrink.search.profile import Profile
from optimum_ishrink.search.runtime import Runtime
from optimum_ishrink.search.template import Template
from optimum_ishrink.search.turns import Workload
from tests.helpers import made_up_device
from tests.helpers.fake_llama_bench import write_program

ASKED: dict[str, Any] = {"prompt_length": 8, "context": 64, "timing_rounds": 1}

_WITHOUT = """
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(name + " is not on the device")
sys.meta_path.insert(0, Blocked())
sys.argv = {words!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""

LIBRARIES = ("torch", "transformers", "optimum_ishrink", "numpy", "gguf", "psutil", "rich", "safetensors")


def run_without(words: list[str], path: str, *flags: str, blocked: tuple[str, ...] = LIBRARIES) -> Any:
    """Run the program in a process that cannot import what a device lacks."""
    command = [sys.executable, *flags, "-c", _WITHOUT.format(blocked=blocked, words=words)]
    environment = {**os.environ, "PATH": path}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(words[0]).parent)


@pytest.fixture
def program(base_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made_up_device.install(monkeypatch)
    IShrinker(base_source).profile_script(output=tmp_path / "phone.pyz", **ASKED)
    return tmp_path / "phone.pyz"


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="peak memory of a program")
def test_it_needs_the_standard_library_and_llama_cpp_alone(program: Path, base_file: Template, tmp_path: Path) -> None:
    words = [str(program), "--output", "phone.json", "--threads", "3"]
    done = run_without(words, str(write_program(tmp_path / "bin")), "-I", "-S")
    assert done.returncode == 0, done.stderr
    assert "ishrink search --model " in done.stdout and "--profile phone.json" in done.stdout
    found = Profile.read(tmp_path / "phone.json")
    asked = SimpleNamespace(name="llama.cpp", types=("q8_0", "q5_0", "q4_0"))
    found.check(base_file.binding, cast(Runtime, asked), threads=3, workload=Workload(prompt=8, context=64))
    assert found.build == "llama-bench 7 (abc)"
    for metric in ("decode", "ttft"):
        error = found.costs.errors[metric]
        assert error is not None and error < 0.3, metric  # its header counts as well
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "phone.json", "phone.pyz"}
    again = run_without(words, str(tmp_path / "bin"), "-I", "-S")
    assert again.returncode == 2 and "phone.json exists; name another file or pass --overwrite" in again.stderr


def test_its_probes_are_those_of_a_profile(
    program: Path, base_source: Source, base_file: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, bytes] = {}

    def time_files(files: Mapping[str, Path], workload: Any, **how: Any) -> Any:
        written.update({name: path.read_bytes() for name, path in files.items()})
        return made_up_device.time_files(files, workload, **how)

    monkeypatch.setattr("optimum_ishrink.search.llama_cpp_runtime.time_files", time_files)
    here = IShrinker(base_source).profile(output=tmp_path / "here.json", threads=3, **ASKED)
    plan = device.read_plan(program)
    (tmp_path / "probes").mkdir()
    files = device.write_probes(program, plan, tmp_path / "probes")
    assert {name: path.read_bytes() for name, path in files.items()} == written
    assert [probe["features"] for probe in plan["profile"]["probes"]] == [probe.features for probe in here.probes]


def test_requests_that_it_cannot_meet(
    program: Path,
    base_source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(program, []) == 2
    assert "nothing here runs the probes: install the package xllamacpp" in capsys.readouterr().err
    assert run(program, ["--with", "llama-bench"]) == 2
    assert "llama-bench is not on the PATH" in capsys.readouterr().err
    assert run(program, ["--rounds", "0"]) == 2
    assert "whole numbers of at least 1" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(write_program(tmp_path / "bin")))
    with monkeypatch.context() as patched:
        patched.setattr(device, "write_probes", lambda *_: pytest.fail("it can be known before"))
        assert run(program, ["--output", "no/such/folder.json"]) == 2
        assert "no/such is no folder; make it, or name another place with --output" in capsys.readouterr().err
        assert run(program, ["--folder", "nowhere"]) == 2
        assert "nowhere is no folder; make it, or name another place with --folder" in capsys.readouterr().err
    (tmp_path / "taken").mkdir()
    assert run(program, ["--output", "taken", "--overwrite"]) == 2
    assert "cannot write taken: Is a directory" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]

    def fill(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(device, "append_weights", fill)
        assert run(program, []) == 2
        assert "cannot write the probes: No space left on device; see --folder" in capsys.readouterr().err

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(device, "take_turns", stop)
        assert run(program, []) == 130
    monkeypatch.setattr(probe_weights.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    assert run(program, []) == 2
    assert "MB and " in (error := capsys.readouterr().err) and "name another place with --folder" in error
    with pytest.raises(OutputError, match="name another place with TMPDIR"):
        IShrinker(base_source).profile(output=tmp_path / "here.json", **ASKED)


def test_a_program_that_fails_or_answers_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = {"model": str(tmp_path / "a.gguf"), "threads": 1, "new_tokens": 4, "context": 1024}
    (tmp_path / "a.gguf").write_bytes(bytes(1000))
    for extra, words in (
        ("sys.stderr.write('error: no such thing\\n'); sys.exit(3)", "fails with status 3: no such thing"),
        ("os.kill(os.getpid(), 9)", "fails with status 137"),
        ("print('{}'); sys.exit()", "answers in a form that is not known"),
        ("print('[{}]'); sys.exit()", "answers in a form that is not known"),
    ):
        monkeypatch.setenv("PATH", str(write_program(tmp_path / "bin", extra)))
        with pytest.raises(SourceError, match=words):
            LlamaBench(request).ask({"length": 8})


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="peak memory of a program")
def test_memory_counts_the_requested_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _memory_before.cache_clear()
    (tmp_path / "a.gguf").write_bytes(bytes(1000))
    monkeypatch.setenv("PATH", str(write_program(tmp_path / "bin", "held = b'x' * (200 << 20)")))
    request = {"model": str(tmp_path / "a.gguf"), "threads": 1, "new_tokens": 4, "context": 1024}
    with LlamaBench(request, cache_bytes=1e6) as bench:
        found = bench.ask({"length": 8})
        taken = found["peak_memory_bytes"] - bench.first["memory_before_bytes"]
        assert taken == pytest.approx((200 << 20) + (1024 - 256) * 1e6, rel=0.05)
    _memory_before.cache_clear()


def test_the_command_writes_it(
    base_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up_device.install(monkeypatch)
    words = ["profile", "--model", str(base_source.folder), "--script", "--output", str(tmp_path / "phone.pyz")]
    assert main(words) == 0
    assert "python3 phone.pyz" in capsys.readouterr().out
    assert main([*words, "--json", "--overwrite"]) == 0
    assert json.loads(capsys.readouterr().out) == {"output": str(tmp_path / "phone.pyz")}


@pytest.mark.slow
def test_in_llama_cpp(base_source: Source, tmp_path: Path) -> None:
    """The probes of a real file load, and are timed."""
    pytest.importorskip("xllamacpp")
    IShrinker(base_source).profile_script(output=tmp_path / "phone.pyz", **ASKED)
    blocked = tuple(name for name in LIBRARIES if name != "numpy")
    words = [str(tmp_path / "phone.pyz"), "--with", "xllamacpp", "--threads", "1", "--output", "phone.json"]
    done = run_without(words, os.environ["PATH"], blocked=blocked)
    assert done.returncode == 0, done.stderr
    found = Profile.read(tmp_path / "phone.json")
    assert "xllamacpp" in found.build
    assert all(probe.figures["decode"] > 0 and probe.figures["memory"] > 0 for probe in found.probes)
