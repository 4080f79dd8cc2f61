"""The flags that verbs share, in groups as `--help` shows them. Their names are the config's own."""

from __future__ import annotations

import argparse

_SOURCES = "self (sampled from the model), FILE.txt, FILE.jsonl, or a Hub data set id[:config[:split[:column]]]"


def model_flags(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the flags that say which model."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="M", required=required, help="Hub id or folder")
    group.add_argument("--gguf-file", metavar="F", help="GGUF file in that folder or repository")
    group.add_argument("--revision", help="branch, tag or commit on the Hub")
    group.add_argument("--architecture", metavar="FILE.json", help="description of an architecture of your own")
    if not required:
        group.add_argument("--config", metavar="FILE.yaml", help="recipe; flags given beside it win")


def base_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what a model is compared with, and where that goes."""
    group = parser.add_argument_group("base")
    group.add_argument(
        "--base",
        metavar="M0",
        help="Hub id or folder of the model to compare with; if --model was cut from it, its report and card get the "
        "measurements too",
    )
    group.add_argument(
        "--no-update-report", action="store_true", help="print the measurements and leave report and card as they are"
    )


def shape_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what to shrink."""
    group = parser.add_argument_group("what to shrink")
    group.add_argument("--num-hidden-layers", type=int, metavar="N", help="layers of the result")
    group.add_argument("--num-key-value-heads", type=int, metavar="N", help="KV groups, with their query heads")
    group.add_argument(
        "--num-attention-heads", type=int, metavar="N", help="query heads (default: those of its groups)"
    )
    group.add_argument("--intermediate-size", type=int, metavar="N", help="MLP neurons of every layer")
    group.add_argument("--target", help="params=-15%% or params=115M; moves the dimensions that are not given")
    group.add_argument("--prune", metavar="KEY[,KEY...]", help="dimensions that the target moves (default: all)")
    group.add_argument(
        "--intermediate-multiple", type=int, metavar="N", help="what MLP widths are kept to (default: by the width)"
    )
    group.add_argument(
        "--for-runtime",
        metavar="NAME",
        help="llama.cpp: MLP widths in multiples of 256, which its K-quants want, or else of 32",
    )
    group.add_argument(
        "--merge-key-value-heads",
        action="store_const",
        const=True,
        help="merge KV heads into means instead of removing them",
    )
    group.add_argument(
        "--allow-class-change",
        action="store_const",
        const=True,
        help="write a shape that the class refuses as another class that computes the same",
    )
    protection_flags(group)


def protection_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags that say which layers always stay."""
    group.add_argument(
        "--keep-first-layers", type=int, metavar="N", help="first layers that stay (default: 4, or 1/4)"
    )
    group.add_argument("--keep-last-layers", type=int, metavar="N", help="last layers that stay (default: 2, or 1/8)")


def analysis_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what a zero-out analysis measures."""
    group = parser.add_argument_group("what to measure")
    group.add_argument("--levels", metavar="P[,P...]", help="sparsities in percent (default: 0,5,10,...,50)")
    group.add_argument("--analysis-samples", type=int, metavar="N", help="windows to measure on (default: 8)")
    group.add_argument("--analysis-length", type=int, metavar="N", help="tokens in each (default: 256)")
    group.add_argument(
        "--analysis-text",
        metavar="SRC[,SRC...]",
        help="text to measure on (default: further windows of what is calibrated on)",
    )
    group.add_argument(
        "--max-divergence", type=float, metavar="X", help="nats/token that the advice stays below (default: 0.5)"
    )


def importance_flags(parser: argparse.ArgumentParser, *, compensation: bool = True) -> None:
    """Add the flags that say how to choose."""
    group = parser.add_argument_group("how to choose")
    group.add_argument(
        "--importance", metavar="NAME", help="for heads and neurons; 'help' lists all (default: fisher)"
    )
    group.add_argument(
        "--importance-group-size", type=int, metavar="N", help="neurons scored as one unit (default: by the criterion)"
    )
    group.add_argument(
        "--layer-importance", metavar="NAME", help="for layers; 'help' lists all (default: block-influence)"
    )
    group.add_argument("--layer-selection", metavar="NAME", help="one-shot, greedy or contiguous (default: one-shot)")
    group.add_argument(
        "--importance-samples", type=int, metavar="N", help="calibration windows to score on, at most (default: 48)"
    )
    group.add_argument("--no-score-cache", action="store_true", help="score anew, and keep no scores on disk")
    if compensation:
        group.add_argument(
            "--compensation",
            metavar="NAME",
            help="closed-form repair on the calibration text: ridge or none (default: ridge)",
        )
    group.add_argument(
        "--calibration", metavar="SRC[,SRC...]", help=f"text to calibrate on: {_SOURCES} (default: self)"
    )
    group.add_argument("--calibration-samples", type=int, metavar="N", help="windows of it (default: 64)")
    group.add_argument("--calibration-length", type=int, metavar="N", help="tokens in each (default: 256)")


def recovery_flags(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the flags that say how to train what is left."""
    group = parser.add_argument_group("recovery")
    group.add_argument(
        "--recovery",
        metavar="LOSS",
        help=f"none, or losses: ce, kl, hidden, attention; sums such as kl+hidden:0.1 (default: {default})",
    )
    group.add_argument(
        *(["--teacher"] if default != "none" else []),
        "--recovery-teacher",
        dest="recovery_teacher",
        metavar="M",
        help="Hub id or folder of the model to learn from (default: the unpruned one)",
    )
    group.add_argument("--recovery-data", metavar="SRC[,SRC...]", help=f"text to train on: {_SOURCES} (default: self)")
    group.add_argument("--recovery-tokens", type=int, metavar="N", help="tokens of it (default: 200000)")
    group.add_argument("--recovery-length", type=int, metavar="N", help="tokens in a window (default: 256)")
    group.add_argument(
        "--recovery-labels", metavar="WHICH", help="what ce is taken on: text or answers (default: text)"
    )
    group.add_argument("--recovery-temperature", type=float, metavar="T", help="temperature of kl (default: 1)")
    group.add_argument(
        "--recovery-top-k", type=int, metavar="K", help="compare the teacher's K likeliest tokens (default: all)"
    )
    group.add_argument(
        "--recovery-train",
        metavar="WHAT",
        help="lora, full, or a sum of norms, head and last:N (default: lora)",
    )
    group.add_argument("--recovery-lora-rank", type=int, metavar="R", help="rank of the adapter (default: 32)")
    group.add_argument("--recovery-lora-alpha", type=int, metavar="N", help="it is scaled by N / R (default: 64)")
    group.add_argument("--recovery-lora-dropout", type=float, metavar="P", help="dropout before it (default: 0)")
    group.add_argument(
        "--recovery-lora-targets", metavar="A[,B...]", help="linear modules to adapt (default: those of all layers)"
    )
    group.add_argument("--recovery-lora-start", metavar="HOW", help="zero or closed-form (default: zero)")
    group.add_argument(
        "--recovery-compensation",
        metavar="METHOD",
        help="closed-form repair on the recovery text before training: ridge or none (default: none)",
    )
    group.add_argument(
        "--recovery-compensation-samples", type=int, metavar="N", help="windows it solves on at most (default: 256)"
    )
    group.add_argument(
        "--recovery-learning-rate", type=float, metavar="LR", help="peak (default: 1e-3 for lora, else 1e-4)"
    )
    group.add_argument("--recovery-batch-size", type=int, metavar="N", help="windows in a step (default: 8)")
    group.add_argument("--recovery-epochs", type=int, metavar="N", help="passes over the text (default: 1)")
    group.add_argument(
        "--recovery-save-steps", type=int, metavar="N", help="steps between evaluations and checkpoints (default: 25)"
    )
    group.add_argument(
        "--recovery-patience", type=int, metavar="N", help="evaluations without a better one to stop at (default: 5)"
    )
    group.add_argument(
        "--recovery-checkpointing",
        action="store_const",
        const=True,
        help="compute layers twice to save memory",
    )
    group.add_argument(
        "--recovery-sampling-temperature", type=float, metavar="T", help="temperature of self text (default: 1)"
    )
    group.add_argument(
        "--recovery-sampling-filter", type=float, metavar="P", help="share of self text to drop (default: 0.1)"
    )
    group.add_argument(
        "--recovery-cache", metavar="DIR", help="folder that keeps self text and the teacher's top k for other runs"
    )
    group.add_argument(
        "--keep-adapter",
        "--recovery-keep-adapter",
        dest="recovery_keep_adapter",
        metavar="ID",
        nargs="?",
        const="auto",
        help="also save the adapter; ID is the pruned model's own on the Hub (default: what --model says)",
    )


def quality_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what quality is measured on."""
    group = parser.add_argument_group("quality")
    group.add_argument(
        "--eval-text", metavar="SRC[,SRC...]", help="text to measure on (default: Python's own reference)"
    )
    group.add_argument("--eval-samples", type=int, metavar="N", help="windows of each text (default: 32)")
    group.add_argument("--eval-length", type=int, metavar="N", help="tokens in each (default: 512)")
    task_flags(group)
    group.add_argument(
        "--sample-new-tokens",
        type=int,
        metavar="N",
        help="tokens that both models write behind a few fixed prompts; 0 for none (default: 48)",
    )
    group.add_argument(
        "--no-result-cache",
        action="store_true",
        help="measure anew, and keep no results on disk (they let an interrupted run go on, and spare the base)",
    )


def task_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags that say which tasks."""
    group.add_argument(
        "--tasks", metavar="A[,B...]", help="lm-eval tasks or groups of them, thesis-zero-shot, thesis-few-shot"
    )
    group.add_argument(
        "--include-path", metavar="DIR", help="folder with lm-eval task files; only its tasks are known then"
    )
    group.add_argument(
        "--num-fewshot", type=int, metavar="N", help="examples in the prompt (default: each task's own)"
    )


def speed_flags(parser: argparse.ArgumentParser, prompt_length: str = "64") -> None:
    """Add the flags that say what is timed.

    Args:
        parser: The verb's parser.
        prompt_length: The verb's default.
    """
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--benchmark-prompt-length",
        metavar="N[,N...]",
        help=f"tokens in the prompt, each length timed on its own (default: {prompt_length})",
    )
    group.add_argument("--benchmark-batch-size", metavar="N[,N...]", help="sequences at once, likewise (default: 1)")
    group.add_argument("--benchmark-new-tokens", type=int, metavar="N", help="tokens decoded behind it (default: 6)")
    group.add_argument(
        "--benchmark-rounds", type=int, metavar="N", help="rounds that count; 9 are the fewest to tell (default: 13)"
    )


def visibility_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say who may see the repository."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--private", action="store_true", help="keep the repository private; one that is public is made private first"
    )
    group.add_argument(
        "--private-until-complete",
        action="store_true",
        help="make a new repository private, and public once its commit is complete and read back",
    )


def export_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what a checkpoint is exported as."""
    group = parser.add_argument_group("export")
    group.add_argument(
        "--format",
        choices=("gguf", "safetensors"),
        default="gguf",
        help="gguf for llama.cpp, safetensors for PyTorch (default: gguf)",
    )
    group.add_argument(
        "--quantization",
        metavar="NAME",
        help="of GGUF f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0; with llama.cpp's llama-quantize on the PATH also "
        "K-quants such as q4_k_m (default: f16). Of safetensors int8, int4, int8-dynamic (default: int8)",
    )
    group.add_argument(
        "--output", metavar="PATH", required=True, help="the GGUF file, or the folder; it appears whole or not at all"
    )
    group.add_argument("--overwrite", action="store_true", help="replace what is there")
    group.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="do not compare the export's predictions with the checkpoint's",
    )
    group.add_argument("--threads", type=int, metavar="N", help="threads to compare with (default: physical cores)")
    group.add_argument(
        "--group-size", type=int, metavar="N", help="int4: weights that share a scale, 32, 64 or 128 (default: 32)"
    )
    group.add_argument("--keep-layers", metavar="N[,N...]", help="safetensors: layers that stay in 16 bits, from 0")
    group.add_argument(
        "--analysis", metavar="DIR", help="safetensors: output of analyze, whose most sensitive layers stay in 16 bits"
    )
    group.add_argument("--keep-share", type=float, metavar="S", help="share of the layers that stay so (default: 0.1)")
    group.add_argument("--json", action="store_true", help="print one JSON object on standard output")


def runtime_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where models are timed."""
    group = parser.add_argument_group("runtime")
    group.add_argument(
        "--runtime",
        choices=("pytorch", "llama.cpp"),
        default="pytorch",
        help="llama.cpp times GGUF files, or folders that are exported first, in fresh processes: prompts of 64 and "
        "256 tokens, 32 new ones, 16 rounds, unless told otherwise (default: pytorch)",
    )
    group.add_argument(
        "--quantization", metavar="NAME", help="what folders are exported as for llama.cpp (default: q8_0)"
    )
    group.add_argument("--threads", type=int, metavar="N", help="threads for llama.cpp (default: physical cores)")


def common_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what every run can be told."""
    group = parser.add_argument_group("common")
    group.add_argument("--batch-size", type=int, metavar="N", help="windows in a batch (default: 4)")
    group.add_argument("--base-model", metavar="ID", help="what the card calls a base that was read from a folder")
    group.add_argument("--seed", type=int, metavar="N", help="seed of everything that is drawn (default: 0)")
    group.add_argument("--dtype", help="compute dtype: auto, bfloat16 or float32 (default: auto)")
    group.add_argument("--device", help="auto, cpu or cuda (default: auto)")
    group.add_argument("--json", action="store_true", help="print one JSON object on standard output")
