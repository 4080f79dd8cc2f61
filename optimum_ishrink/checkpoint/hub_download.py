"""Downloading a checkpoint from the Hub: only the files that are needed, and one line for each way it can fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from ..errors import SourceError, one_line
from .gguf_header import read_header
from .missing_files import no_gguf
from .tokenizer_files import TOKENIZER_PATTERNS

CHECKPOINT_FILES = [
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
"""Patterns of the files that a checkpoint consists of; no pickles."""

CONFIG_FILES = [pattern for pattern in CHECKPOINT_FILES if pattern != "*.safetensors"]
SECOND_COPIES = ["original/*", "*/*.safetensors", "consolidated*"]
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
    allowed = [*CHECKPOINT_FILES, *([gguf_file] if gguf_file else [])]
    with _one_line_errors(repo_id, revision):
        path = snapshot_download(
            repo_id, revision=revision, token=token, allow_patterns=allowed, ignore_patterns=SECOND_COPIES
        )
    return Path(path)


def download_config(repo_id: str, revision: str | None, token: str | bool | None, *, tokenizer: bool = False) -> Path:
    """Download a repository's config.json into the Hub's cache, no weights, and return its folder.

    Args:
        repo_id: Id of the repository.
        revision: Branch, tag or commit; None for the default branch.
        token: Hub token; never stored.
        tokenizer: Whether the tokenizer's files, and what names its tokens, are downloaded as well.

    Raises:
        SourceError: The repository cannot be read, or has no config.json; the message says why.
    """
    try:
        with _one_line_errors(repo_id, revision):
            path = hf_hub_download(repo_id, "config.json", revision=revision, token=token)
            if tokenizer:
                patterns = ["generation_config.json", *TOKENIZER_PATTERNS]
                snapshot_download(repo_id, revision=revision, token=token, allow_patterns=patterns)
    except RemoteEntryNotFoundError:
        raise SourceError(f"{repo_id} holds no config.json; name a repository of a transformers model") from None
    return Path(path).parent


def download_gguf_header(
    repo_id: str, gguf_file: str, revision: str | None, token: str | bool | None, folder: Path
) -> str | None:
    """Fetch the header of a GGUF file, and write it into a file of the whole one's size, with a hole for the weights.

    Args:
        repo_id: Id of the repository.
        gguf_file: Name of the file.
        revision: Branch, tag or commit; None for the default branch.
        token: Hub token; never stored.
        folder: An existing folder; the file gets its name there.

    Returns:
        The commit of the file, where the Hub says so.

    Raises:
        SourceError: The repository cannot be read, it has no such file, or the file is not GGUF.
    """
    url = hf_hub_url(repo_id, gguf_file, revision=revision)
    headers = build_hf_headers(token=token)

    def fetch(start: int, stop: int) -> bytes:
        if start >= size:
            return b""
        part = {**headers, "Range": f"bytes={start}-{min(stop, size) - 1}", "Accept-Encoding": "identity"}
        answer = get_session().get(url, headers=part, follow_redirects=True)
        hf_raise_for_status(answer)
        if answer.status_code != 206:
            raise ValueError("the Hub does not send parts of it")
        return bytes(answer.content)

    try:
        with _one_line_errors(repo_id, revision):
            found = get_hf_file_metadata(url, token=token)
            size = found.size or 0
            header = read_header(fetch)
    except RemoteEntryNotFoundError:
        raise no_gguf(repo_id, gguf_file, repository_files(repo_id, revision, token)) from None
    except ValueError as error:
        raise SourceError(f"cannot read {gguf_file} of {repo_id}: {error}") from None
    path = folder / gguf_file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(size)
    return found.commit_hash


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
        text = one_line(error)
        reason = f"the connection to the Hub broke ({text}); try again; finished files are cached"
    raise SourceError(f"cannot open model {repo_id!r}: {reason}") from None


def repository_files(repo_id: str, revision: str | None, token: str | bool | None) -> list[str]:
    """Return the names of a Hub repository's files; none when they cannot be listed, since they only serve a hint."""
    try:
        return HfApi(token=token).list_repo_files(repo_id, revision=revision)
    except Exception:
        return []
