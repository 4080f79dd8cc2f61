"""A conversation with one model, or with a model and its base at once: each has its own answers in its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import RequestError
from .answer import Answer
from .options import ChatOptions
from .speaker import Message, Speaker

Role = Literal["shrunk", "base"]

SCHEMA = 1


class Listener:
    """Is told what happens while models answer. This one does nothing with it."""

    def begin(self, role: Role, speaker: Speaker) -> None:
        """A model begins its answer."""

    def text(self, piece: str) -> None:
        """A piece of the answer has come."""

    def end(self, role: Role, answer: Answer) -> None:
        """The answer is complete, or was stopped."""


@dataclass
class Turn:
    """A prompt and its answers.

    Args:
        prompt: What the user said.
        system: The system prompt by then, or None.
        answers: The answers by role, in the order in which the models answered.
    """

    prompt: str
    system: str | None
    answers: dict[Role, Answer] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        answers = [{"role": role, **answer.to_json()} for role, answer in self.answers.items()]
        return {"prompt": self.prompt, "system": self.system, "answers": answers}


class Conversation:
    """A conversation with one model, or with two that are asked the same.

    Args:
        shrunk: The model.
        base: The model beside it, or None.
        options: How answers are generated.
        seed: Seed of the sampling. Every question has its own, which does not depend on who answers first.
        compute: What the record says about where the models run.
    """

    def __init__(
        self,
        shrunk: Speaker,
        base: Speaker | None = None,
        options: ChatOptions | None = None,
        *,
        seed: int = 0,
        compute: Mapping[str, Any] | None = None,
    ) -> None:
        self.speakers: dict[Role, Speaker] = {"shrunk": shrunk, **({} if base is None else {"base": base})}
        self.options = options or ChatOptions()
        self.seed = seed
        self.system = self.options.system
        self.turns: list[Turn] = []
        self.compute = dict(compute or {})
        self._asked = 0
        self.set_system(self.system)

    @property
    def has_base(self) -> bool:
        """Whether two models answer."""
        return "base" in self.speakers

    @property
    def samples(self) -> bool:
        """Whether a model draws its tokens at random."""
        return any(speaker.settings(self.options)["do_sample"] for speaker in self.speakers.values())

    @property
    def order(self) -> tuple[Role, ...]:
        """Who answers the next prompt first: the two take turns, since the second finds a warmer processor."""
        roles = tuple(self.speakers)
        return roles[::-1] if self._asked % 2 else roles

    def set_system(self, text: str | None) -> None:
        """Set the system prompt, or remove it. It holds for the turns before, too: models read it first.

        Raises:
            RequestError: A model has no chat template, or its template takes no system prompt.
        """
        if text is not None:
            check_prompt(text)
            probe = [{"role": "system", "content": text}, {"role": "user", "content": "Hello"}]
            for speaker in self.speakers.values():
                speaker.read(probe)
        self.system = text

    def messages(self, role: Role, prompt: str) -> list[Message]:
        """Return what a model reads: the system prompt, the turns with its own answers, and a new prompt.

        Args:
            role: Which model.
            prompt: The new prompt.
        """
        found: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in self.turns:
            found.append({"role": "user", "content": turn.prompt})
            found.append({"role": "assistant", "content": turn.answers[role].text})
        return [*found, {"role": "user", "content": prompt}]

    def ask(self, prompt: str, listener: Listener | None = None, *, stoppable: bool = False) -> Turn:
        """Let every model answer a prompt, one after the other.

        Args:
            prompt: The prompt.
            listener: Is told what happens.
            stoppable: Whether Ctrl-C ends the answer of the model that is answering, instead of raising.

        Returns:
            The turn, which is part of the conversation from now on.

        Raises:
            RequestError: The prompt is empty, or some model cannot read the conversation with it; then none answers.
        """
        check_prompt(prompt)
        listener = listener or Listener()
        asked = {role: self.messages(role, prompt) for role in self.speakers}
        for role, speaker in self.speakers.items():
            speaker.read(asked[role])
        order, seed = self.order, self.seed + self._asked
        self._asked += 1
        turn = Turn(prompt, self.system)
        for role in order:
            speaker = self.speakers[role]
            listener.begin(role, speaker)
            turn.answers[role] = answer = speaker.answer(
                asked[role], self.options, seed=seed, on_text=listener.text, stoppable=stoppable
            )
            listener.end(role, answer)
        self.turns.append(turn)
        return turn

    def regenerate(self, listener: Listener | None = None, *, stoppable: bool = False) -> Turn:
        """Ask the last prompt again, in place of its answers. Sampling has another seed than before.

        Args:
            listener: Is told what happens.
            stoppable: As for `ask`.

        Raises:
            RequestError: Nothing was asked yet.
        """
        if not self.turns:
            raise RequestError("nothing was asked yet; write a prompt first")
        last = self.turns.pop()
        try:
            return self.ask(last.prompt, listener, stoppable=stoppable)
        except BaseException:
            self.turns.append(last)
            raise

    def clear(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.turns.clear()
        for speaker in self.speakers.values():
            speaker.forget()

    def to_json(self) -> dict[str, Any]:
        """Return the conversation with its figures as plain JSON values."""
        models = [
            {
                "role": role,
                "name": speaker.name,
                "chat_template": speaker.has_template,
                "generation": speaker.settings(self.options),
            }
            for role, speaker in self.speakers.items()
        ]
        return {
            "schema": SCHEMA,
            "kind": "ishrink-conversation",
            "models": models,
            "seed": self.seed,
            **self.compute,
            "turns": [turn.to_json() for turn in self.turns],
        }


def check_prompt(prompt: str) -> None:
    """Check that a prompt is text.

    Args:
        prompt: The prompt.

    Raises:
        RequestError: It is empty, or holds bytes that are no text.
    """
    if not prompt.strip():
        raise RequestError("the prompt is empty; write a text")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise RequestError("the prompt holds bytes that are no UTF-8 text; write it in UTF-8") from None


def check_messages(messages: Any) -> list[Message]:
    """Return the messages of a request: a text is one question of the user.

    Args:
        messages: A text, or messages with `role` and `content`, the last one the user's.

    Raises:
        RequestError: They are something else.
    """
    found: Any = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    if not (isinstance(found, Sequence) and found and all(_is_message(each) for each in found)):
        raise RequestError(
            "messages must be a text, or a list of messages such as {'role': 'user', 'content': 'Hello'}, each "
            "content a text"
        )
    if found[-1]["role"] != "user" or not found[-1]["content"].strip():
        raise RequestError("the last message must be a text of the user; an answer is what comes after it")
    return [{"role": each["role"], "content": each["content"]} for each in found]


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("role", "content"))
