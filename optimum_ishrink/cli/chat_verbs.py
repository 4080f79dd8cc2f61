"""The verb that talks with a model."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ..chat.options import ChatOptions
from ..core.progress import note
from ..errors import IShrinkError, RequestError
from ..options.run import RunOptions
from .flags import add_options, given
from .requests import quiet_transformers, register_description

if TYPE_CHECKING:
    from ..chat.conversation import Conversation
    from .chat_session import ChatSession

RUN = ("seed", "dtype", "device")
"""The options of every run that a chat reads."""


def add_chat(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a chat besides those of its model.

    Args:
        parser: The parser of the verb.
    """
    parser.add_argument("--base", metavar="M0", help="Hub id or folder of a model that answers the same prompts")
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="ask this alone and leave; otherwise standard input has the prompts, in a file or pipe one a line",
    )
    add_options(parser.add_argument_group("answers"), ChatOptions)
    add_options(parser.add_argument_group("common"), RunOptions, only=RUN)


def chat(args: argparse.Namespace) -> Any:
    """Talk with a model, beside its base where one is given.

    Args:
        args: Parsed arguments.
    """
    options = ChatOptions(**given(args, ChatOptions))
    run = RunOptions(**given(args, RunOptions))
    asks = args.prompt is None and sys.stdin.isatty()
    if args.prompt is not None and not args.prompt.strip():
        raise RequestError("the prompt is empty; write a text after --prompt")
    if args.json and asks:
        raise RequestError("--json prints one object at the end; give --prompt TEXT, or prompts on standard input")
    from ..chat.opening import facts, open_conversation
    from ..checkpoint.source import open_source
    from .chat_session import ChatSession
    from .chat_terminal import Terminal, models_line, settings_line

    quiet_transformers()
    register_description(args)
    source = open_source(args.model, revision=args.revision, gguf_file=args.gguf_file)
    conversation = open_conversation(source, args.base, options, run)
    for line in facts(conversation):
        note(line)
    terminal = None if args.json else Terminal(conversation)
    if asks and terminal is not None:
        terminal.opening()
    else:
        note(f"{models_line(conversation)}: {settings_line(conversation)}")
    session = ChatSession(conversation, terminal, stoppable=asks)
    if args.prompt is not None:
        session.answer(args.prompt)
        return conversation.to_json() if args.json else None
    return _read(args, conversation, session, asks)


def _read(args: argparse.Namespace, conversation: Conversation, session: ChatSession, asks: bool) -> Any:
    """Read prompts from standard input until it ends."""
    from .chat_terminal import read_prompts

    try:
        count = session.run(read_prompts(asks=asks))
    except KeyboardInterrupt:
        if not asks:
            raise
        count = 1
    except IShrinkError as error:
        if not (args.json and conversation.turns):
            raise
        # What was answered is not lost: it is printed, and the exit status is 1.
        return {**conversation.to_json(), "failures": [{"reason": str(error)}]}
    if asks:
        sys.stdout.write("\n")
    elif not count:
        raise RequestError("standard input holds no prompt; give --prompt TEXT, or write one prompt a line")
    return conversation.to_json() if args.json else None
