"""Publishing an output folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_token,
)
from huggingface_hub.hf_api import ModelInfo, RepoFile

from ..checkpoint.tensors import INDEX_NAME, WEIGHTS_NAME, preview, read_index
from ..core.json_files import read_json
from ..core.progress import note
from ..errors import IShrinkError, PublishError, RequestError, SourceError
from ..report.run import read_run
from .destination import check_repo_id
from .failures import advice, is_publishing_failure, reason, status_of
from .retries import RetryPolicy
from .snapshot import LocalFile, changed_files, read_folder
from .terms import inherit_terms

_CARD = "README.md"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_RESULTS = (".eval_results/*.yaml",)
_ATTRIBUTES = ".gitattributes"
"""What a repository holds from the beginning."""


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    private_until_complete: bool = False,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload a folder to the Hub as one commit; the repository is created when it does not exist.

    The folder is only read. Its state at the start is published: a file that changes during the upload stops the push
    before the commit. What the Hub already has is not sent again, so a push that failed resumes where it stopped.
    Transient failures are retried. After the commit the Hub's list of files is read back and compared. Weight files of
    an earlier upload are removed in the same commit: they would be taken for a part of this checkpoint.

    Args:
        folder: An output folder.
        repo_id: `user/name`, or `name` for the logged-in user.
        private: Keep the repository private; one that is public is made private before anything is sent.
        private_until_complete: Create a new repository as private, and make it public once its commit is complete and
            verified. A repository that is already public remains public; one that is private and holds anything else
            is refused, because that would become public, too.
        token: Hub token, used for this call alone; None takes the stored login.
        revision: Branch to commit to.
        commit_message: Message of the commit.

    Returns:
        URL of the commit.

    Raises:
        SourceError: The folder is not a checkpoint, or its weight files are damaged.
        RequestError: The repository's name is not valid, `private` and `private_until_complete` are both set, a file
            contains the token, or the card overrides the licence of a gated base.
        PublishError: The upload failed; the folder is complete, and the message says how to try again.
    """
    check_repo_id(repo_id)
    if private and private_until_complete:
        raise RequestError("private and private_until_complete exclude each other; choose one")
    if not (folder / "config.json").is_file():
        raise SourceError(f"{folder} is not a checkpoint folder: it has no config.json")
    secrets = (token, get_token())
    failure: Exception
    push = _Push(folder, repo_id, HfApi(token=token), revision, RetryPolicy(secrets))
    try:
        files = _prepare(push, secrets)
        return push.run(
            files,
            private=private,
            until_complete=private_until_complete,
            message=commit_message or f"Upload {folder.resolve().name}, shrunk with optimum-ishrink",
        )
    except IShrinkError:
        raise
    except Exception as error:
        if not is_publishing_failure(error):
            raise
        failure = error
    hint = advice(failure, repo_id, logged_in=any(secrets), revision=revision)
    retry = ["ishrink", "push", "--model", str(folder), "--repo-id", repo_id]
    retry += ["--private"] if private else []
    retry += ["--private-until-complete"] if private_until_complete else []
    retry += ["--revision", revision] if revision else []
    hidden = ", and the repository is still private" if push.hidden else ""
    raise PublishError(
        f"the upload to {repo_id} failed ({reason(failure, secrets)}){hint}. {folder} is complete{hidden}; "
        f"try again with: {shlex.join(retry)}"
    )


def _prepare(push: _Push, secrets: tuple[str | None, ...]) -> dict[str, LocalFile]:
    """Return the files to publish, with the card as the Hub is to show it."""
    files = read_folder(push.folder)
    for file in files.values():
        if any(secret and file.content and secret.encode() in file.content for secret in secrets):
            raise RequestError(f"{file.path} contains your Hub token; remove it and push again")
    _check_checkpoint(push.folder)
    card = files.get(_CARD)
    if card is not None and card.content is not None:
        text = card.content.decode("utf-8", errors="replace")
        text = name_repository(text, _local_names(push.folder), push.repo_id)
        text = inherit_terms(text, push.repo_id, push.api, push.retry_policy)
        files[_CARD] = replace(card, content=text.encode())
        # Checked now, since the Hub would refuse the commit only after gigabytes were sent.
        new_card = ModelCard(text, ignore_metadata_errors=True)
        push.retry_policy.call("checking the card", lambda: new_card.validate("model"))
    return files


def _check_checkpoint(folder: Path) -> None:
    """Find a damaged checkpoint before gigabytes are sent."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise SourceError(f"{folder / 'config.json'} names no model_type; push a checkpoint folder")
    if any((folder / name).exists() for name in (WEIGHTS_NAME, INDEX_NAME)):
        read_index(folder)


_LOAD_COMMANDS = ("vllm serve ", "ishrink export --model ")
"""Commands of the card that load the model, up to its name."""


def name_repository(card: str, names: frozenset[str], repo_id: str) -> str:
    """Return a card whose examples load the model by its name on the Hub instead of a folder's.

    Args:
        card: Text of the card.
        names: Names that the folder can have in it.
        repo_id: `user/name`.
    """
    for name in names:
        card = card.replace(f'from_pretrained("{name}"', f'from_pretrained("{repo_id}"')
        for command in _LOAD_COMMANDS:
            written = re.escape(command + shlex.quote(name))
            card = re.sub(rf"^{written}(?=\s|$)", command + repo_id, card, flags=re.M)
    return card


def _local_names(folder: Path) -> frozenset[str]:
    """Return the folder's name, and the one that it had when its card was written."""
    _, report = read_run(folder)
    written = report.shrunk.name if report is not None else None
    return frozenset(name for name in (folder.resolve().name, written) if name)


