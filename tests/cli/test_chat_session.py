"""The commands of a chat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.chat.conversation import Conversation
from optimum_ishrink.chat.options import ChatOptions
from optimum_ishrink.cli.chat_session import COMMANDS, ChatSession, save_conversation
from optimum_ishrink.cli.chat_terminal import Terminal
from optimum_ishrink.errors import OutputError, RequestError
from tests.helpers.talkers import speaker

OPTIONS = ChatOptions(greedy=True, max_new_tokens=4)


def session(*, base: bool = False, stoppable: bool = True) -> tuple[Conversation, ChatSession]:
    talk = Conversation(speaker(), speaker(seed=1) if base else None, OPTIONS)
    return talk, ChatSession(talk, Terminal(talk), stoppable=stoppable)


def test_prompts_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    talk, chat = session()
    assert chat.run(["Hello", "/system Be brief.", "//root is what?", "/clear", "/exit", "never"]) == 5
    assert talk.turns == []
    assert talk.system == "Be brief."
    out = capsys.readouterr().out
    assert out.count("first token") == 2
    assert "The system prompt is set." in out
    assert "This is a new conversation." in out
    chat.run(["//root?", "/system"])
    assert [turn.prompt for turn in talk.turns] == ["/root?"]
    assert talk.system is None


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    _, chat = session()
    chat.run(["/help"])
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_regenerating_says_when_nothing_will_change(capsys: pytest.CaptureFixture[str]) -> None:
    talk, chat = session()
    chat.run(["Hello", "/regenerate"])
    assert len(talk.turns) == 1
    assert "Decoding is greedy, so the answer will be the same" in capsys.readouterr().out


def test_differences_are_shown_until_they_are_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    _, chat = session(base=True)
    chat.run(["Hello"])
    out = capsys.readouterr().out
    assert out.index("tiny-0 (shrunk)") < out.index("tiny-1 (base)") < out.index("Differences: [-base alone-]")
    chat.run(["/diff", "Hello"])
    out = capsys.readouterr().out
    assert out.index("tiny-1 (base)") < out.index("tiny-0 (shrunk)")
    assert "Differences:" not in out
    chat.run(["/diff", "/regenerate"])
    assert "Differences:" in capsys.readouterr().out


def test_a_model_beside_itself_gives_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    talk = Conversation(speaker(), speaker(), OPTIONS)
    ChatSession(talk, Terminal(talk), stoppable=True).run(["Hello"])
    assert "Both answers are the same, word for word." in capsys.readouterr().out


def test_a_conversation_is_saved_and_saved_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk, chat = session(base=True)
    path = tmp_path / "my talk.json"
    chat.run([f"/save {path}"])
    assert "nothing to save" in capsys.readouterr().out
    chat.run(["Hello", f"/save {path}", "More", f"/save {path}"])
    assert json.loads(path.read_text()) == json.loads(json.dumps(talk.to_json()))
    assert len(talk.turns) == 2
    (tmp_path / "other.json").write_text("mine")
    chat.run([f"/save {tmp_path / 'other.json'}"])
    assert "already exists" in capsys.readouterr().out
    assert (tmp_path / "other.json").read_text() == "mine"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["my talk.json", "other.json"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("talk.txt", "does not end in .json"),
        ("nowhere/talk.json", "is not a folder; create it first"),
        ("folder.json", "is a folder; name a file in it"),
    ],
)
def test_a_file_that_cannot_be_saved(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    talk, _ = session()
    with pytest.raises(OutputError, match=message):
        save_conversation(talk, tmp_path / name)
    assert [each.name for each in tmp_path.iterdir()] == ["folder.json"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/regenrate", r"unknown command '/regenrate' \(did you mean '/regenerate'\?\); /help lists them"),
        ("/regenerate", "nothing was asked yet; write a prompt first"),
        ("/save", "name the file: /save FILE.json"),
        ("/save talk.json", "nothing was asked yet, so there is nothing to save"),
        ("/diff", "one model has nothing to differ from; start the chat with --base"),
    ],
)
def test_what_cannot_be_done_is_said_to_a_person_and_raised_in_a_script(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, chat = session(stoppable=False)
    with pytest.raises(RequestError, match=message):
        chat.run([line])
    _, chat = session()
    capsys.readouterr()
    assert chat.run([line, "Hello"]) == 2
    out = capsys.readouterr().out
    assert out.startswith("error: ")
    assert out.splitlines()[1:2] == [""]
    assert "first token" in out


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk, chat = session(base=True)
    show, stops = Terminal.text, iter([True])

    def interrupt(terminal: Terminal, piece: str) -> None:
        show(terminal, piece)
        if next(stops, False):
            raise KeyboardInterrupt

    monkeypatch.setattr(Terminal, "text", interrupt)
    assert chat.run(["Hello", "More"]) == 2
    first, second = talk.turns
    assert [answer.ended for answer in first.answers.values()] == ["user", "length"]
    assert [answer.ended for answer in second.answers.values()] == ["length", "length"]
    assert talk.messages("shrunk", "x")[1]["content"] == first.answers["shrunk"].text != ""
    assert "stopped" in capsys.readouterr().out


@pytest.mark.parametrize("stoppable", [False, True])
def test_ctrl_c_between_answers(
    stoppable: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk, chat = session(stoppable=stoppable)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(talk, "ask", interrupt)
    if stoppable:
        assert chat.run(["Hello"]) == 1
        assert "Stopped." in capsys.readouterr().out
    else:
        with pytest.raises(KeyboardInterrupt):
            chat.run(["Hello"])
