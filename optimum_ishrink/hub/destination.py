"""Whether a push can succeed at all, asked before hours of work."""

from __future__ import annotations

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ..errors import PublishError, RequestError
from .failures import advice, is_of_publishing, reason
from .retries import Patience


def check_repo_id(repo_id: str) -> None:
    """Check that a name can be a repository's.

    Raises:
        RequestError: It cannot.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise RequestError(
            f"{repo_id!r} cannot be a repository on the Hub; write user/name, or name alone for your own, each of "
            "letters, digits, '-', '_' and '.' (none of these first or last, no '--' or '..', no '.git'), "
            "96 characters at most"
        ) from None


def check_destination(repo_id: str, *, token: str | None = None) -> None:
    """Check that one is logged in, with a token that may write to a repository's namespace.

    Args:
        repo_id: `user/name`, or `name` for the logged-in user.
        token: Hub token; the one that is logged in when None.

    Raises:
        RequestError: The name cannot be a repository's.
        PublishError: There is no login, the token may not write there, or the Hub cannot be reached.
    """
    check_repo_id(repo_id)
    secrets = (token, get_token())
    failure: Exception
    try:
        user = Patience(secrets).call("asking the Hub who is logged in", HfApi(token=token).whoami)
    except Exception as error:
        if not is_of_publishing(error):
            raise
        failure = error
    else:
        # What other kinds of token may do is not all in the answer; the Hub will say it when it comes to that.
        role = user.get("auth", {}).get("accessToken", {}).get("role")
        places = [user["name"], *(each["name"] for each in user.get("orgs", ()))]
        owner = repo_id.split("/")[0] if "/" in repo_id else user["name"]
        if role == "read":
            raise PublishError(
                f"the push to {repo_id} would fail: the token may only read; log in with `hf auth login` and one that "
                "may write. Nothing was begun"
            )
        if role == "write" and owner not in places:
            raise PublishError(
                f"the push to {repo_id} would fail: {user['name']} may not write to {owner}, but to "
                f"{', '.join(places)}. Nothing was begun"
            )
        return
    hint = advice(failure, repo_id, logged_in=any(secrets)) or "; leave out the push, and push the folder later"
    raise PublishError(f"the push to {repo_id} would fail ({reason(failure, secrets)}){hint}. Nothing was begun")
