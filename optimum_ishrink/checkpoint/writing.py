"""Writing a checkpoint folder: weight files and their index, config, copied files, and the check of the result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..architectures.model_class import expected_tensors, parse_config
from ..errors import VerificationError
from .tensors import INDEX_NAME, OutgoingTensor, read_index, shard, write_file

MAX_SHARD_SIZE = 5 * 1000**3
"""Bytes in one weight file: 5 GB, so that a compact model is one file and shards of larger ones are easy to move."""


CARRIED_PATTERNS = (
    "tokenizer*.json",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "*.tiktoken",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
"""Files next to the weights that do not change with the cut: they are copied byte for byte."""


def write_weights(
    outgoing: list[OutgoingTensor],
    folder: Path,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write weight files, and an index if there are several, as `save_pretrained` does.

    Args:
        outgoing: The tensors.
        folder: An existing folder.
        max_shard_size: Maximum size of a file in bytes.
        progress: Called with the bytes of each tensor once it is written.

    Raises:
        OutputError: There is no space or no permission.
        SourceError: A source file was truncated while it was read.
    """
    files = shard(outgoing, max_shard_size)
    for file_name, tensors in files.items():
        write_file(folder / file_name, tensors, progress=progress)
    if len(files) > 1:
        index = {
            "metadata": {
                "total_parameters": sum(torch.Size(tensor.shape).numel() for tensor in outgoing),
                "total_size": sum(tensor.nbytes for tensor in outgoing),
            },
            "weight_map": dict(sorted((t.name, file) for file, group in files.items() for t in group)),
        }
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def carry_files(source: Path, folder: Path) -> list[str]:
    """Copy tokenizer, generation config, chat template and licence byte for byte; return their names.

    Args:
        source: The source's folder.
        folder: The new folder.
    """
    carried = []
    for pattern in CARRIED_PATTERNS:
        for path in sorted(source.glob(pattern)):
            name = path.relative_to(source)
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)
            carried.append(str(name))
    return carried


def write_config(edited: Mapping[str, Any], folder: Path) -> None:
    """Write config.json with the keys in the source's order."""
    (folder / "config.json").write_text(json.dumps(edited, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def verify_checkpoint(folder: Path, dtypes: Mapping[str, str] | None = None) -> int:
    """Check a written checkpoint against what its config's model class expects, without loading it.

    Args:
        folder: The checkpoint.
        dtypes: The dtype that every tensor must have, by name; None for any dtype.

    Returns:
        The number of parameters in the files.

    Raises:
        VerificationError: Names, shapes or dtypes differ; the message lists them.
    """
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    expected = expected_tensors(parse_config(raw))
    written = read_index(folder)
    faults = [f"{name} is missing" for name in sorted(expected.keys() - written.keys())]
    faults += [f"{name} is unexpected" for name in sorted(written.keys() - expected.keys())]
    for name in sorted(expected.keys() & written.keys()):
        if written[name].shape != expected[name]:
            faults.append(f"{name} is {list(written[name].shape)}, expected {list(expected[name])}")
        if dtypes is not None and written[name].dtype != dtypes[name]:
            faults.append(f"{name} is {written[name].dtype}, expected {dtypes[name]}")
    if faults:
        raise VerificationError(f"the written checkpoint is not what its config expects: {'; '.join(faults)}")
    return sum(torch.Size(info.shape).numel() for info in written.values())


def copy_checkpoint(source: Path, folder: Path) -> None:
    """Copy a checkpoint with its tokenizer, licence, plan, config, scores and report.

    Args:
        source: The checkpoint's folder.
        folder: An existing, empty folder.
    """
    carry_files(source, folder)
    names = {info.file.name for info in read_index(source).values()} | {"config.json"}
    names |= {path.name for path in source.glob("ishrink_*") if path.is_file()}
    names |= {path.name for path in source.glob("*.safetensors.index.json")}
    for name in sorted(names):
        shutil.copyfile(source / name, folder / name)
