"""What a stranger sees first: the import, the version, the layers of the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import optimum_ishrink

ROOT = Path(optimum_ishrink.__file__).parent


def test_importing_is_silent_and_light() -> None:
    script = (
        "import logging, sys; handlers = list(logging.root.handlers); import optimum_ishrink;"
        "heavy = {'torch', 'transformers', 'numpy', 'optimum', 'rich', 'yaml'} & set(sys.modules);"
        "assert not heavy, heavy; assert logging.root.handlers == handlers"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_public_names_are_there() -> None:
    for name in optimum_ishrink.__all__:
        assert getattr(optimum_ishrink, name).__name__ == name
    assert set(optimum_ishrink.__all__) <= set(dir(optimum_ishrink))
    with pytest.raises(AttributeError, match="no attribute 'Shrinker'"):
        optimum_ishrink.Shrinker  # noqa: B018


def test_the_version_is_the_distributions() -> None:
    assert optimum_ishrink.__version__ == metadata.version("optimum-ishrink")


RANKS = {
    "__version__": 0,
    "errors": 0,
    "registry": 1,
    "parallel": 0,
    "flags": 0,
    "verbs": 1,
    "progress": 1,
    "architectures": 2,
    "artifacts": 2,
    "compute": 2,
    "tensor_files": 2,
    "output_folder": 2,
    "sampling": 2,
    "layerwise": 3,
    "head": 3,
    "source": 3,
    "fingerprint": 4,
    "data": 3,
    "planning": 3,
    "surgery": 4,
    "importance": 5,  # reads the surgery's axes to sum scores per unit
    "evaluation": 5,
    "recovery": 5,  # knows no cut: the pipeline tells it where to start from
    "figures": 5,
    "tables": 4,
    "hub": 4,
    "card_metadata": 5,
    "card_summary": 5,
    "hub_benchmarks": 5,
    "card": 6,
    "report_page": 5,
    "measurements": 6,
    "validation": 6,
    "configuration": 7,
    "demo": 8,
    "speed": 8,
    "session": 8,
    "scoring": 9,
    "edge": 11,
    "evaluating": 9,
    "measuring": 10,
    "updating": 10,
    "recovering": 11,
    "pipeline": 12,
    "analysis": 13,
    "shrinker": 14,
    "cli": 15,
    "__main__": 16,
    "__init__": 16,
}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    room = parts[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        if node.level < len(parts):
            continue  # within one room
        for alias in [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]:
            assert RANKS[alias] < RANKS[room], f"{room} imports {alias}"
