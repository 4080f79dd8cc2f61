from __future__ import annotations

from pathlib import Path

import pytest

from optimum_ishrink import IShrinker


@pytest.fixture(scope="session")
def small(llama_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned tiny model that tests read and never change."""
    target = tmp_path_factory.mktemp("pruned") / "small"
    IShrinker.from_pretrained(llama_folder, dtype="float32").shrink(
        num_hidden_layers=3,
        intermediate_size=16,
        calibration=str(text_file),
        calibration_samples=8,
        calibration_length=16,
        evaluate=False,
        benchmark=False,
        save_directory=target,
    )
    return target


@pytest.fixture(scope="session")
def flags(llama_folder: Path, text_file: Path, other_text: Path) -> list[str]:
    words = f"""
        --teacher {llama_folder} --recovery-data {text_file} --recovery-tokens 700 --recovery-length 16
        --recovery-lora-rank 4 --recovery-learning-rate 0.01 --recovery-save-steps 2 --recovery-batch-size 4
        --batch-size 4 --eval-text {other_text} --eval-samples 3 --eval-length 16 --no-benchmark --dtype float32
        --device cpu
    """
    return words.split()
