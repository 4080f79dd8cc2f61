"""Speed measurements for a report: timings in turn, loading, and costs that do not depend on the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..core.limits import max_positions
from ..errors import RequestError
from ..report.report import ModelReport
from .footprint import measure_footprint
from .fresh_process import measure_loading
from .latency import LatencySettings, measure_latency
from .options import SpeedOptions


def check_positions(options: SpeedOptions, *model_configs: Any) -> None:
    """Check that the requested timings fit the models' positions.

    Args:
        options: What to time.
        model_configs: The models' configs.

    Raises:
        RequestError: A prompt with the tokens after it is too long; the message says what fits.
    """
    longest, new_tokens = max(options.benchmark_prompt_length), options.benchmark_new_tokens
    for model_config in model_configs:
        limit = max_positions(model_config)
        if limit is not None and longest + new_tokens > limit:
            raise RequestError(
                f"benchmark_prompt_length={longest} and benchmark_new_tokens={new_tokens} are together more than the "
                f"model's {limit} positions; with so many new tokens a prompt may have {max(limit - new_tokens, 0)}"
            )


def add_speed(
    options: SpeedOptions,
    reports: Mapping[str, ModelReport],
    models: Mapping[str, Any],
    folders: Mapping[str, Path],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, ModelReport]:
    """Time models in turn, and return their reports with the figures added.

    Args:
        options: What to time.
        reports: Report of each model, by its name; the others are compared with the first.
        models: The loaded models, in the same order.
        folders: Their checkpoints.
        dtype: The dtype that they compute in.
        device: The device that they are on.
    """
    settings = [
        LatencySettings(length, options.benchmark_new_tokens, options.benchmark_rounds, batch_size=batch_size)
        for batch_size in options.benchmark_batch_size
        for length in options.benchmark_prompt_length
    ]
    shortest, new_tokens = min(options.benchmark_prompt_length), options.benchmark_new_tokens
    timed = measure_latency(models, settings)
    loaded = measure_loading(folders, dtype=dtype, device=device, prompt_length=shortest, new_tokens=new_tokens)
    return {
        name: replace(
            report,
            speed=report.speed + timed[name] + loaded[name] + measure_footprint(models[name], shortest),
        )
        for name, report in reports.items()
    }
