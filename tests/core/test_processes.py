from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
import torch

from optimum_ishrink.cli.program import main
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.core.processes import (
    connect,
    from_main_process,
    is_main_process,
    process_count,
    process_share,
    summed,
    summed_count,
    wait_for_all,
)
from optimum_ishrink.report.plan import Plan
from tests.helpers.warm_process import run_together, run_warm


def test_one_process_is_alone() -> None:
    device = torch.device("cpu")
    assert (process_count(), is_main_process(), connect(device)) == (1, True, device)
    assert list(process_share([1, 2, 3])) == [1, 2, 3]
    assert from_main_process("x") == "x"
    assert summed_count(3, device) == 3
    assert torch.equal(summed(torch.ones(2)), torch.ones(2))
    wait_for_all()


@pytest.mark.parametrize(
    ("importance", "layer_importance", "launched"),
    [("taylor", "block-influence", False), pytest.param("fisher", "perplexity", True, marks=pytest.mark.slow)],
)
def test_two_processes_make_the_same_plan_as_one(
    importance: str, layer_importance: str, launched: bool, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    def shrink(output: Path) -> list[str]:
        arguments = ["shrink", "--model", str(llama_folder), "--output", str(output), "--num-hidden-layers", "3"]
        arguments += ["--intermediate-size", "16", "--num-key-value-heads", "2", "--importance", importance]
        arguments += ["--layer-importance", layer_importance, "--calibration", str(text_file)]
        arguments += ["--calibration-samples", "10", "--calibration-length", "16", "--no-evaluate", "--no-benchmark"]
        arguments += ["--no-score-cache", "--dtype", "float32", "--device", "cpu"]
        return arguments

    assert main(shrink(tmp_path / "one")) == 0
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = ["-m", "optimum_ishrink", *shrink(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if launched:
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
        all_done = [run_warm([sys.executable, *launcher, *command], env=environment)]
    else:  # what the launcher sets
        environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        ranks = [{**environment, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
        all_done = run_together([[sys.executable, *command]] * 2, envs=ranks)
    for done in all_done:
        assert done.returncode == 0, done.stderr
    assert sum(done.stdout.count("Written to") for done in all_done) == 1  # one of them speaks
    one, two = (Plan.from_json(read_json(tmp_path / name / "ishrink_plan.json")) for name in ("one", "two"))
    assert (one.layers, one.units) == (two.layers, two.units)
