"""Whether a push can succeed at all, checked before hours of work."""

from __future__ import annotations

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ..errors import PublishError, RequestError
from .failures import advice, is_publishing_failure, reason
from .retries import RetryPolicy


def check_repo_id(repo_id: str) -> None:
    """Check that a name is valid for a repository.

    Raises:
        RequestError: It is not.
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
    """Check that the user is logged in, with a token that can write to a repository's namespace.

    Args:
        repo_id: `user/name`, or `name` for the logged-in user.
        token: Hub token; None takes the stored login.

    Raises:
        RequestError: The name is not valid.
        PublishError: There is no login, the token cannot write there, or the Hub cannot be reached.
    """
    check_repo_id(repo_id)
    secrets = (token, get_token())
    failure: Exception
    try:
        user = RetryPolicy(secrets).call("asking the Hub who is logged in", HfApi(token=token).whoami)
    except Exception as error:
        if not is_publishing_failure(error):
            raise
        failure = error
    else:
        # The answer does not hold all permissions of other kinds of token; the Hub refuses the push itself then.
        role = user.get("auth", {}).get("accessToken", {}).get("role")
        namespaces = [user["name"], *(each["name"] for each in user.get("orgs", ()))]
        owner = repo_id.split("/")[0] if "/" in repo_id else user["name"]
        if role == "read":
            raise PublishError(
                f"the push to {repo_id} would fail: the token can only read; log in with `hf auth login` and one that "
                "can write. Nothing was started"
            )
        if role == "write" and owner not in namespaces:
            raise PublishError(
                f"the push to {repo_id} would fail: {user['name']} cannot write to {owner}, only to "
                f"{', '.join(namespaces)}. Nothing was started"
            )
        return
    hint = advice(failure, repo_id, logged_in=any(secrets)) or "; leave out the push, and push the folder later"
    raise PublishError(f"the push to {repo_id} would fail ({reason(failure, secrets)}){hint}. Nothing was started")
