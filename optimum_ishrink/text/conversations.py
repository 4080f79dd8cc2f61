"""Conversations: lists of messages, and how they are written, plainly or by the tokenizer's chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import DataError, one_line

Segment = tuple[str, bool]
"""A piece of a document, and whether it is an answer."""

MARK = "\u2402"
"""A character that is in no template: where it comes out is where the template writes a turn's words."""

_ASSISTANT = "assistant"


def text_of(value: Any, name: str) -> str:
    """Return a value's text: a text, null (which says nothing), or a list of text parts.

    Args:
        value: The value.
        name: Its key, for messages.

    Raises:
        DataError: It is something else.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        for part in value:
            if not isinstance(part, Mapping) or part.get("type", "text") != "text":
                raise DataError(
                    f"has a list as {name!r} that holds {_kind(part)}; write one text, or text parts alone"
                )
            if not isinstance(part.get("text"), str):
                raise DataError(
                    f"has a part of {name!r} whose 'text' is {_kind(part.get('text'))}; write it as a string"
                )
        return "".join(part["text"] for part in value)
    raise DataError(f"has {_kind(value)} as {name!r}; write it as a string")


def _kind(value: Any) -> str:
    """Name what a value is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, Mapping):
        kind = value.get("type", "text")
        return "an object" if kind == "text" or not isinstance(kind, str) else f"a part of type {kind[:40]!r}"
    return f"a value of type {type(value).__name__}"


