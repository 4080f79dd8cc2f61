"""`push_to_hub` of a shrinker and of a result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from ..hub.push import push_folder


class PushToHub(ABC):
    """Base of what can upload an output folder."""

    @abstractmethod
    def _pushed_folder(self) -> Path:
        """Return the folder."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        private_until_complete: bool = False,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload the output folder as one commit.

        Args:
            repo_id: `user/name`, or `name` for the logged-in user.
            private: Keep the repository private; one that is public is made private first.
            private_until_complete: Make a new repository private, and public once its commit is complete.
            token: Hub token; the one that is logged in when None. It is never stored.
            revision: Branch to commit to.
            commit_message: Message of the commit.

        Returns:
            Address of the commit.

        Raises:
            RequestError: The request cannot be met; nothing was sent.
            PublishError: The upload failed; the folder is complete.
        """
        return push_folder(
            self._pushed_folder(),
            repo_id,
            private=private,
            private_until_complete=private_until_complete,
            token=token,
            revision=revision,
            commit_message=commit_message,
        )
