"""Evaluation: what was lost and what was gained, as measurements that a report holds."""

from .environment import environment
from .footprint import measure_footprint
from .fresh_process import measure_loading
from .harness import evaluate_tasks, open_tasks
from .latency import LatencySettings, measure_latency
from .passages import TextWindows, text_windows
from .text_quality import name_measurements, text_measurements
from .text_statistics import (
    TextQuality,
    compare_logits,
    kl_divergence,
    mean_over_windows,
    perplexity,
    token_statistics,
)
from .timing import TimingComparison, compare_timings

__all__ = [
    "LatencySettings",
    "TextQuality",
    "TextWindows",
    "TimingComparison",
    "compare_logits",
    "compare_timings",
    "environment",
    "evaluate_tasks",
    "kl_divergence",
    "mean_over_windows",
    "measure_footprint",
    "measure_latency",
    "measure_loading",
    "name_measurements",
    "open_tasks",
    "perplexity",
    "text_measurements",
    "text_windows",
    "token_statistics",
]
