"""Evaluation: what was lost and what was gained, as measurements that a report holds."""

from .environment import environment
from .harness import evaluate_tasks, open_tasks
from .latency import LatencySettings, measure_latency
from .passages import TextWindows, text_windows
from .quality import name_measurements, text_measurements
from .text import TextQuality, compare_logits, kl_divergence, mean_over_windows, perplexity, token_statistics

__all__ = [
    "LatencySettings",
    "TextQuality",
    "TextWindows",
    "compare_logits",
    "environment",
    "evaluate_tasks",
    "kl_divergence",
    "mean_over_windows",
    "measure_latency",
    "name_measurements",
    "open_tasks",
    "perplexity",
    "text_measurements",
    "text_windows",
    "token_statistics",
]
