"""Timing in llama.cpp, with the measurements added to the model's report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..card.update import can_update, update_report
from ..checkpoint.source import Source
from ..configuration import IShrinkConfig
from ..core.progress import note
from ..edge.llama_cpp import LlamaCppBenchmark, open_for_llama_cpp
from ..edge.llama_cpp import benchmark_llama_cpp as time_in_llama_cpp
from ..edge.options import RuntimeOptions
from ..errors import RequestError
from ..report.report import Report

READ = ("benchmark_prompt_length", "benchmark_new_tokens", "benchmark_rounds")
"""What this runtime reads of a config."""


def benchmark_llama_cpp(
    model: str | Path | Source,
    base: str | Path | Source | None,
    options: RuntimeOptions,
    *,
    revision: str | None = None,
    update: bool = True,
    base_model: str | None = None,
    **changes: Any,
) -> LlamaCppBenchmark:
    """Time a model in llama.cpp, in turn with a base where there is one. Checkpoints are exported first.

    Args:
        model: A GGUF file, a checkpoint folder or a Hub id.
        base: The same of the base, or None.
        options: Quantisation and threads.
        revision: Branch, tag or commit of the model on the Hub.
        update: Add the measurements to the report and card of the model's folder, where it was cut from this base.
        base_model: Another name for the base.
        **changes: `benchmark_prompt_length`, `benchmark_new_tokens` and `benchmark_rounds`, where not those of
            this runtime: 64 and 256, 32, 16.

    Raises:
        RequestError: llama.cpp is missing, it does not read an option, or the two are not of the same quantisation.
    """
    unread = [name for name in changes if name not in READ]
    if unread:
        raise RequestError(f"runtime='llama.cpp' does not read {unread[0]}; it reads {', '.join(READ)} and base_model")
    config = IShrinkConfig(**changes)
    opened = model if isinstance(model, Source) else open_for_llama_cpp(model, revision=revision)
    other = base if isinstance(base, Source) or base is None else open_for_llama_cpp(base)
    folder = None
    if update and isinstance(opened, Source) and isinstance(other, Source) and not opened.is_copy:
        folder = opened.folder if can_update(opened.folder, other, base_model) else None
    found = time_in_llama_cpp(
        opened,
        other,
        runtime=options,
        prompt_lengths=tuple(config.benchmark_prompt_length) if "benchmark_prompt_length" in changes else None,
        new_tokens=config.benchmark_new_tokens if "benchmark_new_tokens" in changes else None,
        rounds=config.benchmark_rounds if "benchmark_rounds" in changes else None,
    )
    if folder is not None:
        update_report(folder, found.report)
    return found


def report_in_llama_cpp(
    source: Source,
    base: str | Path | Source | None,
    options: RuntimeOptions,
    config: IShrinkConfig | None,
    *,
    update: bool,
    **changes: Any,
) -> Report:
    """Time a checkpoint in llama.cpp as `benchmark_llama_cpp` does, with a note on what could not be measured.

    Args:
        source: The checkpoint.
        base: The base, or None.
        options: Quantisation and threads.
        config: Prompt lengths, new tokens, rounds and another name for the base, where they are not the defaults.
        update: Add the measurements to the model's report.
        **changes: Values that replace the config's.
    """
    values = {} if config is None else config.to_diff_dict()
    values = {name: value for name, value in values.items() if name.startswith(("benchmark_", "base_model"))}
    found = benchmark_llama_cpp(source, base, options, update=update, **{**values, **changes})
    for line in found.notes:
        note(line)
    return found.report
