"""The build corrects how the fast runtime rounds, and refuses a file that it was not made for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.app.test_timing_cases import APP

PACKAGE = APP / "node_modules" / "wllama-fast" / "esm"

_SCRIPT = """
import { readFileSync } from "node:fs";
import { roundToNearest } from "%s";
for (const name of process.argv.slice(1)) {
  const file = readFileSync(name);
  console.log(roundToNearest(file).length - file.length);
}
"""


def _run(*files: Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("node") is None or not PACKAGE.is_dir():
        pytest.skip("app/node_modules is missing: run `make app`")
    script = _SCRIPT % (APP / "rounding.mjs")
    command = ["node", "--input-type=module", "-e", script, *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True)


def test_two_functions_are_corrected() -> None:
    found = _run(*(PACKAGE / f"{name}-thread" / "wllama.wasm" for name in ("single", "multi")))
    # Eight conversions in each of two functions, two bytes for each.
    assert found.stdout.split() == ["32", "32"], found.stderr


def test_a_corrected_file_is_refused(page_folder: Path) -> None:
    found = _run(page_folder / "wasm" / "fast" / "single.wasm")
    assert found.returncode != 0
    assert "0 functions of the fast runtime were corrected instead of 2: look at app/rounding.mjs" in found.stderr
