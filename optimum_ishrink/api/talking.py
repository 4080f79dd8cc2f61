"""`chat` of a shrinker and of a result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..chat.answer import Answer
from ..chat.conversation import check_messages
from ..chat.options import ChatOptions
from ..chat.speaker import Message, Speaker
from ..options.run import RunOptions

if TYPE_CHECKING:
    from ..checkpoint.session import Session
    from ..configuration import IShrinkConfig


class Talks(ABC):
    """Base of what can answer."""

    @abstractmethod
    def _speaker(self) -> Speaker:
        """Return the model, loaded."""

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        seed: int = 0,
        on_text: Callable[[str], None] = lambda piece: None,
        **options: Any,
    ) -> Answer:
        """Let the model answer, by its own chat template and generation config.

        Nothing is remembered: a conversation is given whole, with the answers so far.

        Args:
            messages: A question, or a conversation: messages with `role` and `content`, the last one the user's. A
                model without a chat template completes the last one as plain text.
            seed: Seed of the sampling.
            on_text: Called with each piece of the answer as it comes.
            **options: The fields of `optimum_ishrink.chat.options.ChatOptions`, such as `temperature=0.7`,
                `max_new_tokens=100` and `system="Be brief."`.

        Returns:
            The answer with its figures. The model's first one is preceded by a short warm-up, which they do not count.

        Raises:
            RequestError: The messages are not what they have to be, or the model cannot read them.
        """
        asked = ChatOptions(**options)
        RunOptions(seed=seed)
        found = check_messages(messages)
        if asked.system is not None:
            found.insert(0, {"role": "system", "content": asked.system})
        return self._speaker().answer(found, asked, seed=seed, on_text=on_text)


class TalksFromSource(Talks):
    """What answers with the model of a source, loaded when it is first needed."""

    _last: Speaker | None = None

    if TYPE_CHECKING:

        def _config(self, config: IShrinkConfig | None, changes: dict[str, Any]) -> IShrinkConfig: ...

        def _open(self, config: IShrinkConfig) -> Session: ...

    def _speaker(self) -> Speaker:
        session = self._open(self._config(None, {}))
        if self._last is None or self._last.model is not session.model:
            self._last = Speaker(session.model, session.tokenizer, session.source.display_name, reuse=False)
        return self._last
