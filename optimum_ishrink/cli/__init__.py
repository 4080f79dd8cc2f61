"""The command line, the same under `ishrink` and `optimum-cli ishrink`."""

from .run import DESCRIPTION, add_verbs, main, run

__all__ = ["DESCRIPTION", "add_verbs", "main", "run"]