@dataclass
class _Push:
    """One push: from which folder, to which repository, and how often to retry."""

    folder: Path
    repo_id: str
    api: HfApi
    revision: str | None
    retry_policy: RetryPolicy
    hidden: bool = False
    """Whether the repository is private until the push is complete."""

    def run(self, files: Mapping[str, LocalFile], *, private: bool, until_complete: bool, message: str) -> str:
        """Create the repository, send the files, commit, read back; return the URL of the commit."""
        visibility = True if private or until_complete else None  # None takes the default of the namespace
        created = self.retry_policy.call(
            "creating the repository", lambda: self.api.create_repo(self.repo_id, private=visibility, exist_ok=True)
        )
        self.repo_id = str(created.repo_id)
        before = self._info()
        if private and not before.private:
            self._set_private(True)
        if until_complete and not before.private:
            note(f"{self.repo_id} is already public and remains public; readers see the old files until the commit")
        additions = {
            name: CommitOperationAdd(name, file.path if file.content is None else file.content)
            for name, file in files.items()
        }
        remote = self._tree(before.sha)
        surplus = sorted(remote.keys() - files.keys())
        changed = _differences(files, additions, remote)
        if until_complete and before.private:
            self._check_new(remote, files, whole=not changed)
            self.hidden = True
        stale = _matching(surplus, _WEIGHTS)
        if stale or _matching(changed, _WEIGHTS):
            # The Hub's benchmark pages would show scores of other weights under this name.
            stale += _matching(surplus, _RESULTS)
        url = f"{self.api.endpoint}/{self.repo_id}/commit/{before.sha}"
        if stale or changed:
            url = self._commit(files, additions, stale, str(before.sha), message)
        else:
            note(f"{self.repo_id} already holds these files; nothing was committed")
        if self.hidden:
            self._set_private(False)
        return url

    def _check_new(self, remote: Mapping[str, RepoFile], files: Mapping[str, LocalFile], *, whole: bool) -> None:
        """Check that nothing becomes public but what is pushed: the repository is new, or an earlier push's.

        Args:
            remote: The files of the branch.
            files: What is pushed.
            whole: Whether it holds all that is pushed, as it is pushed.

        Raises:
            RequestError: It holds something else.
        """
        everywhere = {**remote, **(self._tree(None) if self.revision else {})}
        held = everywhere.keys() - {_ATTRIBUTES}
        if held and not (whole and held <= files.keys()):
            raise RequestError(
                f"{self.repo_id} exists, is private, and holds {preview(sorted(held))}; --private-until-complete "
                "makes a new repository public: push without it, or name another repository"
            )

    def _commit(
        self,
        files: Mapping[str, LocalFile],
        additions: Mapping[str, CommitOperationAdd],
        stale: list[str],
        parent: str,
        message: str,
    ) -> str:
        """Send the files, commit them on top of a parent, read back; return the URL of the commit."""
        self.retry_policy.call(
            "uploading",
            lambda: self.api.preupload_lfs_files(
                self.repo_id, additions.values(), revision=self.revision, free_memory=False
            ),
        )
        if changed := changed_files(self.folder, files):
            raise PublishError(
                f"{', '.join(changed)} in {self.folder} changed during the upload, so nothing was committed to "
                f"{self.repo_id}; push again when no program writes to it"
            )
        operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
            *(CommitOperationDelete(name, is_folder=False) for name in stale),
            *additions.values(),
        ]

        def landed() -> str | None:
            """Return the commit when the branch holds what was sent, so that only the response was lost."""
            head = str(self._info().sha)
            remote = self._tree(head)
            removed = not any(name in remote for name in stale)
            return head if head != parent and removed and not _differences(files, additions, remote) else None

        def commit() -> str:
            try:
                commit_info = self.api.create_commit(
                    self.repo_id, operations, commit_message=message, revision=self.revision, parent_commit=parent
                )
            except Exception as error:
                # The branch has a new commit, perhaps this one.
                if status_of(error) != 412 or (found := landed()) is None:
                    raise
                return found
            return str(commit_info.oid)

        head = self.retry_policy.call("committing", commit, recovered=landed)
        if wrong := _differences(files, additions, self._tree(head)):
            raise PublishError(
                f"{', '.join(wrong)} on {self.repo_id} is not what was sent (commit {head}); {self.folder} is "
                "complete, push it again"
            )
        return f"{self.api.endpoint}/{self.repo_id}/commit/{head}"

    def _info(self) -> ModelInfo:
        return self.retry_policy.call(
            "reading the repository", lambda: self.api.model_info(self.repo_id, revision=self.revision)
        )

    def _tree(self, revision: str | None) -> dict[str, RepoFile]:
        entries = self.retry_policy.call(
            "reading the repository",
            lambda: list(self.api.list_repo_tree(self.repo_id, recursive=True, revision=revision)),
        )
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def _set_private(self, private: bool) -> None:
        what = "making the repository private" if private else "making the repository public"
        self.retry_policy.call(what, lambda: self.api.update_repo_settings(self.repo_id, private=private))


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that match one of the patterns."""
    return [name for name in names if any(fnmatch(name, each) for each in patterns)]


def _differences(
    files: Mapping[str, LocalFile], additions: Mapping[str, CommitOperationAdd], remote: Mapping[str, RepoFile]
) -> list[str]:
    """Return the names of files that the Hub lacks or that differ there."""

    def equal(name: str, file: LocalFile) -> bool:
        entry = remote.get(name)
        if entry is None:
            return False
        if entry.lfs is not None:
            return bool(entry.lfs.sha256 == additions[name].upload_info.sha256.hex())
        return bool(entry.blob_id == file.git_oid)

    return [name for name, file in files.items() if not equal(name, file)]
