"""A checkpoint with the weights that a GGUF file holds, to be measured where checkpoints are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from optimum_ishrink.checkpoint.source import Source

TEXTS = ("wikitext2.test.txt", "commonsense_qa.validation.jsonl", "pydoc")
"""Text that nothing was chosen on: two files, and the reference topics of Python."""


def stored_checkpoint(source: Source, file: Path, folder: Path) -> Path:
    """Write a checkpoint in float32 with the values of a file, as transformers reads them.

    Args:
        source: The checkpoint that the file was made from; its tokenizer is taken.
        file: The GGUF file.
        folder: Where to.
    """
    loader: Any = AutoModelForCausalLM
    model = loader.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    exact = source.load_model(torch.float32, torch.device("cpu"))
    there = dict(model.named_parameters())
    for name, weight in exact.named_parameters():
        if there[name].shape != weight.shape:
            raise ValueError(f"{file} is not of {source.display_name}: {name} has another shape")
        weight.data.copy_(there[name].data)
    exact.save_pretrained(folder)
    source.load_tokenizer().save_pretrained(folder)
    return folder
