"""Publishing an output folder."""

from __future__ import annotations

import shlex
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from .errors import PublishError, SourceError


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload a folder to the Hub as one commit; the repository is made when it does not exist.

    Weight files of an earlier upload go with the same commit: readers would take them for part of this checkpoint.

    Args:
        folder: An output folder.
        repo_id: `user/name`, or `name` for the logged-in user.
        private: Make a new repository private.
        token: Hub token; the one that is logged in when None. It is used for this call alone.
        revision: Branch to commit to.
        commit_message: Message of the commit.

    Returns:
        Address of the commit.

    Raises:
        SourceError: The folder is no checkpoint.
        PublishError: The upload failed; the folder is whole, and the message says how to try again.
    """
    if not (folder / "config.json").is_file():
        raise SourceError(f"{folder} is not a checkpoint folder: it has no config.json")
    api = HfApi(token=token)
    failure: Exception
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message or f"Upload {folder.name}, shrunk with optimum-ishrink",
            delete_patterns=["*.safetensors", "*.safetensors.index.json"],
        )
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError, ValueError) as error:
        failure = error
    except Exception as error:  # a dropped connection raises the HTTP library's own type
        if "http" not in type(error).__module__:
            raise
        failure = error
    else:
        return str(commit.commit_url)
    status = getattr(getattr(failure, "response", None), "status_code", None)
    reason = " ".join(str(failure).split())[:300] or type(failure).__name__
    hint = "; log in with `hf auth login`, with a token that may write" if status in (401, 403) else ""
    retry = ["ishrink", "push", "--model", str(folder), "--repo-id", repo_id]
    retry += ["--private"] if private else []
    retry += ["--revision", revision] if revision else []
    raise PublishError(
        f"the upload to {repo_id} failed ({reason}){hint}. {folder} is whole; try again with: {shlex.join(retry)}"
    )
