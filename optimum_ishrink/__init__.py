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
    from .api.describing import check_description, draft_description
    from .api.result import ShrinkResult
    from .api.shrinker import IShrinker
    from .configuration import IShrinkConfig
    from .edge.gguf_export import GgufExport
    from .edge.quantized_export import QuantizedExport
    from .errors import (
        ArchitectureError,
        DataError,
        DeviceMemoryError,
        IShrinkError,
        OutputError,
        PublishError,
        RequestError,
        ShapeError,
        SourceError,
        TrainingError,
        VerificationError,
    )
    from .report.analysis import Analysis
    from .report.measurement import Measurement
    from .report.plan import Plan
    from .report.report import ModelReport, Report


_MODULES = {
    "Analysis": "report.analysis",
    "ArchitectureError": "errors",
    "DataError": "errors",
    "DeviceMemoryError": "errors",
    "GgufExport": "edge.gguf_export",
    "IShrinkConfig": "configuration",
    "IShrinkError": "errors",
    "IShrinker": "api.shrinker",
    "Measurement": "report.measurement",
    "ModelReport": "report.report",
    "OutputError": "errors",
    "Plan": "report.plan",
    "PublishError": "errors",
    "QuantizedExport": "edge.quantized_export",
    "Report": "report.report",
    "RequestError": "errors",
    "ShapeError": "errors",
    "ShrinkResult": "api.result",
    "SourceError": "errors",
    "TrainingError": "errors",
    "VerificationError": "errors",
    "check_description": "api.describing",
    "draft_description": "api.describing",
}

__all__ = [
    "Analysis",
    "ArchitectureError",
    "DataError",
    "DeviceMemoryError",
    "GgufExport",
    "IShrinkConfig",
    "IShrinkError",
    "IShrinker",
    "Measurement",
    "ModelReport",
    "OutputError",
    "Plan",
    "PublishError",
    "QuantizedExport",
    "Report",
    "RequestError",
    "ShapeError",
    "ShrinkResult",
    "SourceError",
    "TrainingError",
    "VerificationError",
    "check_description",
    "draft_description",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
