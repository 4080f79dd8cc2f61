"""Options of evaluation: what quality and speed are measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..options.offload import OffloadOptions
from ..options.option import option
from ..options.run import RunOptions

BENCHMARK_LENGTHS = (64, 512)
"""Prompts that `benchmark` times by default, in tokens: one as short as a chat turn, one that prefill dominates."""


@dataclass(frozen=True, kw_only=True, repr=False)
class TaskOptions(OffloadOptions):
    """Which tasks of lm-evaluation-harness are measured."""

    tasks: Sequence[str] = option(
        (),
        metavar="A[,B...]",
        help="lm-eval tasks or groups of them, thesis-zero-shot, thesis-few-shot",
        doc="lm-eval tasks or groups of them, `thesis-zero-shot` (OpenBookQA, WinoGrande and HellaSwag) and "
        "`thesis-few-shot` (MMLU with 5 examples).",
    )
    include_path: str | None = option(
        None,
        metavar="DIR",
        path="folder",
        help="folder with lm-eval task files; then only its tasks are available",
        doc="Folder with lm-eval task files; then only its tasks are available.",
    )
    num_fewshot: int | None = option(
        None,
        ge=0,
        metavar="N",
        help="examples in the prompt",
        doc="Examples in the prompt. By default each task's own number.",
        default_help="each task's own",
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class QualityOptions(TaskOptions):
    """What quality is measured on."""

    evaluate: bool = option(
        True,
        help="skip perplexity, divergence and tasks",
        doc="Measure perplexity, KL divergence and agreement with the base (and `tasks`).",
    )
    eval_text: Sequence[str] | None = option(
        None,
        metavar="SRC[,SRC...]",
        path="text",
        help="text to measure on",
        doc="Text sources to measure on. By default Python's reference topics, which every machine has.",
        default_help="Python's reference topics",
    )
    eval_samples: int = option(32, metavar="N", help="windows of each evaluation text")
    eval_length: int = option(512, ge=2, metavar="N", help="tokens in each evaluation window")
    sample_new_tokens: int = option(
        48,
        ge=0,
        metavar="N",
        help="tokens that both models write after a few fixed prompts; 0 for none",
        doc="Tokens that both models write after each of a few fixed prompts, for the card; 0 for none.",
    )
    result_cache: bool = option(
        True,
        help="measure again, and cache no results on disk",
        doc="Cache measurements of a model on disk (beside the scores), and reuse them when model, data, settings, "
        "versions and hardware are the same: an interrupted run resumes, and a base is measured once.",
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class SpeedOptions(RunOptions):
    """What is timed."""

    benchmark: bool = option(
        True,
        help="skip the timing",
        doc="Time base and result in turn, and measure loading, memory and operations.",
    )
    benchmark_prompt_length: Sequence[int] = option(
        (64,),
        metavar="N[,N...]",
        help="tokens in the prompt, each length timed separately",
        doc="Tokens in the prompts that are timed, one number or several; decoding continues from there. The verb "
        f"`benchmark` times {' and '.join(map(str, BENCHMARK_LENGTHS))}.",
    )
    benchmark_batch_size: Sequence[int] = option(
        (1,), metavar="N[,N...]", help="sequences at once, one number or several"
    )
    benchmark_new_tokens: int = option(
        6,
        metavar="N",
        help="tokens decoded after the prompt",
        doc="Tokens decoded after each prompt, in each of a model's two turns a round.",
    )
    benchmark_rounds: int = option(
        13,
        metavar="N",
        help="measured rounds; at least 9 are needed to find a difference",
        doc="Measured rounds. With fewer than nine, no difference can be distinguished from chance.",
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class EvaluationOptions(QualityOptions, SpeedOptions):
    """What quality and speed are measured on."""
