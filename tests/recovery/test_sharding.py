"""Fully sharded training: two processes that share a model's weights train as one that has all of them."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from optimum_ishrink.checkpoint.loading import load_model
from optimum_ishrink.errors import RequestError
from optimum_ishrink.recovery.sharding import check_sharding, loading_device, set_tensors, share_layers, whole_tensors
from optimum_ishrink.recovery.teacher import LiveTeacher
from optimum_ishrink.recovery.trainer import RecoveryTrainer
from tests.helpers.recovery_runs import changed, recover, recovered
from tests.helpers.small_recovery import go, settings
from tests.helpers.tiny import save_tiny, tiny_config
from tests.helpers.torchrun import torchrun

ROOT = Path(__file__).parents[2]
SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}


def command(small: Path, output: Path, words: list[str]) -> list[str]:
    return [*torchrun(), "recover", "--model", str(small), "--output", str(output), *words]


def run(small: Path, output: Path, words: list[str]) -> None:
    """Run a recovery to its end in two processes that share the weights."""
    environment = {**os.environ, **SHARDED}
    done = subprocess.run(command(small, output, words), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a launcher with the processes that it started: they have sessions of their own."""
    own = psutil.Process(process.pid)
    for each in [*own.children(recursive=True), own]:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def check_alike(one: Path, two: Path) -> None:
    curves = [torch.tensor(recovered(each)["held_out_losses"]) for each in (one, two)]
    torch.testing.assert_close(curves[1], curves[0], atol=1e-3, rtol=1e-3)
    weights = [load_file(each / "model.safetensors") for each in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        ["--recovery-train", "full"],
        [],
        ["--recovery-compensation", "ridge"],
        ["--recovery-train", "full", "--recovery-compensation", "ridge"],
    ],
    ids=["full", "lora", "re-fit", "re-fit-full"],
)
def test_two_processes_that_share_the_weights_train_as_one(
    how: list[str], small: Path, flags: list[str], tmp_path: Path
) -> None:
    words = [*flags, "--no-evaluate", "--recovery", "kl+ce:0.1", *how]
    assert recover(small, tmp_path / "one", words) == 0
    run(small, tmp_path / "two", words)
    assert recovered(tmp_path / "two")["processes"] == 2
    check_alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_teacher_that_samples_first_is_shared_afterwards(small: Path, flags: list[str], tmp_path: Path) -> None:
    words = [*changed(flags, recovery_data="self"), "--no-evaluate", "--recovery", "kl"]
    assert recover(small, tmp_path / "one", words) == 0
    run(small, tmp_path / "two", words)
    check_alike(tmp_path / "one", tmp_path / "two")


def test_models_that_are_shared_are_loaded_beside_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    assert loading_device(device) == device
    monkeypatch.setattr("optimum_ishrink.recovery.sharding.shares_weights", lambda: True)
    assert loading_device(device) == torch.device("cpu")


def test_the_student_is_shared_before_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    measure = RecoveryTrainer.held_out_loss

    def held_out_loss(trainer: RecoveryTrainer) -> dict[str, float]:
        seen.append("runs")
        return measure(trainer)

    monkeypatch.setattr(RecoveryTrainer, "held_out_loss", held_out_loss)
    monkeypatch.setattr(RecoveryTrainer, "share_weights", lambda _: seen.append("is shared"))
    go(tmp_path)
    assert seen[:2] == ["is shared", "runs"] and seen.count("is shared") == 1