@dataclass(frozen=True)
class Conversation:
    """A conversation.

    Args:
        messages: The messages: each has a `role` and, as one text, a `content`, and whatever else a template reads.
        tools: The tools that the assistant may call, as JSON schemas, for templates.
        template_arguments: Further variables of the template.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[Any, ...] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    def plain(self) -> str:
        """Return one turn a line, each `role: content`. A call of a tool is written as JSON."""
        return "\n".join(f"{message['role']}: {_words(message)}" for message in self.messages)

    def segments(self, tokenizer: Any, *, answers: bool) -> list[Segment]:
        """Return what the chat template writes, or plain turns where there is none, each piece an answer or not.

        Args:
            tokenizer: Its chat template, if it has one, writes the messages.
            answers: Whether answers have to be told from the rest.

        Raises:
            DataError: The template refuses the messages, or answers cannot be told from the rest.
        """
        if not getattr(tokenizer, "chat_template", None):
            return [
                piece
                for message in self.messages
                for piece in (
                    (f"{message['role']}:", False),
                    (f" {_words(message)}\n", message["role"] == _ASSISTANT),
                )
            ]
        if not answers:
            return [(self.written(tokenizer, self.messages), False)]
        pieces: list[Segment] = []
        done = ""
        for i, message in enumerate(self.messages):
            if message["role"] == _ASSISTANT:
                answered = self.written(tokenizer, self.messages[: i + 1])
                done = _grow(pieces, done, self._up_to_answer(tokenizer, i, answered), False)
                done = _grow(pieces, done, answered, True)
        _grow(pieces, done, self.written(tokenizer, self.messages), False)
        return pieces

    def written(self, tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, prompt: bool = False) -> str:
        """Return messages as the chat template writes them.

        Args:
            tokenizer: Its chat template writes them.
            messages: The messages; none for what the template writes in front of all.
            prompt: Whether the assistant's turn is begun after them.

        Raises:
            DataError: The template refuses them, with its own reason.
        """
        how: dict[str, Any] = {**({"tools": list(self.tools)} if self.tools else {}), "add_generation_prompt": prompt}

        def write(chat: list[Any]) -> str:
            # An empty list is refused; a list that holds an empty conversation is not.
            found = tokenizer.apply_chat_template(chat or [[]], tokenize=False, **how, **self.template_arguments)
            return str(found if chat else found[0])

        try:
            text = write([dict(message) for message in messages])
            spoken = [message["content"].strip() for message in messages if message["content"].strip()]
            if spoken and not any(words in text for words in spoken):
                # Templates of models that also read images may look for parts, and write nothing of plain text.
                parts = [[{"type": "text", "text": message["content"]}] for message in messages]
                other = write([{**message, "content": part} for message, part in zip(messages, parts, strict=True)])
                if any(words in other for words in spoken) and not any(str(part) in other for part in parts):
                    text = other
        except Exception as error:  # a template is a program, which may fail in any way
            reason = one_line(error)
            raise DataError(
                f"is a conversation that the chat template refuses ({reason}); change its messages, or leave it out"
            ) from None
        return text

    def _up_to_answer(self, tokenizer: Any, number: int, answered: str) -> str:
        """Return what the template writes in front of an assistant's turn: the text begins with it.

        Args:
            tokenizer: Its chat template writes messages.
            number: Which message it is.
            answered: What the template writes up to and with it.
        """
        try:
            begun = self.written(tokenizer, self.messages[:number], prompt=True)
            if answered.startswith(begun):
                return begun
        except DataError:  # many templates cannot write a conversation without a user; the assistant may open one
            if number:
                raise
        marked = {**self.messages[number], "content": MARK}
        before, mark, _ = self.written(tokenizer, [*self.messages[:number], marked]).partition(MARK)
        return before if mark and answered.startswith(before) else _not_split()


def _words(message: Mapping[str, Any]) -> str:
    calls = [json.dumps(_called(call), ensure_ascii=False) for call in message.get("tool_calls", ())]
    return "\n".join([message["content"], *calls] if message["content"] else calls)


def _called(call: Mapping[str, Any]) -> Any:
    return call.get("function", call)


def _grow(pieces: list[Segment], done: str, longer: str, answer: bool) -> str:
    """Add what a longer text has beyond the one written so far, and return it."""
    if not longer.startswith(done):
        _not_split()
    if longer[len(done) :]:
        pieces.append((longer[len(done) :], answer))
    return longer


def _not_split() -> str:
    raise DataError(
        "is a conversation whose answers cannot be told from the rest, because the chat template rewrites earlier "
        "turns; give rows with 'prompt' and 'completion' as text, or use --recovery-labels text"
    )


def read_conversation(messages: Any, name: str, row: Mapping[str, Any]) -> Conversation:
    """Read a row's conversation.

    Args:
        messages: Its messages.
        name: Their key, for messages.
        row: The row: `tools` are the tools that may be called, `chat_template_kwargs` further variables of the
            template.

    Raises:
        DataError: The messages, the tools or the variables are not what they have to be.
    """
    if not isinstance(messages, (list, tuple)):
        raise DataError(f"has {_kind(messages)} as {name!r}; write a list of messages with 'role' and 'content'")
    variables = row.get("chat_template_kwargs") or {}
    if not isinstance(variables, Mapping) or not all(isinstance(key, str) for key in variables):
        raise DataError("has 'chat_template_kwargs' that are no object; write an object, or leave them out")
    read = tuple(_read_message(message, number) for number, message in enumerate(messages, start=1))
    return Conversation(read, read_tools(row.get("tools")), dict(variables))


def _read_message(message: Any, number: int) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise DataError(f"has {_kind(message)} as message {number}; write an object with 'role' and 'content'")
    role = message.get("role")
    if not isinstance(role, str) or not role.strip():
        raise DataError(f"has a message {number} without a 'role'; write who speaks, such as 'user' or 'assistant'")
    # A null beside other keys is how tables write that a message has no such key.
    found = {str(key): value for key, value in message.items() if value is not None}
    calls = found.get("tool_calls", ())
    if not isinstance(calls, (list, tuple)) or not all(isinstance(call, Mapping) for call in calls):
        raise DataError(f"has 'tool_calls' in message {number} that are no list of objects; write a list of calls")
    if not ("content" in message or calls):
        raise DataError(f"has a message {number} without 'content'; write what is said, or null")
    return {**found, "content": text_of(message.get("content"), "content")}


def read_tools(tools: Any) -> tuple[Any, ...]:
    """Read a row's tools: a list of JSON schemas, the same as a string of JSON, or null.

    Args:
        tools: The value.

    Raises:
        DataError: It is something else.
    """
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise DataError("has 'tools' that are no JSON; write a list of JSON schemas") from None
    if not tools:
        return ()
    if not isinstance(tools, (list, tuple)) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError("has 'tools' that are no list of objects; write a list of JSON schemas")
    return tuple(tools)
