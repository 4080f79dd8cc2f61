"""Free memory: what the machine has, and what control groups leave of it."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from optimum_ishrink.core.memory import free_memory, free_on


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_without_a_limit_it_is_what_the_machine_has(tmp_path: Path) -> None:
    group(tmp_path, memory__max="max\n", memory__current="5\n")
    found = free_memory(tmp_path, tmp_path / "none")
    assert 0 < found <= psutil.virtual_memory().total
    assert 0 < free_on(torch.device("cpu")) <= psutil.virtual_memory().total


def test_the_tightest_limit_around_this_process_counts(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/outer/inner\n")
    groups = tmp_path / "groups"
    stat = "anon 1\ninactive_file 50\n"
    group(groups / "outer", memory__max="1000\n", memory__current="300\n", memory__stat=stat)
    group(groups / "outer" / "inner", memory__max="5000\n", memory__current="100\n")
    assert free_memory(groups, own) == 1000 - 300 + 50
    group(groups / "outer" / "inner", memory__max="400\n", memory__current="500\n")
    assert free_memory(groups, own) == 0


def test_version_1_of_control_groups_counts_too(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("5:cpu,cpuacct:/x\n4:memory:/box\n")
    limits = {"memory__limit_in_bytes": "2000", "memory__usage_in_bytes": "500"}
    group(tmp_path / "groups" / "memory" / "box", **limits, memory__stat="total_inactive_file 7\n")
    group(tmp_path / "groups" / "memory", memory__limit_in_bytes=str(2**63 - 4096), memory__usage_in_bytes="9")
    assert free_memory(tmp_path / "groups", own) == 2000 - 500 + 7
