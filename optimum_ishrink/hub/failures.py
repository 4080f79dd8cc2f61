"""Failures of a push: whether they are transient, and a message of one line without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from huggingface_hub import constants
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that a retry can overcome: timeouts, too many requests, server errors."""

_HTTP_LIBRARIES = ("httpx", "httpcore", "hf_xet", "requests", "urllib3")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes: uploads in threads wrap the informative error."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error or one of its causes carries, or None."""
    for each in causes(error):
        status = getattr(getattr(each, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def retry_after(error: BaseException) -> float | None:
    """Return the `Retry-After` of the server in seconds, or None where it gives none in seconds."""
    for each in causes(error):
        value = getattr(getattr(each, "response", None), "headers", {}).get("Retry-After", "").strip()
        if value.isdigit():
            return float(value)
    return None


def is_transient(error: BaseException) -> bool:
    """Return whether a retry can succeed: the server is in trouble, or the connection was lost."""
    status = status_of(error)
    if status is not None:
        return status in _TRANSIENT
    chain = list(causes(error))
    if any(isinstance(each, OfflineModeIsEnabled) for each in chain):
        return False
    return any(isinstance(each, (ConnectionError, TimeoutError)) or _is_transport_error(each) for each in chain)


def is_publishing_failure(error: BaseException) -> bool:
    """Return whether an error comes from the Hub or its client; any other is a bug of ours and is not hidden."""
    # The Hub's library reports bad metadata as ValueError, and an upload that failed in a thread as RuntimeError.
    return isinstance(error, (OSError, ValueError, RuntimeError)) or _is_from_http_library(error)


def _is_from_http_library(error: BaseException) -> bool:
    return type(error).__module__.startswith(_HTTP_LIBRARIES)


def _is_transport_error(error: BaseException) -> bool:
    # By name: the Hub's library has changed its HTTP library, and can do so again.
    return _is_from_http_library(error) and any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def reason(error: BaseException, secrets: Iterable[str | None] = ()) -> str:
    """Return in one line what happened, without a token.

    Args:
        error: What was raised.
        secrets: Texts that must not appear. What looks like a Hub token is always hidden.
    """
    status = status_of(error)
    chain = list(causes(error))
    message = next((str(text) for each in chain if (text := getattr(each, "server_message", None))), "")
    if status is not None:
        text = f"the Hub answered {status}" + (f": {message}" if message else "")
    elif any(isinstance(each, OfflineModeIsEnabled) for each in chain):
        text = "HF_HUB_OFFLINE is set"
    elif any(map(_is_transport_error, chain)):
        cause = next(each for each in chain if _is_transport_error(each))
        text = f"the connection was lost: {cause}" if str(cause) else "the connection was lost"
    else:
        text = str(chain[0]) or type(chain[0]).__name__
    return redact(" ".join(text.split()), secrets)[:300]


def redact(text: str, secrets: Iterable[str | None]) -> str:
    """Hide secrets in a text."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "hf_***")
    return _TOKEN.sub("hf_***", text)


def advice(error: BaseException, repo_id: str, *, logged_in: bool, revision: str | None = None) -> str:
    """Return what to do about a failure, as a clause to append to the message; empty where a retry is all.

    Args:
        error: What was raised.
        repo_id: The repository that was pushed to.
        logged_in: Whether there was a token.
        revision: The branch, where one was named.
    """
    status = status_of(error)
    if status == 401 and logged_in and "not found" not in str(error).lower():
        return f"; the Hub does not accept this token: create one at {_tokens_page()} and log in with `hf auth login`"
    if isinstance(error, LocalTokenNotFoundError) or (status == 401 and not logged_in):
        return "; you are not logged in: log in with `hf auth login`, or set HF_TOKEN, with a token that can write"
    if status == 403:
        return (
            f"; this token cannot write to {repo_id}: log in with `hf auth login` and one that can "
            f"({_tokens_page()}), or name a repository in your namespace"
        )
    if status == 404 and revision is not None:
        return f"; if {repo_id} has no branch {revision}, create it with `hf repos branch create {repo_id} {revision}`"
    if status == 412:
        return f"; someone else committed to {repo_id} in the meantime"
    if any(isinstance(each, OfflineModeIsEnabled) for each in causes(error)):
        return "; unset HF_HUB_OFFLINE to push"
    return ""


def _tokens_page() -> str:
    return f"{constants.ENDPOINT}/settings/tokens"
