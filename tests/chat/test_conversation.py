from __future__ import annotations

import json
from typing import Any

import pytest

from optimum_ishrink.chat.answer import Answer
from optimum_ishrink.chat.conversation import Conversation, Listener, Role, check_messages
from optimum_ishrink.chat.options import ChatOptions
from optimum_ishrink.chat.speaker import Speaker
from optimum_ishrink.errors import RequestError
from tests.helpers.talkers import speaker, talking_tokenizer

OPTIONS = ChatOptions(greedy=True, max_new_tokens=6)


class Notes(Listener):
    def __init__(self) -> None:
        self.roles: list[str] = []
        self.texts: list[str] = []
        self.answers: list[Answer] = []

    def begin(self, role: Role, speaker: Speaker) -> None:
        self.roles.append(role)
        self.texts.append("")

    def text(self, piece: str) -> None:
        self.texts[-1] += piece

    def end(self, role: Role, answer: Answer) -> None:
        self.answers.append(answer)


def test_two_models_take_turns_and_each_remembers_its_own_answers() -> None:
    talk, notes = Conversation(speaker(), speaker(seed=1), OPTIONS), Notes()
    first = talk.ask("Hello", notes)
    second = talk.ask("More", notes)
    assert notes.roles == ["shrunk", "base", "base", "shrunk"]
    assert list(first.answers) == ["shrunk", "base"] != list(second.answers)
    assert notes.texts == [answer.text for turn in talk.turns for answer in turn.answers.values()]
    assert first.answers["shrunk"].text != first.answers["base"].text
    for role, seed in (("shrunk", 0), ("base", 1)):
        messages = talk.messages(role, "Last")  # type: ignore[arg-type]
        assert [each["content"] for each in messages[::2]] == ["Hello", "More", "Last"]
        alone = Conversation(speaker(seed=seed), None, OPTIONS)
        assert [alone.ask(text).answers["shrunk"].text for text in ("Hello", "More")] == [
            each["content"] for each in messages[1::2]
        ]


def test_an_answer_does_not_depend_on_who_answers_first() -> None:
    hot = ChatOptions(temperature=3.0, max_new_tokens=6)
    one, other = (Conversation(speaker(), speaker(), hot, seed=seed) for seed in (4, 4))
    other._asked = 0
    for talk in (one, other):
        turn = talk.ask("Hello")
        assert turn.answers["shrunk"].text == turn.answers["base"].text  # one model, one seed
    assert one.ask("More").answers["base"].text == one.turns[-1].answers["shrunk"].text
    assert one.samples


def test_regenerating_replaces_the_last_answers_by_others() -> None:
    talk = Conversation(speaker(), None, ChatOptions(temperature=5.0, max_new_tokens=12))
    with pytest.raises(RequestError, match="nothing was asked yet"):
        talk.regenerate()
    old = talk.ask("Hello")
    new = talk.regenerate()
    assert talk.turns == [new]
    assert new.prompt == old.prompt
    assert new.answers["shrunk"].text != old.answers["shrunk"].text
    assert new.answers["shrunk"].cached_tokens == new.answers["shrunk"].prompt_tokens - 1
    greedy = Conversation(speaker(), None, OPTIONS)
    assert not greedy.samples
    assert greedy.ask("Hello").answers["shrunk"].text == greedy.regenerate().answers["shrunk"].text


def test_a_regeneration_that_fails_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Conversation(speaker(), None, OPTIONS)
    turn = talk.ask("Hello")

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(talk.speakers["shrunk"], "answer", fail)
    with pytest.raises(KeyboardInterrupt):
        talk.regenerate()
    assert talk.turns == [turn]


def test_the_system_prompt_comes_first_and_can_change() -> None:
    talk = Conversation(speaker(), None, OPTIONS.replace(system="Be brief."))
    talk.ask("Hello")
    assert talk.messages("shrunk", "x")[0] == {"role": "system", "content": "Be brief."}
    talk.set_system(None)
    assert talk.messages("shrunk", "x")[0]["role"] == "user"
    assert talk.turns[0].system == "Be brief."
    plain = Speaker(talk.speakers["shrunk"].model, talking_tokenizer(None), "plain")
    with pytest.raises(RequestError, match="plain has no chat template"):
        Conversation(plain, None, OPTIONS.replace(system="Be brief."))


def test_a_full_context_is_refused_before_anyone_answers() -> None:
    notes = Notes()
    talk = Conversation(speaker(max_position_embeddings=256), speaker(seed=1, max_position_embeddings=48), OPTIONS)
    talk.ask("Hello", notes)
    with pytest.raises(RequestError, match="tiny-1 reads and writes at most 48"):
        talk.ask("Hello once more, and at some length", notes)
    assert notes.roles == ["shrunk", "base"]
    assert len(talk.turns) == 1
    talk.clear()
    assert talk.turns == []
    assert talk.ask("Hello").answers["base"].cached_tokens == 0


def test_a_record_has_models_settings_and_figures() -> None:
    talk = Conversation(speaker(), speaker(seed=1), OPTIONS, seed=3, compute={"device": "cpu"})
    talk.ask("Hello")
    found = json.loads(json.dumps(talk.to_json()))
    assert (found["schema"], found["kind"], found["seed"], found["device"]) == (1, "ishrink-conversation", 3, "cpu")
    assert [model["role"] for model in found["models"]] == ["shrunk", "base"]
    assert found["models"][0]["generation"]["max_new_tokens"] == 6
    assert found["turns"][0]["prompt"] == "Hello"
    assert [each["role"] for each in found["turns"][0]["answers"]] == ["shrunk", "base"]
    assert found["turns"][0]["answers"][0]["tokens"] == 6


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(RequestError, match="the prompt is empty"):
        Conversation(speaker(), None, OPTIONS).ask(prompt)


def test_a_prompt_that_is_no_text_is_refused() -> None:
    with pytest.raises(RequestError, match="bytes that are no UTF-8 text"):
        Conversation(speaker(), None, OPTIONS).ask("a\udcff")


def test_messages_of_a_request() -> None:
    assert check_messages("Hello") == [{"role": "user", "content": "Hello"}]
    for wrong in ([], None, 3, ["Hello"], [{"role": "user"}], [{"role": "user", "content": ["x"]}]):
        with pytest.raises(RequestError, match="messages must be a text, or a list of messages"):
            check_messages(wrong)
    for last in ([{"role": "assistant", "content": "x"}], "", [{"role": "user", "content": " "}]):
        with pytest.raises(RequestError, match="the last message must be a text of the user"):
            check_messages(last)
