"""`export` and `benchmark --runtime llama.cpp` on the command line, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimum_ishrink.cli.program import main


def _fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"ishrink {arguments[0]}: error: ")
    return error


def test_an_export_to_gguf(
    edge_folder: Path, tmp_path: Path, gguf_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "tiny-q8_0.gguf"
    arguments = ["export", "--model", str(edge_folder), "--output", str(target), "--quantization", "q8_0"]
    assert main([*arguments, "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "tiny as q8_0" in out
    assert "KL divergence from the checkpoint" in out
    assert "100 of 100 lines split as the checkpoint's does" in out
    assert f"Written to {target}" in out
    assert target.stat().st_size < gguf_path.stat().st_size
    assert main([*arguments, "--no-verify", "--overwrite", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["bytes"], found["agreement"]) == (target.stat().st_size, None)


def test_an_export_to_safetensors(
    tied_folder: Path, tmp_path: Path, quantized_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    arguments = ["export", "--model", str(tied_folder), "--format", "safetensors", "--output", str(target)]
    assert main([*arguments, "--threads", "1", "--keep-layers", "2"]) == 0
    out = capsys.readouterr().out
    assert "tiny as int8" in out
    assert "embedding, head, norms, all of layer 2: " in out
    assert "KL divergence from the checkpoint" in out
    assert "with torchao installed" in out
    options = ["--quantization", "int4", "--keep-layers", "3,1", "--no-verify"]
    assert main([*arguments, *options, "--overwrite", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["group_size"], found["kept_layers"], found["agreement"]) == (32, [1, 3], None)


def test_bad_exports(tied_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = ["export", "--model", str(tied_folder), "--output", str(tmp_path / "a.gguf")]
    assert _fails([*export, "--keep-layers", "1"], capsys).endswith("--keep-layers belongs to --format safetensors")
    assert "int8 is a quantization of safetensors" in _fails([*export, "--quantization", "int8"], capsys)
    export = ["export", "--model", str(tied_folder), "--output", str(tmp_path / "out"), "--format", "safetensors"]
    for extra, words in (
        (["--quantization", "int4", "--group-size", "48"], "group_size must be one of 32, 64, 128, not 48"),
        (["--threads", "0"], "threads must be a whole number of at least 1, not 0"),
        (["--keep-layers", "a"], "keep_layers must be whole numbers of at least 0"),
        (["--keep-share", "0.5"], "name the analysis with --analysis DIR"),
    ):
        assert words in _fails([*export, *extra], capsys)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    export[2] = str(tmp_path / "model.gguf")
    assert "is a GGUF file" in _fails(export, capsys)
    assert not (tmp_path / "out").exists()


def test_a_benchmark_in_llama_cpp(gguf_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["benchmark", "--runtime", "llama.cpp", "--model", str(gguf_path), "--base", str(gguf_path)]
    arguments += ["--threads", "1", "--benchmark-rounds", "1", "--benchmark-new-tokens", "4"]
    arguments += ["--benchmark-prompt-length", "8"]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["environment"]["runtime"].startswith("xllamacpp ")
    assert report["base"]["params"] == report["shrunk"]["params"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "too few rounds to tell" in out
    assert "1 thread, xllamacpp " in out


def test_the_figures_go_into_the_report(
    edge_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], gguf_path: Path
) -> None:
    small = tmp_path / "small"
    how = ["--importance", "l2-norm", "--layer-importance", "l2-norm", "--compensation", "none"]
    shape = ["--intermediate-size", "64", "--no-evaluate", "--no-benchmark", "--for-runtime", "llama.cpp"]
    assert main(["shrink", "--model", str(edge_folder), "--output", str(small), *how, *shape]) == 0
    run = ["benchmark", "--runtime", "llama.cpp", "--model", str(small), "--base", str(edge_folder), "--threads", "1"]
    run += ["--benchmark-rounds", "1", "--benchmark-new-tokens", "4", "--benchmark-prompt-length", "8"]
    before = (small / "ishrink_report.json").read_text()
    assert main([*run, "--no-update-report"]) == 0
    assert (small / "ishrink_report.json").read_text() == before
    capsys.readouterr()
    assert main(run) == 0
    assert "ishrink_report.json and its card" in capsys.readouterr().err
    report = json.loads((small / "ishrink_report.json").read_text())
    for model in ("base", "shrunk"):
        figures = {entry["metric"]: entry for entry in report[model]["speed"]}
        assert figures["decode_tokens_per_second"]["settings"]["runtime"] == "llama.cpp"
        assert figures["file_bytes"]["value"] > 0
    card = (small / "README.md").read_text()
    assert "| decode, tokens/s | llama.cpp q8_0, prompt 8 |" in card
    assert "speed.png" not in card  # the picture shows PyTorch's


def test_the_plan_says_what_a_runtime_stores_otherwise(edge_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["plan", "--model", str(edge_folder), "--for-runtime", "llama.cpp", "--intermediate-size", "64"]
    assert main([*plan, "--shape-only"]) == 0
    out = capsys.readouterr().out
    assert "What llama.cpp's quantisations do not fit" in out
    assert "q4_k: 8 kinds of matrices fall back" in out or "q4_k: 9 kinds of matrices fall back" in out
    assert "q8_0: every row is a multiple of 32, nothing falls back." in out
