"""The command line, the same under `ishrink` and `optimum-cli ishrink`."""

from .parser import DESCRIPTION, add_verbs
from .program import main, run

__all__ = ["DESCRIPTION", "add_verbs", "main", "run"]
