"""Retries: a transient failure does not end an upload of gigabytes."""

from __future__ import annotations

from collections.abc import Callable
from time import sleep
from typing import TypeVar

from ..core.progress import note
from .failures import is_transient, reason, retry_after

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0
_RETRIES = 6
_TOTAL_WAIT = 600.0

Result = TypeVar("Result")


class RetryPolicy:
    """Repeats calls that fail transiently, with one waiting budget for all calls of a push.

    Waiting times double from a second to half a minute; a `Retry-After` of the server takes precedence. The Hub's own
    library retries single uploads of files; what it gives up on, and what it does not retry (creating the repository,
    the commit, the settings), is retried here.

    Args:
        secrets: Texts that must not appear in notes.
        seconds: Waiting budget of all calls together. The default exceeds the window of the Hub's rate limits, 5
            minutes.
        retries: Maximum number of repetitions of one call. The default adds up to a minute without `Retry-After`.
    """

    def __init__(
        self, secrets: tuple[str | None, ...] = (), *, seconds: float = _TOTAL_WAIT, retries: int = _RETRIES
    ) -> None:
        self.secrets = secrets
        self.seconds_left = seconds
        self.retries = retries

    def call(
        self, what: str, function: Callable[[], Result], *, recovered: Callable[[], Result | None] = lambda: None
    ) -> Result:
        """Call a function, again after a transient failure, and return its result.

        Args:
            what: What the call does, for the notes on standard error.
            function: The call. It must be safe to repeat, or `recovered` must find its result.
            recovered: Called before a repetition: it returns the result when the last attempt succeeded and only the
                response was lost, else None.

        Raises:
            Exception: What the function raised, when it is not transient, or when retries or budget are used up.
        """
        wait = _FIRST_WAIT
        for retry in range(self.retries + 1):
            try:
                return function()
            except Exception as error:
                requested = retry_after(error)
                pause = wait if requested is None else max(requested, _FIRST_WAIT)
                if retry == self.retries or not is_transient(error) or pause > self.seconds_left:
                    raise
                note(f"{what}: {reason(error, self.secrets)}; retrying in {pause:g} s")
            self.seconds_left -= pause
            sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT)
            found = recovered()
            if found is not None:
                return found
        raise AssertionError("unreachable")