@pytest.mark.slow
def test_a_sharded_run_that_was_killed_goes_on(small: Path, flags: list[str], tmp_path: Path) -> None:
    words = [*changed(flags, recovery_tokens="3200"), "--no-evaluate", "--recovery-train", "full"]
    assert recover(small, tmp_path / "one", words) == 0
    first = subprocess.Popen(
        command(small, tmp_path / "two", words),
        env={**os.environ, **SHARDED},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (tmp_path / ".two.recovery/checkpoint-2").is_dir() and first.poll() is None:
        time.sleep(0.01)
    kill(first)
    assert not (tmp_path / "two").exists()
    run(small, tmp_path / "two", words)
    assert recovered(tmp_path / "two")["resumed_from_step"] >= 2
    assert json.loads((tmp_path / "two" / "ishrink_report.json").read_text())["recovery"]["processes"] == 2
    check_alike(tmp_path / "one", tmp_path / "two")


def share(process: int, folder: Path) -> None:
    """Run a teacher whose layers two processes share, and save what this one holds and computes."""
    model = load_model(folder, torch.bfloat16, torch.device("cpu"))
    store = torch.distributed.FileStore(str(folder / "rendezvous"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=process, world_size=2)
    try:
        layers = [f"model.layers.{layer}" for layer in range(model.config.num_hidden_layers)]
        assert share_layers(model, layers, torch.device("cpu")) is model
        teacher = LiveTeacher(model, layers=True, values=True)
        for ids in (torch.arange(12).view(2, 6), torch.arange(24).view(2, 12)):
            lesson = teacher.teach(ids, torch.arange(2))
        layers = [each for name, each in model.named_parameters() if ".layers." in name]
        held = sum(each.to_local().numel() for each in layers if isinstance(each, DTensor))
        assert lesson.distribution is not None
        torch.save((held, lesson.distribution(slice(None)), *lesson.layers), folder / f"{process}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "deepseek_v3"])  # whose router is in float32, whatever the rest is in
def test_two_processes_hold_half_of_the_teachers_layers_each(model_type: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, tiny_config(model_type))
    torch.multiprocessing.spawn(share, args=(folder,), nprocs=2)  # type: ignore[no-untyped-call]
    model = load_model(folder, torch.bfloat16, torch.device("cpu"))
    lesson = LiveTeacher(model, layers=True).teach(torch.arange(24).view(2, 12), torch.arange(2))
    assert lesson.distribution is not None
    count = sum(each.numel() for name, each in model.named_parameters() if ".layers." in name)
    for process in range(2):
        held, logits, *layers = torch.load(folder / f"{process}.pt", weights_only=True)
        assert held == pytest.approx(count / 2, rel=0.05)  # rows are shared, and may be odd
        torch.testing.assert_close(logits, lesson.distribution(slice(None)))
        for one, two in zip(layers, lesson.layers, strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.slow
def test_a_sharded_teacher_of_layers_and_values_trains_as_one_that_is_whole(
    small: Path, flags: list[str], tmp_path: Path
) -> None:
    words = [*flags, "--recovery", "kl+hidden:0.1+attention:0.1"]
    assert recover(small, tmp_path / "one", words) == 0
    run(small, tmp_path / "two", words)
    check_alike(tmp_path / "one", tmp_path / "two")
    reports = [json.loads((tmp_path / each / "ishrink_report.json").read_text()) for each in ("one", "two")]
    metrics = [[each["metric"] for each in report["shrunk"]["quality"]] for report in reports]
    assert "kl_divergence" in metrics[0] and metrics[1] == metrics[0]  # by the base, whole again


def test_only_the_second_version_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(RequestError, match="set fsdp_version: 2 in accelerate's configuration"):
        check_sharding(settings(), sparse=False)
    monkeypatch.setenv("FSDP_VERSION", "2")
    check_sharding(settings(), sparse=False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    monkeypatch.delenv("FSDP_VERSION")
    check_sharding(settings(), sparse=True)


def test_what_needs_whole_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    quantised, averaged, decayed = settings(for_="q4_0"), settings(ema=0.9), settings(layer_decay=0.9)
    for options in (quantised, averaged, decayed):
        check_sharding(options, sparse=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(RequestError, match="recovery_for quantises whole weights, and FSDP spreads them"):
        check_sharding(quantised, sparse=False)
    for options, sparse in ((averaged, False), (decayed, False), (settings(), True)):
        with pytest.raises(RequestError, match="fully sharded training holds parts of the weights"):
            check_sharding(options, sparse=sparse)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_configurations(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.num_processes == 2 and config.mixed_precision == "no"
    sharded = config.distributed_type == "FSDP"
    assert sharded == (path.stem == "fsdp")
    assert not sharded or config.fsdp_config["fsdp_version"] == 2


def test_tensors_that_are_in_one_process_are_whole() -> None:
    parameters = {"a": torch.nn.Parameter(torch.zeros(2, 3))}
    set_tensors(parameters, {"a": torch.ones(2, 3)})
    assert torch.equal(whole_tensors(parameters)["a"], torch.ones(2, 3))
    assert not whole_tensors(parameters)["a"].requires_grad
