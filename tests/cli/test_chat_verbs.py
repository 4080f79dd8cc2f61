"""`ishrink chat`: at a terminal, with prompts from a pipe, and for one question."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.cli.program import main
from tests.helpers.refusals import refusal
from tests.helpers.talkers import save_talker


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_talker(tmp_path_factory.mktemp("talkers") / "small")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_talker(tmp_path_factory.mktemp("talkers") / "large", seed=1)


def words(model: Path, *more: str) -> list[str]:
    return ["chat", "--model", str(model), "--dtype", "float32", "--device", "cpu", "--max-new-tokens", "4", *more]


def pipe(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def type_in(monkeypatch: pytest.MonkeyPatch, lines: Iterable[str | type[BaseException]]) -> None:
    """Let a person type lines at a terminal, or do what raises."""
    left = iter(lines)

    def read(_: str) -> str:
        line = next(left)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read)
    stdin = io.StringIO()
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", stdin)


def test_one_question(talker: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(talker, "--base", str(other), "--prompt", "Hello")) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("small (shrunk)\n")
    for text in ("large (base)\n", "first token ", "Differences: [-base alone-] {+shrunk alone+}"):
        assert text in captured.out
    assert "you> " not in captured.out
    assert captured.err.startswith("small beside its base large: cpu, float32, ")
    assert "warmed up, which no figure counts" in captured.err


def test_json_is_one_object(talker: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = words(talker, "--base", str(other), "--json", "--seed", "7", "--temperature", "2")
    assert main([*arguments, "--prompt", "Hello"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out)
    assert out.count("\n") == 1
    assert [model["name"] for model in found["models"]] == ["small", "large"]
    assert found["models"][0]["generation"]["temperature"] == 2
    assert (found["seed"], found["device"], found["dtype"]) == (7, "cpu", "float32")
    (turn,) = found["turns"]
    for answer in turn["answers"]:
        assert answer["tokens"] <= 4
        assert answer["first_token_seconds"] > 0
        assert answer["total_seconds"] >= answer["first_token_seconds"]
    assert main([*arguments, "--prompt", "Hello"]) == 0
    again = json.loads(capsys.readouterr().out)["turns"][0]
    assert [each["text"] for each in again["answers"]] == [each["text"] for each in turn["answers"]]


def test_prompts_from_a_pipe(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, "Hello\n\nAnd then?\n")
    assert main(words(talker)) == 0
    out = capsys.readouterr().out
    assert out.count("first token") == 2
    assert out.startswith("you> Hello\n")
    pipe(monkeypatch, "Hello\nAnd \\\nthen?")
    assert main(words(talker, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert [turn["prompt"] for turn in found["turns"]] == ["Hello", "And \nthen?"]
    assert found["turns"][1]["answers"][0]["cached_tokens"] > 0
    pipe(monkeypatch, "/exit\nHello\n")
    assert main(words(talker)) == 0


def test_what_was_answered_before_an_error_is_printed(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, f"Hello\n{'x' * 600}\nHello\n")
    assert main(words(talker, "--json")) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert len(found["turns"]) == 1
    assert "reads and writes at most 512 in all" in found["failures"][0]["reason"]
    assert "ishrink chat: incomplete: the conversation has" in captured.err
    pipe(monkeypatch, "x" * 600)
    assert main(words(talker, "--json")) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("leaving", [EOFError, KeyboardInterrupt, "/exit"])
def test_a_person_at_a_terminal(
    leaving: Any,
    talker: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    type_in(monkeypatch, ["Hello", "/nothing", f"/save {tmp_path / 'talk.json'}", leaving])
    assert main(words(talker)) == 0
    out = capsys.readouterr().out
    assert out.startswith("small\ncpu, float32, ")
    assert "/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves." in out
    assert "error: unknown command '/nothing'" in out
    assert json.loads((tmp_path / "talk.json").read_text())["turns"][0]["prompt"] == "Hello"


def test_ctrl_c_in_a_script_is_an_interruption(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from optimum_ishrink.cli.chat_terminal import Terminal

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Terminal, "text", interrupt)
    pipe(monkeypatch, "Hello\n")
    assert main(words(talker)) == 130
    assert main(words(talker, "--prompt", "Hello")) == 130
    assert "ishrink chat: interrupted" in capsys.readouterr().err


def test_a_model_without_a_template_says_so(talker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = save_talker(tmp_path / "plain", template=None)
    assert main(words(plain, "--prompt", "Hello")) == 0
    assert "plain has no chat template: each prompt is completed as plain text" in capsys.readouterr().err
    odd = save_talker(tmp_path / "odd", template="{{ messages[-1].content }}")
    assert main(words(talker, "--base", str(odd), "--prompt", "Hello")) == 0
    assert "The two have different chat templates; each reads its own." in capsys.readouterr().err
    found = refusal(words(plain, "--prompt", "Hello", "--system", "Be brief."), capsys)
    assert "plain has no chat template, so that a system prompt has no place" in found


REFUSED: list[tuple[Callable[[Path], list[str]], str]] = [
    (lambda model: ["--model", "no/such", "--prompt", "x"], "cannot open model 'no/such'"),
    (lambda model: ["--model", str(model / "nowhere"), "--prompt", "x"], "nowhere does not exist"),
    (
        lambda model: ["--model", str(model), "--base", str(model / "config.json"), "--prompt", "x"],
        "base: ",
    ),
    (
        lambda model: ["--model", str(model), "--base", "../nowhere", "--prompt", "x"],
        "base: ../nowhere does not exist",
    ),
    (lambda model: ["--model", str(model), "--prompt", " "], "the prompt is empty; write a text after --prompt"),
    (lambda model: ["--model", str(model), "--prompt", "\udcff"], "the prompt holds bytes that are no UTF-8 text"),
    (lambda model: ["--model", str(model), "--prompt", "x", "--system", "\udcff"], "bytes that are no UTF-8 text"),
    (lambda model: ["--model", str(model)], "standard input holds no prompt"),
    (lambda model: ["--model", str(model), "--prompt", "x", "--temperature", "0.001"], "temperature must be 0"),
    (
        lambda model: ["--model", str(model), "--prompt", "x", "--temperature", "1", "--greedy"],
        "greedy decoding has no temperature=1; leave out one of the two",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_a_request_that_cannot_be_met(
    arguments: Callable[[Path], list[str]],
    message: str,
    talker: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipe(monkeypatch, "\n")
    assert message in refusal(["chat", *arguments(talker)], capsys, notes=True)


def test_json_for_a_person_is_refused(
    talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, [])
    assert "--json prints one object at the end" in refusal(words(talker, "--json"), capsys)
