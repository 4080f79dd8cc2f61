"""Conversations: what messages may be, and what a chat template, or none, makes of them."""

from __future__ import annotations

from typing import Any

import pytest

from optimum_ishrink.errors import DataError
from optimum_ishrink.text.rows import read_row
from tests.helpers.tiny import tiny_tokenizer

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
THINKING = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOLS = (
    "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}{{ mood }}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}({{ call.function.name }}){% endfor %}"
    "{% endfor %}"
)


class Chatting:
    """A tokenizer with a chat template of its own."""

    def __init__(self, template: str | None) -> None:
        self.chat_template = template

    def apply_chat_template(self, messages: Any, **how: Any) -> Any:
        return tiny_tokenizer().apply_chat_template(messages, chat_template=self.chat_template, **how)


MESSAGES = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ho"},
    {"role": "user", "content": "why"},
    {"role": "assistant", "content": "so"},
]


def segments(messages: Any, template: str | None, *, answers: bool = True, **row: Any) -> list[tuple[str, bool]]:
    return read_row({"messages": messages, **row}).segments(Chatting(template), answers=answers)


def test_rows_say_what_is_an_answer() -> None:
    plain = Chatting(None)
    row = {"question": "q?", "choices": ["x", "y"], "answer": 1}
    for answers in (True, False):
        assert read_row({"text": "a"}).segments(plain, answers=answers) == [("a", False)]
        pair = read_row({"prompt": "a ", "completion": "b"})
        assert pair.segments(plain, answers=answers) == [("a ", False), ("b", True)]
        assert read_row(row).segments(plain, answers=answers) == [("Question: q?\nAnswer:", False), (" y", True)]
        assert segments(MESSAGES[:2], None, answers=answers) == [
            ("user:", False),
            (" hi\n", False),
            ("assistant:", False),
            (" ho\n", True),
        ]


def test_a_chat_template_writes_messages() -> None:
    assert segments(MESSAGES, CHAT) == [
        ("<user>hi</user><assistant>", False),
        ("ho</assistant>", True),
        ("<user>why</user><assistant>", False),
        ("so</assistant>", True),
    ]
    whole = "<user>hi</user><assistant>ho</assistant><user>why</user><assistant>so</assistant>"
    assert segments(MESSAGES, CHAT, answers=False) == [(whole, False)]


@pytest.mark.parametrize(
    "template", [THINKING, "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"]
)
def test_a_template_that_rewrites_earlier_turns_is_no_obstacle_without_answers(template: str) -> None:
    whole = Chatting(template).apply_chat_template(MESSAGES, tokenize=False)
    assert segments(MESSAGES, template, answers=False) == [(whole, False)]
    with pytest.raises(DataError, match="^the row is a conv.*rewrites earlier turns.*'prompt' and 'completion'"):
        segments(MESSAGES, template)


def test_prompt_and_completion_may_be_messages() -> None:
    row = read_row({"prompt": MESSAGES[:3], "completion": MESSAGES[3:]})
    for template in (CHAT, None):
        for answers in (True, False):
            assert row.segments(Chatting(template), answers=answers) == segments(MESSAGES, template, answers=answers)
    assert row.text() == read_row({"messages": MESSAGES}).text()
    assert read_row({"prompt": None, "completion": MESSAGES[1:2]}).text() == "assistant: ho"
    for prompt, completion in (("hi", MESSAGES[1:2]), (MESSAGES[:1], "ho")):
        with pytest.raises(DataError, match="has a list of messages and a text as 'prompt' and 'completion'; write"):
            read_row({"prompt": prompt, "completion": completion})


GREETED = [{"role": "assistant", "content": "hello"}, *MESSAGES[:2]]


def test_the_assistant_may_open_and_roles_may_be_doubled() -> None:
    assert segments(GREETED, CHAT)[:2] == [("<assistant>", False), ("hello</assistant>", True)]
    first_user = "{% if messages[0].role %}{{ bos_token }}{% endif %}" + CHAT  # cannot write an empty conversation
    strict = "{% if not messages %}{{ raise_exception('no messages') }}{% endif %}" + CHAT
    for template, start in ((first_user, "<s><assistant>"), (strict, "<assistant>")):
        assert segments(GREETED, template)[:2] == [(start, False), ("hello</assistant>", True)]
    doubled = [MESSAGES[0], MESSAGES[0], MESSAGES[1], MESSAGES[3]]
    assert [answer for _, answer in segments(doubled, CHAT)] == [False, True, False, True]


