"""A program `llama-bench` whose times follow from a file's size: a device without llama.cpp."""

from __future__ import annotations

import sys
from pathlib import Path

_PROGRAM = """#!{python}
import json, os, sys
if "--help" in sys.argv:
    sys.exit(0)
asked = dict(zip(sys.argv[1::2], sys.argv[2::2]))
nbytes = os.path.getsize(asked["-m"])
tokens = int(asked["-p"]), int(asked["-n"])
seconds = 2e-3 + 1e-9 * nbytes * tokens[0] if tokens[0] else (1e-3 + 1e-8 * nbytes) * tokens[1]
{extra}
found = {{"build_commit": "abc", "build_number": 7, "avg_ns": int(seconds * 1e9), "n_prompt": tokens[0]}}
print(json.dumps([found]))
"""


def write_program(folder: Path, extra: str = "") -> Path:
    """Write it, with a line that runs before its answer; return its folder, for the PATH."""
    path = folder / "llama-bench"
    folder.mkdir(exist_ok=True)
    path.write_text(_PROGRAM.format(python=sys.executable, extra=extra))
    path.chmod(0o755)
    return folder
