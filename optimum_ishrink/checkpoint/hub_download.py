"""Downloading a checkpoint from the Hub: only the files that are needed, and one line for each way it can fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import SourceError
from .tokenizer_files import TOKENIZER_PATTERNS

_ALLOWED = [
    "README.md",
    "*.json",
    "*.safetensors",
    "*.txt",
    "*.jinja",
    *TOKENIZER_PATTERNS,
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
]
_IGNORED = ["original/*", "*/*.safetensors", "consolidated*"]
"""Second copies of the weights, in the formats of Meta and Mistral."""


def download_checkpoint(
    repo_id: str, revision: str | None, token: str | bool | None, gguf_file: str | None = None
) -> Path:
    """Download a checkpoint into the Hub's cache and return its folder.

    Args:
        repo_id: Id of the repository.
        revision: Branch, tag or commit; None for the default branch.
        token: Hub token; never stored.
        gguf_file: Name of a GGUF file to download as well.

    Raises:
        SourceError: The repository cannot be read; the message says why.
    """
    allowed = [*_ALLOWED, *([gguf_file] if gguf_file else [])]
    with _one_line_errors(repo_id, revision):
        path = snapshot_download(
            repo_id, revision=revision, token=token, allow_patterns=allowed, ignore_patterns=_IGNORED
        )
    return Path(path)


def download_config(repo_id: str, revision: str | None, token: str | bool | None) -> Path:
    """Download a repository's config.json into the Hub's cache, nothing else, and return its folder.

    Args:
        repo_id: Id of the repository.
        revision: Branch, tag or commit; None for the default branch.
        token: Hub token; never stored.

    Raises:
        SourceError: The repository cannot be read, or has no config.json; the message says why.
    """
    try:
        with _one_line_errors(repo_id, revision):
            path = hf_hub_download(repo_id, "config.json", revision=revision, token=token)
    except RemoteEntryNotFoundError:
        raise SourceError(f"{repo_id} holds no config.json; name a repository of a transformers model") from None
    return Path(path).parent


@contextmanager
def _one_line_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn whatever a download raises into a `SourceError` of one line."""
    try:
        yield
        return
    except RemoteEntryNotFoundError:
        raise
    except GatedRepoError:
        reason = "it is gated; accept its terms on the Hub and log in with `hf auth login`"
    except RepositoryNotFoundError:
        reason = "neither a local folder nor a Hub repository that you can read"
    except RevisionNotFoundError:
        reason = f"the repository has no revision {revision!r}"
    except HFValidationError:
        reason = "neither a local folder nor a valid Hub id"
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = "not a local folder, not in the cache, and the Hub cannot be reached"
        if error.errno is not None:  # the operating system's own message, such as a full disk
            reason = " ".join(str(error).split())
    except Exception as error:  # a dropped connection raises an exception of the HTTP library
        if "http" not in type(error).__module__:
            raise
        text = " ".join(str(error).split())[:200] or type(error).__name__
        reason = f"the connection to the Hub broke ({text}); try again; finished files are cached"
    raise SourceError(f"cannot open model {repo_id!r}: {reason}") from None


def repository_files(repo_id: str, revision: str | None, token: str | bool | None) -> list[str]:
    """Return the names of a Hub repository's files; none when they cannot be listed, since they only serve a hint."""
    try:
        return HfApi(token=token).list_repo_files(repo_id, revision=revision)
    except Exception:
        return []
