"""Architecture-aware structured pruning of compact language models.

    from optimum_ishrink import IShrinkConfig, IShrinker

    result = IShrinker.from_pretrained("HuggingFaceTB/SmolLM2-135M").shrink(target="params=-15%",
    save_directory="small")

Importing the package imports no torch: the names below are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .core.version import __version__ as __version__

if TYPE_CHECKING:
    from .analysis.record import Analysis
    from .api import IShrinker, ShrinkResult
    from .configuration import IShrinkConfig
    from .errors import IShrinkError, PublishError, RequestError, VerificationError
    from .report.measurement import Measurement
    from .report.plan import Plan
    from .report.report import ModelReport, Report


_HOMES = {
    "Analysis": "analysis.record",
    "IShrinkConfig": "configuration",
    "IShrinkError": "errors",
    "IShrinker": "api",
    "Measurement": "report.measurement",
    "ModelReport": "report.report",
    "Plan": "report.plan",
    "PublishError": "errors",
    "Report": "report.report",
    "RequestError": "errors",
    "ShrinkResult": "api",
    "VerificationError": "errors",
}

__all__ = [
    "Analysis",
    "IShrinkConfig",
    "IShrinkError",
    "IShrinker",
    "Measurement",
    "ModelReport",
    "Plan",
    "PublishError",
    "Report",
    "RequestError",
    "ShrinkResult",
    "VerificationError",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