def test_a_prompt_that_the_answer_does_not_begin_with() -> None:
    thinks = CHAT.replace("<assistant>{% endif %}", "<assistant><think>{% endif %}")
    assert segments(MESSAGES[:2], thinks) == [("<user>hi</user><assistant>", False), ("ho</assistant>", True)]
    with pytest.raises(DataError, match="cannot be told from the rest"):
        segments(MESSAGES[:2], "{{ messages | length }}{% if add_generation_prompt %}<assistant>{% endif %}")


REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn, please') }}{% endif %}" + CHAT


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (REFUSING, r"\(no system turn, please\)"),
        ("{{ messages[0].words.first }}", r"\('dict object' has no attribute 'words'\)"),
        ("{{ 'a' + 1 }}", r"\(can only concatenate str"),
        ("{% for %}", r"\(Expected an expression"),
        ("{{ 1 // 0 }}", r"\(.*by zero"),
    ],
)
def test_a_template_that_refuses_is_one_line_with_its_reason(template: str, reason: str, answers: bool) -> None:
    with pytest.raises(DataError, match="^the row is a conversation that the chat template refuses " + reason):
        segments([{"role": "system", "content": "x"}, *MESSAGES], template, answers=answers)


def test_a_template_that_looks_for_parts_gets_them() -> None:
    parts = (
        "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    wanted = [("<user>hi<assistant>", False), ("ho", True), ("<user>why<assistant>", False), ("so", True)]
    assert segments(MESSAGES, parts) == wanted
    # One that writes other words than were said is left alone: it does not look for parts.
    other = "{% for m in messages %}{{ (m.content ~ '') | upper }}{% endfor %}"
    assert segments(MESSAGES, other, answers=False) == [("HIHOWHYSO", False)]


def test_an_empty_conversation_is_blank() -> None:
    for row in ({"messages": []}, {"messages": None}, {"prompt": [], "completion": []}):
        assert read_row(row).text() == ""
        assert read_row(row).segments(Chatting(CHAT), answers=True) == []


CALLING = [
    {"role": "user", "content": "time?"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock", "arguments": {}}}]},
    {"role": "tool", "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "on"}]},
    {"role": "assistant", "content": "noon", "tool_calls": None},
]


@pytest.mark.parametrize("tools", [[{"function": {"name": "clock"}}], '[{"function": {"name": "clock"}}]'])
def test_tools_and_calls_reach_the_template(tools: Any) -> None:
    row = {"tools": tools, "chat_template_kwargs": {"mood": "!"}}
    ((found, _),) = segments(CALLING, TOOLS, answers=False, **row)
    assert found == "[clock]!<user>time?<assistant>(clock)<tool>noon<assistant>noon"
    calls = 'user: time?\nassistant: {"name": "clock", "arguments": {}}\ntool: noon\nassistant: noon'
    assert read_row({"messages": CALLING, **row}).text() == calls
    for none in (None, [], ""):
        assert segments(CALLING, TOOLS, answers=False, tools=none)[0][0].startswith("<user>")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "hi"}, "has a string as 'messages'; write a list of messages"),
        ({"messages": ["hi"]}, "has a string as message 1; write an object"),
        ({"messages": [{"content": "hi"}]}, "has a message 1 without a 'role'"),
        ({"messages": [{"role": 1, "content": "hi"}]}, "has a message 1 without a 'role'"),
        ({"messages": [{"role": "user"}]}, "has a message 1 without 'content'"),
        ({"messages": [{"role": "user", "content": 1}]}, "has a number as 'content'; write it as a string"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "has an object as 'content'"),
        ({"messages": [{"role": "user", "content": True}]}, "has true or false as 'content'"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "has a list as 'content' that holds a string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "has a list as 'content' that holds a part of type 'image'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"text": None}]}]},
            "has a part of 'content' whose 'text' is null",
        ),
        ({"messages": [{"role": "user", "content": "", "tool_calls": "x"}]}, "has 'tool_calls' in message 1 that are"),
        ({"messages": MESSAGES, "tools": "no json"}, "has 'tools' that are no JSON"),
        ({"messages": MESSAGES, "tools": {"a": 1}}, "has 'tools' that are no list of objects"),
        ({"messages": MESSAGES, "chat_template_kwargs": [1]}, "has 'chat_template_kwargs' that are no object"),
    ],
)
def test_messages_that_cannot_be_read(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^the row {message}"):
        read_row(row)
