"""Evaluation: what was lost and what was gained, as measurements that a report holds."""

from .environment import environment
from .harness import evaluate_tasks, open_tasks
from .latency import LatencySettings, measure_latency
from .quality import text_measurements
from .text import kl_divergence, token_statistics

__all__ = [
    "LatencySettings",
    "environment",
    "evaluate_tasks",
    "kl_divergence",
    "measure_latency",
    "open_tasks",
    "text_measurements",
    "token_statistics",
]
