"""An analysis' advice as a command line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..configuration import IShrinkConfig
from .request import AnalysisRequest

CONFIG_KEYS = (
    "keep_first_layers",
    "keep_last_layers",
    "importance",
    "layer_importance",
    "calibration",
    "calibration_samples",
    "calibration_length",
    "tasks",
    "include_path",
    "num_fewshot",
    "batch_size",
    "base_model",
    "seed",
    "dtype",
    "device",
)
"""What an analysis reads of a config; each is a flag of `analyze` as well."""


def advised_command(
    config: IShrinkConfig,
    request: AnalysisRequest,
    changes: Mapping[str, Any],
    finer_levels: Sequence[float],
    model: str,
    *extra: str,
) -> str:
    """Return the shrink that an analysis amounts to; where it amounts to none, the analysis that may.

    Args:
        config: The analysis' config.
        request: What was measured.
        changes: The advice as values for an `IShrinkConfig`, or none.
        finer_levels: Levels in percent that are worth measuring when there are no changes.
        model: The model's name.
        extra: More arguments, such as `"--gguf-file", "model.gguf"`.
    """
    name = Path(model).resolve().name if Path(model).exists() else model.split("/")[-1]
    if changes:
        return config.replace(**changes).command(model, f"{name}-shrunk", *extra)
    words = ["ishrink", "analyze", "--model", model, *extra, "--output", f"{name}-analysis"]
    defaults, asked = AnalysisRequest(), {key: config.to_diff_dict().get(key) for key in CONFIG_KEYS}
    asked["levels"] = [f"{level:g}" for level in finer_levels]
    for key in ("samples", "length", "text"):
        value = getattr(request, key)
        asked[f"analysis_{key}"] = None if value == getattr(defaults, key) else value
    if request.max_divergence != defaults.max_divergence:
        asked["max_divergence"] = request.max_divergence
    for key, value in asked.items():
        if value is not None:
            text = ",".join(value) if isinstance(value, (list, tuple)) else str(value)
            words += ["--" + key.replace("_", "-"), text]
    return shlex.join(words)
