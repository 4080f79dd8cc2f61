"""Trying again: what fails for a moment does not end an upload of gigabytes."""

from __future__ import annotations

from collections.abc import Callable
from time import sleep
from typing import TypeVar

from ..core.progress import note
from .failures import passes, reason, retry_after

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0
_RETRIES = 6
_TOTAL_WAIT = 600.0

Result = TypeVar("Result")


class Patience:
    """Calls again what failed for a moment, with one budget of waiting for all calls of a push.

    Waits double from a second to half a minute; where the server says how long to wait (`Retry-After`), that is
    waited instead. The Hub's own library retries single uploads of files; what it gives up on, and what it does not
    retry (making the repository, the commit, the settings), is retried here.

    Args:
        secrets: Texts that no note may hold.
        seconds: What may be waited in all. The default is longer than the Hub's windows of rate limits, 5 minutes.
        retries: How often one call may be repeated. The default waits a minute in all for a server that says nothing.
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
        """Return what a function returns, in one of several tries.

        Args:
            what: What is being done, for the notes on standard error.
            function: Does it. It must be safe to repeat, or `recovered` must tell when it need not be.
            recovered: Asked before a repetition: when the last try has succeeded after all and only its answer was
                lost, it returns the result.

        Raises:
            Exception: What the function raised, when it does not pass, or when tries or waiting are used up.
        """
        wait = _FIRST_WAIT
        for retry in range(self.retries + 1):
            try:
                return function()
            except Exception as error:
                asked = retry_after(error)
                pause = wait if asked is None else max(asked, _FIRST_WAIT)
                if retry == self.retries or not passes(error) or pause > self.seconds_left:
                    raise
                note(f"{what}: {reason(error, self.secrets)}; trying again in {pause:g} s")
            self.seconds_left -= pause
            sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT)
            found = recovered()
            if found is not None:
                return found
        raise AssertionError("unreachable")
