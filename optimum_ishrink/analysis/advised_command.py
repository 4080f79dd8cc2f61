"""An analysis' advice as a command line."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..configuration import IShrinkConfig
from ..evaluation.options import TaskOptions
from ..importance.options import ImportanceOptions
from ..options.option import options_of
from .options import AnalysisOptions

READ = (*options_of(ImportanceOptions), *options_of(TaskOptions), "keep_first_layers", "keep_last_layers")
"""What an analysis reads of a config; each is a flag of `analyze` as well."""


def advised_command(
    config: IShrinkConfig,
    options: AnalysisOptions,
    changes: Mapping[str, Any],
    finer_levels: Sequence[float],
    model: str,
    *extra: str,
) -> str:
    """Return the shrink that an analysis advises; where it advises none, the finer analysis that may.

    Args:
        config: The analysis' config.
        options: What was measured.
        changes: The advice as values for an `IShrinkConfig`, or none.
        finer_levels: Levels in percent that are worth measuring when there are no changes.
        model: The model's name.
        extra: More arguments, such as `"--gguf-file", "model.gguf"`.
    """
    name = Path(model).resolve().name if Path(model).exists() else model.split("/")[-1]
    if changes:
        return config.replace(**changes).command(model, f"{name}-shrunk", *extra)
    words = ["ishrink", "analyze", "--model", model, *extra, "--output", f"{name}-analysis"]
    requested = {key: value for key, value in config.to_diff_dict().items() if key in READ}
    requested |= {**options.to_diff_dict(), "levels": [f"{level:g}" for level in finer_levels]}
    entries = {**options_of(IShrinkConfig), **options_of(AnalysisOptions)}
    for key, value in requested.items():
        words.append(entries[key].flag)
        if not isinstance(value, bool):
            words.append(",".join(map(str, value)) if isinstance(value, list) else str(value))
    return shlex.join(words)
