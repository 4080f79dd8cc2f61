"""What a chat prints: model output stays text, and its figures stand below it."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from optimum_ishrink.chat.answer import Answer
from optimum_ishrink.chat.conversation import Conversation, Turn
from optimum_ishrink.chat.options import ChatOptions
from optimum_ishrink.cli.chat_terminal import Terminal, escaped, figures_line, read_prompts, settings_line
from optimum_ishrink.errors import RequestError
from tests.helpers.talkers import speaker

HOSTILE = "a\x1b]0;owned\x07b\x1b[2Jc\r\x00\x7f\x9b31m [bold]d[/bold] <img onerror=x>\n\te"


def answer(text: str = "", **changes: Any) -> Answer:
    values: dict[str, Any] = {
        "tokens": 3,
        "prompt_tokens": 5,
        "cached_tokens": 0,
        "first_token_seconds": 0.25,
        "decode_tokens_per_second": 40.0,
        "total_seconds": 0.3,
        "ended": "stop",
    }
    return Answer(text=text, **{**values, **changes})


def conversation(*, base: bool = False) -> Conversation:
    return Conversation(speaker(), speaker(seed=1) if base else None, ChatOptions(max_new_tokens=4))


def test_control_characters_are_written_out() -> None:
    shown = escaped(HOSTILE)
    assert shown == (r"a\x1b]0;owned\x07b\x1b[2Jc\x0d\x00\x7f\x9b31m [bold]d[/bold] <img onerror=x>" + "\n\te")
    assert escaped("Füße 你好 👩‍🚀\n\t") == "Füße 你好 👩‍🚀\n\t"


@pytest.mark.parametrize("colour", [False, True])
def test_model_output_cannot_drive_the_terminal(
    colour: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if colour:
        monkeypatch.setenv("FORCE_COLOR", "1")
    talk = conversation(base=True)
    terminal = Terminal(talk)
    for piece in HOSTILE:
        terminal.text(piece)
    terminal.end("shrunk", answer(HOSTILE))
    terminal.differences(Turn("x", None, {"base": answer("[red]x\x1b[2J"), "shrunk": answer(HOSTILE)}))
    terminal.line(HOSTILE)
    out = capsys.readouterr().out
    assert out.startswith(escaped(HOSTILE) + "\n")
    assert out.count("[bold]d[/bold]") == 3
    assert "[-[red]x\\x1b[2J-]" in out
    assert "\x1b]" not in out and "\x1b[2J" not in out
    assert ("\x1b[" in out) is colour
    assert not set(out) & set("\r\x00\x07\x7f\x9b")


def test_text_that_the_terminal_cannot_show(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    terminal = Terminal(conversation())
    terminal.text("nö")
    terminal.line("é")
    stream.seek(0)
    assert stream.read() == "n\\xf6\\xe9\n"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "first token 0.25 s, 40.0 tokens/s, 3 tokens in 0.30 s"),
        ({"tokens": 1, "decode_tokens_per_second": None}, "first token 0.25 s, 1 token in 0.30 s"),
        ({"ended": "user"}, "first token 0.25 s, 40.0 tokens/s, 3 tokens in 0.30 s, stopped"),
        ({"ended": "length", "tokens": 4}, "4 tokens in 0.30 s, cut off (--max-new-tokens)"),
        ({"ended": "length", "tokens": 1_019}, "in 0.30 s, cut off: the model's 1,024 positions are full"),
        ({"total_seconds": 123.4}, "3 tokens in 123 s"),
        (
            {"tokens": 0, "first_token_seconds": None, "decode_tokens_per_second": None, "ended": "user"},
            "0 tokens in 0.30 s, stopped",
        ),
    ],
)
def test_figures(changes: dict[str, Any], line: str) -> None:
    assert figures_line(answer(**changes), 1_024).endswith(line)


def test_how_answers_are_generated_is_said() -> None:
    talk = conversation(base=True)
    talk.compute = {"device": "cpu", "dtype": "float32", "threads": 2}
    assert settings_line(talk) == (
        "cpu, float32, 2 threads; greedy, up to 4 tokens an answer. The models have been warmed up, which no figure "
        "counts."
    )
    talk.speakers["base"].model.generation_config.update(do_sample=True, temperature=0.5)
    assert "tiny-0: greedy, up to 4 tokens an answer; tiny-1: sampling, temperature 0.5" in settings_line(talk)


def prompts(monkeypatch: pytest.MonkeyPatch, lines: Sequence[str], *, asks: bool) -> list[str]:
    if not asks:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        return list(read_prompts(asks=False))
    left = iter(lines)

    def read(_: str) -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    return list(read_prompts(asks=True))


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["one", "two"], ["one", "two"]),
        (["one\\", "two\\", "", "three"], ["one\ntwo\n", "three"]),
        (["", "  ", "one"], ["one"]),
        (["\ufeffone"], ["one"]),
        (["one\\"], ["one"]),
        ([], []),
    ],
)
def test_prompts_are_lines(lines: list[str], expected: list[str], asks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prompts(monkeypatch, lines, asks=asks) == expected


def test_what_is_pasted_is_one_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prompts(monkeypatch, ["one\ntwo", "three"], asks=True) == ["one\ntwo", "three"]


def test_input_that_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    with pytest.raises(RequestError, match="standard input is not UTF-8 text"):
        list(read_prompts(asks=False))
