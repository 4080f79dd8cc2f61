"""The package as a whole: its import, its version, and the rules about packages and levels."""

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


def test_public_names_exist() -> None:
    for name in optimum_ishrink.__all__:
        assert getattr(optimum_ishrink, name).__name__ == name
    assert set(optimum_ishrink.__all__) <= set(dir(optimum_ishrink))
    with pytest.raises(AttributeError, match="no attribute 'Shrinker'"):
        optimum_ishrink.Shrinker  # noqa: B018


def test_the_version_is_the_distributions() -> None:
    assert optimum_ishrink.__version__ == metadata.version("optimum-ishrink")


TESTS = Path(__file__).parent
TEST_FILES = [path.relative_to(TESTS) for path in sorted(TESTS.rglob("*.py")) if path.name != "conftest.py"]


def test_every_test_is_in_the_folder_of_its_subject() -> None:
    packages = {path.parent.relative_to(ROOT) for path in ROOT.rglob("*.py")}
    for path in TEST_FILES:
        assert path.parent in packages or path.parts[0] in ("helpers", "typing"), (
            f"optimum_ishrink has no package {path.parent}"
        )


def test_test_files_of_one_name_test_modules_of_one_name() -> None:
    places: dict[str, list[Path]] = {}
    for path in TEST_FILES:
        if path.name != "__init__.py":
            places.setdefault(path.name, []).append(path.parent)
    for name, folders in places.items():
        if len(folders) > 1:
            for folder in folders:
                assert (ROOT / folder / name.removeprefix("test_")).is_file(), f"{folder}/{name}: another name, please"


def _imports() -> dict[str, dict[str, set[str]]]:
    """Package to the packages that it imports, each with the files that do. A file at the root counts as a package."""
    found: dict[str, dict[str, set[str]]] = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        imports = found.setdefault(parts[0], {})
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            parent = parts[: len(parts) - node.level]
            target = [*parent, *(node.module.split(".") if node.module else [])]
            for package in target[:1] or [alias.name for alias in node.names]:
                if package != parts[0]:
                    imports.setdefault(package, set()).add("/".join(parts))
    return found


IMPORTS = _imports()
STAGES = {path.parent.name for path in ROOT.glob("*/stage.py")}


def test_imports_point_downwards_on_at_most_nine_levels() -> None:
    levels: dict[str, int] = {}

    def level(package: str, above: tuple[str, ...] = ()) -> int:
        assert package not in above, f"packages import each other in a circle: {' -> '.join([*above, package])}"
        if package not in levels:
            levels[package] = 1 + max(
                (level(below, (*above, package)) for below in IMPORTS.get(package, {})), default=0
            )
        return levels[package]

    # __main__ is the door, not a floor: all that it does is to call the command line.
    assert max(map(level, IMPORTS.keys() - {"__main__"})) <= 9, levels


def test_a_stage_imports_no_other_stage() -> None:
    assert {"evaluation", "importance", "planning", "recovery", "surgery"} <= STAGES
    for stage in STAGES:
        assert not STAGES & IMPORTS[stage].keys(), (stage, IMPORTS[stage])


def test_only_the_command_line_and_the_package_import_the_api() -> None:
    for package, imports in IMPORTS.items():
        if package not in ("__init__", "cli"):
            assert "api" not in imports, imports
        if package != "__main__":
            assert "cli" not in imports, imports


def test_ten_files_at_the_root_at_most_and_none_sounds_like_a_package() -> None:
    files = {path.stem for path in ROOT.glob("*.py")}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert len(files) <= 10
    for file in files:
        assert not [package for package in packages if file[:5] == package[:5]], file


def test_no_basename_means_three_things() -> None:
    places: dict[str, list[str]] = {}
    for path in ROOT.rglob("*.py"):
        places.setdefault(path.stem, []).append(path.relative_to(ROOT).parent.as_posix())
    for name in ("__init__", "stage", "options"):  # these mean the same in every package
        places.pop(name)
    assert not {name: folders for name, folders in places.items() if len(folders) > 2}


def test_a_namespace_of_flags_stays_in_the_command_line() -> None:
    for path in ROOT.rglob("*.py"):
        if path.parent.name != "cli":
            assert "argparse" not in path.read_text(encoding="utf-8"), path


def test_a_config_is_made_without_torch_peft_or_transformers() -> None:
    script = (
        "import sys; from optimum_ishrink import IShrinkConfig; IShrinkConfig();"
        "heavy = {'torch', 'peft', 'transformers', 'numpy', 'optimum'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
