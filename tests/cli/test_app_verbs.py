"""`ishrink app`: what it writes, prints and refuses."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.app.server import SiteServer
from optimum_ishrink.cli.program import main
from tests.helpers.app_site import install_page, write_tiny
from tests.helpers.refusals import refusal


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two models and a built page, from which a server ends at once."""
    install_page(monkeypatch, tmp_path / "page")
    write_tiny(tmp_path / "small.gguf")
    write_tiny(tmp_path / "large.gguf", seed=1, tokenizer__chat_template="{{ other }}")
    monkeypatch.chdir(tmp_path)

    def interrupt(self: SiteServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SiteServer, "serve_forever", interrupt)
    return tmp_path


def test_it_writes_a_site(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["app", "--model", "small.gguf", "--base", "large.gguf", "--output", "site"]) == 0
    out = capsys.readouterr().out
    assert "small beside large" in out and "q8_0" in out
    assert "the models have different chat templates" in out
    assert "Written to site" in out and "ishrink app --serve --output site" in out
    assert json.loads((place / "site" / "models.json").read_text())["models"][1]["role"] == "base"


def test_json_prints_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["app", "--model", "small.gguf", "--output", "site", "--title", "Mine", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["output"], found["title"], list(found["models"])) == ("site", "Mine", ["shrunk"])
    assert main([*words, "--overwrite", "--serve"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["title"] == "Mine"
    assert "On this machine:" in captured.err
    assert main(["app", "--output", "site", "--serve", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"output": "site"}


def test_it_serves_what_it_wrote_and_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["app", "--model", "small.gguf", "--output", "site", "--serve"]) == 0
    out = capsys.readouterr().out
    assert "Written to site" in out and "Serve it:" not in out
    assert "On this machine:       http://localhost:" in out and out.endswith("Ended.\n")
    assert main(["app", "--output", "site", "--serve", "--host", "0.0.0.0"]) == 0
    assert "http://localhost:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--output site", "name the model with --model, or pass --serve for a site that is there"),
        ("--output site --serve", "site is not a site of `ishrink app`; name its folder with --output"),
        ("--output site --serve --base small.gguf", "--base belongs to writing a site: name its model with --model"),
        ("--output site --serve --overwrite", "--overwrite belongs to writing a site"),
        ("--output site --serve --part-size 1MB", "--part-size belongs to writing a site"),
        ("--output site --model small.gguf --port 80", "--port says how the site is served; pass --serve, too"),
        ("--output site --model small.gguf --serve --port 0", "port must be a whole number of at least 1"),
        ("--output site --model small.gguf --part-size 3", "part_size '3' is not of the form 24MB"),
        ("--output site --model nowhere.gguf", "nowhere.gguf does not exist"),
        ("--output site --model .", "holds no checkpoint; name the GGUF file itself, such as large.gguf"),
        ("--output site --model page/main.js", "is not a GGUF file"),
        ("--output site --model small.gguf --base nowhere/x/y", "nowhere/x/y does not exist"),
        ("--output site --model small.gguf --quantization q4_0", "--quantization is what checkpoints are exported as"),
        ("--output site --model small.gguf --probes", "--probes are made of a checkpoint, whose sizes a search"),
        ("--output page --model small.gguf", "page is not empty; name another folder or pass --overwrite"),
        ("--output small.gguf --model small.gguf", "small.gguf is a file; name a folder"),
        ("--model small.gguf", "the following arguments are required: --output"),
    ],
)
def test_requests_that_are_refused(words: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.rglob("*"))
    assert message in refusal(["app", *shlex.split(words)], capsys)
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-99], "is cut short: its header tells of"),
        (lambda data: data[:99], "its header is cut off"),
        (lambda data: b"JUNK" + data[4:], "is not a GGUF file"),
    ],
)
def test_files_that_are_damaged(damage: Any, message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "bad.gguf").write_bytes(damage((place / "small.gguf").read_bytes()))
    for words in (["--model", "bad.gguf"], ["--model", "small.gguf", "--base", "bad.gguf"]):
        assert message in refusal(["app", "--output", "site", *words], capsys)
    assert not (place / "site").exists()


def test_a_page_that_is_not_built(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("optimum_ishrink.app.built_page.PAGE", place / "none")
    found = refusal(["app", "--model", "small.gguf", "--output", "site"], capsys)
    assert found == "the page is not built: run make app in a clone, or install the wheel"
