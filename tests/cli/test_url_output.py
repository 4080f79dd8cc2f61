from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimum_ishrink.cli.program import main
from tests.helpers.memory_storage import failing, memory


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISHRINK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


QUICK = ["--importance", "l2-norm", "--layer-importance", "l2-norm", "--compensation", "none"]
QUICK += ["--no-evaluate", "--no-benchmark", "--num-hidden-layers", "2"]


def _arguments(folder: Path, output: str, *more: str) -> list[str]:
    return ["shrink", "--model", str(folder), "--output", output, *QUICK, *more]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_at_the_url_is_what_a_folder_would_hold(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments(llama_folder, str(tmp_path / "small"))) == 0
    with memory() as files:
        capsys.readouterr()
        assert main(_arguments(llama_folder, "memory://bucket/small")) == 0
        shown = capsys.readouterr().out
        assert "Written to memory://bucket/small (card: memory://bucket/small/README.md)" in shown
        assert "cache" not in shown and "Load it" not in shown
        stored = {path.removeprefix("/bucket/small/"): files.cat_file(path) for path in files.find("/bucket")}
        local = _files(tmp_path / "small")
        assert stored.keys() == local.keys()
        assert stored["model.safetensors"] == local["model.safetensors"]
        assert not _files(tmp_path / "cache" / "outputs")

        assert main(_arguments(llama_folder, "memory://bucket/small")) == 2
        assert "memory://bucket/small is not empty" in capsys.readouterr().err
        assert main(_arguments(llama_folder, "memory://bucket/small", "--overwrite", "--json")) == 0
        assert json.loads(capsys.readouterr().out)["output"] == "memory://bucket/small"


def test_a_refusal_names_the_url(llama_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with memory():
        words = ["export", "--model", str(llama_folder), "--format", "gguf", "--output", "memory://bucket/file"]
        assert main(words) == 2
        assert "memory://bucket/file does not end in .gguf" in capsys.readouterr().err


def test_a_failed_upload_can_be_tried_again(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with failing(at=2) as files:
        assert main(_arguments(llama_folder, "failing://bucket/small")) == 1
        message = capsys.readouterr().err.splitlines()[-1]
        assert "is complete, but cannot be uploaded to failing://bucket/small: PermissionError" in message
        assert not files.exists("/bucket/small/config.json")
        again = message.partition("; ishrink ")[2].removesuffix(" tries again").split()

        files.rm("/bucket/small", recursive=True)
        assert main(_arguments(llama_folder, "failing://bucket/small")) == 2
        assert "is complete, of an earlier run that could not be uploaded" in capsys.readouterr().err
        type(files).fails_at = None
        assert main(again) == 0
        assert files.exists("/bucket/small/config.json")
        assert main([each for each in again if each != "--overwrite"]) == 2
        assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--num-hidden-layers", "2", "--output", "memory://x/plan.json"], "plan writes to this machine"),
        (["push", "--url", "small"], "small is no URL"),
        (["push", "--url", "memory://x/small", "--private"], "--private is for --repo-id"),
    ],
)
def test_what_cannot_be_at_a_url(
    llama_folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([arguments[0], "--model", str(llama_folder), *arguments[1:]]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_not_there_cannot_be_pushed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "--model", str(tmp_path / "none"), "--url", "memory://x/small"]) == 2
    assert "none does not exist; name an output folder" in capsys.readouterr().err


def test_a_dry_run_writes_nothing_at_the_url(llama_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with memory() as files:
        assert main(_arguments(llama_folder, "memory://bucket/small", "--dry-run")) == 0
        assert not files.find("/bucket")
