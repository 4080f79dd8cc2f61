"""The zero-out analysis: quality against sparsity, and what each layer is worth, before anything is cut."""

from .advised_command import advised_command
from .request import AnalysisRequest, parse_levels
from .zero_out import analyze, write_analysis

__all__ = ["AnalysisRequest", "advised_command", "analyze", "parse_levels", "write_analysis"]
