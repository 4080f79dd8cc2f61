"""The commands of a chat, and the loop that reads prompts and shows answers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.json_files import write_json
from ..core.output import staged_file
from ..errors import OutputError, RequestError, did_you_mean

if TYPE_CHECKING:
    from ..chat.conversation import Conversation, Listener
    from .chat_terminal import Terminal

COMMANDS = {
    "/regenerate": "ask the last prompt again, in place of its answer",
    "/system TEXT": "set the system prompt, for the turns before as well; without TEXT, remove it",
    "/diff": "show how the two answers differ, or stop showing it",
    "/clear": "begin a new conversation; the system prompt stays",
    "/save FILE.json": "write the conversation and its figures",
    "/exit": "leave",
    "/help": "this list",
}
"""What can be typed instead of a prompt."""

PROMPT, MORE = "you> ", "...> "

_HELP = (
    "A line that ends in \\ goes on in the next one. A prompt that begins with / is written with //.",
    "Ctrl-C stops an answer, which stays in the conversation as it is by then.",
)


def save_conversation(conversation: Conversation, path: Path, *, overwrite: bool = False) -> None:
    """Write a conversation as JSON; the file appears whole or not at all.

    Args:
        conversation: The conversation.
        path: The file.
        overwrite: Replace an existing file.

    Raises:
        OutputError: The file cannot be written, or its name does not end in `.json`.
    """
    if path.suffix != ".json":
        raise OutputError(f"{str(path)!r} does not end in .json; name a file that does: /save FILE.json")
    with staged_file(path, overwrite=overwrite) as staged:
        write_json(staged, conversation.to_json())


class ChatSession:
    """Takes prompts and commands, and shows what comes of them.

    Args:
        conversation: The conversation.
        terminal: Shows it; None shows nothing, and commands print nothing.
        stoppable: Whether Ctrl-C stops an answer and an error is shown, as for a person at a terminal. Otherwise both
            are raised.
    """

    def __init__(self, conversation: Conversation, terminal: Terminal | None, *, stoppable: bool) -> None:
        self._conversation = conversation
        self._terminal = terminal
        self._listener: Listener | None = terminal
        self._stoppable = stoppable
        self._shows_differences = conversation.has_base
        self._saved: set[Path] = set()

    def run(self, lines: Iterable[str]) -> int:
        """Answer prompts and follow commands until there are none or one is `/exit`.

        Args:
            lines: The prompts and commands.

        Returns:
            How many there were.

        Raises:
            RequestError: A prompt cannot be answered, or a command not be followed, and nobody is there to see it.
        """
        count = 0
        for line in lines:
            count += 1
            if not self._stoppable:  # a transcript shows what was asked
                self._say(f"{PROMPT}{line}", "bold")
            try:
                if not self._take(line):
                    break
            except RequestError as error:
                if not self._stoppable:
                    raise
                self._say(f"error: {error}", "yellow")
            except KeyboardInterrupt:
                if not self._stoppable:
                    raise
                self._say("Stopped.", "dim")
            self._say()
        return count

    def _say(self, text: str = "", style: str = "") -> None:
        if self._terminal is not None:
            self._terminal.line(text, style)

    def _take(self, line: str) -> bool:
        """Follow a command or answer a prompt; return whether more may come."""
        if not line.startswith("/") or line.startswith("//"):
            self.answer(line[1:] if line.startswith("//") else line)
            return True
        name, _, rest = line.strip().partition(" ")
        known = [each.split()[0] for each in COMMANDS]
        if name not in known:
            raise RequestError(
                f"unknown command {name!r}{did_you_mean(name, known)}; /help lists them, and // begins a prompt with /"
            )
        if name == "/exit":
            return False
        getattr(self, f"_{name[1:]}")(rest.strip())
        return True

    def answer(self, prompt: str) -> None:
        """Answer a prompt.

        Args:
            prompt: The prompt.
        """
        turn = self._conversation.ask(prompt, self._listener, stoppable=self._stoppable)
        if self._terminal is not None and self._shows_differences:
            self._terminal.differences(turn)

    def _regenerate(self, _: str) -> None:
        if self._conversation.turns and not self._conversation.samples:
            self._say("Decoding is greedy, so the answer will be the same; only its figures are new.", "dim")
        turn = self._conversation.regenerate(self._listener, stoppable=self._stoppable)
        if self._terminal is not None and self._shows_differences:
            self._terminal.differences(turn)

    def _system(self, text: str) -> None:
        self._conversation.set_system(text or None)
        self._say("The system prompt is set." if text else "There is no system prompt now.", "dim")

    def _diff(self, _: str) -> None:
        if not self._conversation.has_base:
            raise RequestError("one model has nothing to differ from; start the chat with --base")
        self._shows_differences = not self._shows_differences
        self._say(f"Differences are {'shown' if self._shows_differences else 'not shown'} from now on.", "dim")

    def _clear(self, _: str) -> None:
        self._conversation.clear()
        self._say("This is a new conversation.", "dim")

    def _save(self, name: str) -> None:
        if not name:
            raise RequestError("name the file: /save FILE.json")
        if not self._conversation.turns:
            raise RequestError("nothing was asked yet, so there is nothing to save")
        path = Path(name).expanduser()
        # A conversation that grows may be saved again; files of others are never replaced.
        save_conversation(self._conversation, path, overwrite=path.absolute() in self._saved)
        self._saved.add(path.absolute())
        self._say(f"Written to {path}", "dim")

    def _help(self, _: str) -> None:
        width = max(map(len, COMMANDS))
        for name, text in COMMANDS.items():
            self._say(f"{name:<{width}}  {text}")
        for text in _HELP:
            self._say(text)
