"""What a chat shows on the terminal. Model output is plain text: it can neither drive the terminal nor be markup."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from ..chat.conversation import Listener, Role, Turn
from ..chat.differences import compare_words
from ..errors import RequestError
from .chat_session import MORE, PROMPT

if TYPE_CHECKING:
    from ..chat.answer import Answer
    from ..chat.conversation import Conversation
    from ..chat.speaker import Speaker

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All control characters but tab and newline."""

_STYLES = {"same": "", "removed": "red", "added": "green"}
_MARKS = {"same": ("", ""), "removed": ("[-", "-]"), "added": ("{+", "+}")}


def escaped(text: str) -> str:
    """Return text with its control characters written out: a terminal would obey them.

    Args:
        text: Text from a model, a file or a name.
    """
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class Terminal(Listener):
    """Shows a conversation on standard output.

    Args:
        conversation: The conversation.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._shown = ""
        self._started = False

    def line(self, text: str = "", style: str = "") -> None:
        """Print a line.

        Args:
            text: Its text.
            style: A style of rich, which a pipe does not get.
        """
        self._console.print(Text(self._fitting(text), style=style))
        self._started = True

    def _fitting(self, text: str) -> str:
        """Return text that the terminal can show: without controls, and in its encoding."""
        encoding = self._console.encoding
        return escaped(text).encode(encoding, "backslashreplace").decode(encoding)

    def opening(self) -> None:
        """Print which models answer, and how."""
        self.line(models_line(self._conversation), "bold")
        self.line(settings_line(self._conversation), "dim")
        self.line("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.", "dim")

    def begin(self, role: Role, speaker: Speaker) -> None:
        """Print the model's name where there are two."""
        if self._conversation.has_base:
            if self._started:
                self.line()
            self.line(f"{speaker.name} ({role})", "bold")
        self._shown = ""

    def text(self, piece: str) -> None:
        """Print a piece of the answer at once. The console's own printing would break lines between pieces."""
        self._shown = piece
        self._console.file.write(self._fitting(piece))
        self._console.file.flush()

    def end(self, role: Role, answer: Answer) -> None:
        """Print the figures below the answer."""
        if not answer.text.strip():
            self.line("(no text)", "dim")
        elif not self._shown.endswith("\n"):
            self.line()
        self.line(figures_line(answer, self._conversation.speakers[role].positions), "dim")

    def differences(self, turn: Turn) -> None:
        """Print how the shrunk model's answer differs from the base's.

        Args:
            turn: A turn with two answers.
        """
        found = compare_words(turn.answers["base"].text, turn.answers["shrunk"].text)
        self.line()
        if found.same:
            self.line("Both answers are the same, word for word.", "bold")
            return
        heading = Text("Differences: ", style="bold")
        heading.append("[-base alone-]", style="red not bold")
        heading.append(" ")
        heading.append("{+shrunk alone+}", style="green not bold")
        heading.append(f" ({found.common} of {found.words} words in common)", style="dim not bold")
        self._console.print(heading)
        text = Text()
        for kind, words in found.parts:
            before, after = _MARKS[kind]
            if text and not text.plain.endswith("\n") and not words.startswith("\n"):
                text.append(" ")
            text.append(f"{before}{self._fitting(words)}{after}", style=_STYLES[kind])
        self._console.print(text)


def models_line(conversation: Conversation) -> str:
    """Return which models answer."""
    names = [speaker.name for speaker in conversation.speakers.values()]
    return names[0] if len(names) == 1 else f"{names[0]} beside its base {names[1]}"


def settings_line(conversation: Conversation) -> str:
    """Return how answers are generated, and what their figures leave out."""
    described = {speaker.name: _generation(conversation, speaker) for speaker in conversation.speakers.values()}
    ways = set(described.values())
    way = ways.pop() if len(ways) == 1 else "; ".join(f"{name}: {each}" for name, each in described.items())
    where = [str(value) for name, value in conversation.compute.items() if name != "threads"]
    if threads := conversation.compute.get("threads"):
        where.append(f"{threads} thread{'s' * (threads != 1)}")
    warmed = "The models have" if conversation.has_base else "The model has"
    return f"{', '.join(where)}; {way}. {warmed} been warmed up, which no figure counts."


def _generation(conversation: Conversation, speaker: Speaker) -> str:
    found = dict(speaker.settings(conversation.options))
    longest = found.pop("max_new_tokens")
    sampled = found.pop("do_sample")
    words = [f"{name.replace('_', ' ')} {value:g}" for name, value in found.items() if value != 1 or "temp" in name]
    how = (
        f"sampling, {', '.join(words)}"
        if sampled and words
        else "sampling"
        if sampled
        else ", ".join(["greedy", *words])
    )
    return f"{how}, up to {longest} tokens an answer"


def figures_line(answer: Answer, positions: int | None) -> str:
    """Return an answer's figures in one line.

    Args:
        answer: The answer.
        positions: How many tokens its model can read, or None where that is not known.
    """
    words = []
    if answer.first_token_seconds is not None:
        words.append(f"first token {_seconds(answer.first_token_seconds)}")
    if answer.decode_tokens_per_second is not None:
        words.append(f"{answer.decode_tokens_per_second:.1f} tokens/s")
    words.append(f"{answer.tokens} token{'s' * (answer.tokens != 1)} in {_seconds(answer.total_seconds)}")
    if answer.ended == "user":
        words.append("stopped")
    elif answer.ended == "length":
        full = positions is not None and answer.prompt_tokens + answer.tokens >= positions
        words.append(
            f"cut off: the model's {positions:,} positions are full" if full else "cut off (--max-new-tokens)"
        )
    return ", ".join(words)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def read_prompts(*, asks: bool) -> Iterator[str]:
    """Yield what the user writes, a prompt at a time, until the end of standard input.

    A line that ends in a backslash is continued by the next one. Where Python has readline, what is pasted on a
    terminal is one prompt, and arrow keys bring back earlier ones.

    Args:
        asks: Whether standard input is a terminal.

    Raises:
        RequestError: Standard input is not text.
    """
    if asks:
        _use_readline()
    lines: list[str] = []
    while True:
        try:
            line = input(MORE if lines else PROMPT) if asks else _next_line(sys.stdin.readline())
        except EOFError:
            line = None
        except UnicodeDecodeError:
            raise RequestError("standard input is not UTF-8 text; write prompts in UTF-8") from None
        if line is not None and line.endswith("\\"):
            lines.append(line[:-1])
            continue
        prompt = "\n".join([*lines, *([] if line is None else [line])]).removeprefix("\ufeff")
        lines = []
        if prompt.strip():
            yield prompt
        if line is None:
            return


def _next_line(line: str) -> str | None:
    return line.rstrip("\r\n") if line else None


def _use_readline() -> None:
    try:
        import readline
    except ImportError:  # Windows, and some builds of Python
        return
    if "GNU" in (readline.__doc__ or ""):
        readline.parse_and_bind("set enable-bracketed-paste on")
