"""Options of a push."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import RequestError
from ..options.base import Options
from ..options.option import option


@dataclass(frozen=True, kw_only=True, repr=False)
class PushOptions(Options):
    """Who can see the repository, and how the commit is made."""

    KIND = "option"

    private: bool = option(False, help="keep the repository private; one that is public is made private first")
    private_until_complete: bool = option(
        False,
        help="create a new repository as private, and make it public once its commit is complete and verified",
    )
    revision: str | None = option(None, metavar="BRANCH", help="branch to commit to", default_help="main")
    commit_message: str | None = option(
        None, metavar="TEXT", help="message of the commit", default_help="Upload FOLDER, shrunk with optimum-ishrink"
    )

    def check_together(self) -> None:
        """Check that a private repository is requested in one way only.

        Raises:
            RequestError: It is requested in two.
        """
        if self.private and self.private_until_complete:
            raise RequestError("private and private_until_complete exclude each other; pass one of them")
