"""Publishing: one commit, complete or not at all, and no token anywhere."""

from .destination import check_destination, check_repo_id
from .push import push_folder

__all__ = ["check_destination", "check_repo_id", "push_folder"]
