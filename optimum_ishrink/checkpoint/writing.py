"""Writing a checkpoint folder: weight files and their index, config, copied files, and the check of the result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..architectures.config_edit import without_code
from ..architectures.model_class import expected_tensors, parse_config
from ..core.json_files import read_json
from ..core.progress import note
from ..errors import VerificationError
from .comparing import same_values
from .generation import GENERATION_CONFIG, mend_generation_config
from .source import Source
from .stored_names import read_by_parameter
from .tensors import (
    INDEX_NAME,
    WEIGHTS_NAME,
    OutgoingTensor,
    file_nbytes,
    read_index,
    shard,
    write_file,
)
from .tokenizer_files import PROCESSOR_FILES, TOKENIZER_PATTERNS

MAX_SHARD_SIZE = 5 * 1000**3
"""Bytes in one weight file: 5 GB, so that a compact model is one file and shards of larger ones are easy to move."""


LICENSE_PATTERNS = ("LICENSE*", "NOTICE*", "USE_POLICY*")
"""Files that say under which terms a model is given."""

CARRIED_PATTERNS = (*TOKENIZER_PATTERNS, *PROCESSOR_FILES, GENERATION_CONFIG, *LICENSE_PATTERNS)
"""Files next to the weights that do not change with the cut."""


def write_weights(
    outgoing: list[OutgoingTensor],
    folder: Path,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
    progress: Callable[[int], None] | None = None,
    found: Collection[str] = (),
    on_file: Callable[[Path], None] | None = None,
) -> None:
    """Write weight files, and an index if there are several, as `save_pretrained` does.

    Args:
        outgoing: The tensors.
        folder: An existing folder.
        max_shard_size: Maximum size of a file in bytes.
        progress: Called with the bytes of each tensor once it is written.
        found: Names of weight files that are in the folder already.
        on_file: Called with each file once it is written.

    Raises:
        OutputError: There is no space or no permission.
        SourceError: A source file was truncated while it was read.
    """
    files = shard(outgoing, max_shard_size)
    for file_name, tensors in files.items():
        if file_name not in found:
            write_file(folder / file_name, tensors, progress=progress)
            if on_file is not None:
                on_file(folder / file_name)
        elif progress is not None:
            progress(sum(tensor.nbytes for tensor in tensors))
    if len(files) > 1:
        index = {
            "metadata": {
                "total_parameters": sum(torch.Size(tensor.shape).numel() for tensor in outgoing),
                "total_size": sum(tensor.nbytes for tensor in outgoing),
            },
            "weight_map": dict(sorted((t.name, file) for file, group in files.items() for t in group)),
        }
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def weights_nbytes(outgoing: list[OutgoingTensor], *, max_shard_size: int = MAX_SHARD_SIZE) -> int:
    """Return the bytes of the weight files that `write_weights` writes, all together; an index does not count.

    Args:
        outgoing: The tensors.
        max_shard_size: Maximum size of a file in bytes.
    """
    return sum(file_nbytes(tensors) for tensors in shard(outgoing, max_shard_size).values())


def carry_files(source: Path, folder: Path, patterns: Sequence[str] = CARRIED_PATTERNS) -> list[str]:
    """Copy tokenizer, generation config, chat template and licence; return their names.

    They are copied byte for byte, with two exceptions: a config of the tokenizer or of a processor that names Python
    code, which is not copied, and a generation config that transformers would refuse to save again.

    Args:
        source: The source's folder.
        folder: The new folder.
        patterns: Which of these files are copied; all by default.

    Raises:
        SourceError: The generation config cannot be used.
    """
    carried: list[str] = []
    for pattern in patterns:
        for path in sorted(source.glob(pattern)):
            name = path.relative_to(source).as_posix()
            if name in carried or not path.is_file() or path.suffix in _NOT_CARRIED:
                continue
            (folder / name).parent.mkdir(exist_ok=True)
            changed = _changed_contents(path)
            if changed is None:
                shutil.copyfile(path, folder / name)
            else:
                _write_object(changed, folder / name)
            carried.append(name)
    return carried


_NOT_CARRIED = (".py", ".safetensors", ".bin", ".pt", ".pth")
"""Endings of files that are never copied because of their name: code, and weights."""


def _changed_contents(path: Path) -> dict[str, Any] | None:
    """Return what a carried file has to hold instead of its bytes, or None where it is right as it is."""
    if path.name == GENERATION_CONFIG:
        mended, dropped = mend_generation_config(path)
        if dropped:
            note(f"{GENERATION_CONFIG}: left out {', '.join(dropped)}, which it sets without effect")
        return mended if dropped else None
    if path.name == "tokenizer_config.json" or path.name in PROCESSOR_FILES:
        raw = read_json(path)
        return without_code(raw) if isinstance(raw, dict) and "auto_map" in raw else None
    return None


def write_config(edited: Mapping[str, Any], folder: Path) -> None:
    """Write config.json with the keys in the source's order."""
    _write_object(edited, folder / "config.json")


def drop_code(folder: Path) -> None:
    """Leave `auto_map` out of a written config.json: the Python files that it names are not there.

    Args:
        folder: The checkpoint.
    """
    raw = read_json(folder / "config.json")
    if "auto_map" in raw:
        write_config(without_code(raw), folder)


def _write_object(data: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def verify_checkpoint(folder: Path, dtypes: Mapping[str, str] | None = None) -> int:
    """Check a written checkpoint against what its config's model class expects, without loading it.

    Args:
        folder: The checkpoint.
        dtypes: The dtype that every tensor must have, by its name in the files; None for any dtype.

    Returns:
        The number of parameters in the files.

    Raises:
        VerificationError: Names, shapes or dtypes differ; the message lists them.
    """
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = parse_config(raw)
    expected = expected_tensors(config)
    written = read_by_parameter(folder, config)
    faults = [f"{name} is missing" for name in sorted(expected.keys() - written.keys())]
    faults += [f"{name} is unexpected" for name in sorted(written.keys() - expected.keys())]
    for name in sorted(expected.keys() & written.keys()):
        if written[name].shape != expected[name]:
            faults.append(f"{name} is {list(written[name].shape)}, expected {list(expected[name])}")
        dtype = None if dtypes is None else dtypes[written[name].stored_as or name]
        if dtype is not None and written[name].dtype != dtype:
            faults.append(f"{name} is {written[name].dtype}, expected {dtype}")
    if faults:
        raise VerificationError(f"the written checkpoint is not what its config expects: {'; '.join(faults)}")
    return sum(torch.Size(info.shape).numel() for info in written.values())


def compare_written(outgoing: Iterable[OutgoingTensor], folder: Path) -> None:
    """Read every tensor of written weight files again, one at a time, and compare it with what was to be written.

    Args:
        outgoing: The tensors; each is made once more.
        folder: The checkpoint.

    Raises:
        VerificationError: The bytes differ.
    """
    written = read_index(folder)
    for tensor in outgoing:
        if not same_values(tensor, written[tensor.name]):
            raise VerificationError(
                f"{tensor.name} does not read back as it was written; the disk or its file system fails: write to "
                "another one"
            )


def copy_checkpoint(source: Source, folder: Path) -> None:
    """Copy a checkpoint with its tokenizer, licence, plan, config, scores and report.

    The weight files are copied as they are where they hold what the config's model class expects and nothing else.
    Otherwise they are written anew, without the second copy of a tied head and the buffers that old versions saved,
    and under the names of the model class: what is trained later would leave such a copy behind.

    Args:
        source: The checkpoint.
        folder: An existing, empty folder.

    Raises:
        SourceError: The checkpoint is corrupt, or does not hold what its config's model class expects.
        OutputError: There is no space or no permission.
    """
    carry_files(source.folder, folder)
    write_config(without_code(source.raw_config), folder)
    stored = read_index(source.folder)
    names = {path.name for path in source.folder.glob("ishrink_*") if path.is_file()}
    if stored.keys() == {info.stored_as or name for name, info in source.tensors.items()}:
        names |= {info.file.name for info in stored.values()}
        if not (source.folder / WEIGHTS_NAME).is_file():
            names.add(INDEX_NAME)
    else:
        outgoing = [
            OutgoingTensor(info.stored_as or name, info.dtype, info.shape, source=info)
            for name, info in source.tensors.items()
        ]
        write_weights(outgoing, folder)
        compare_written(outgoing, folder)
    for name in sorted(names):
        shutil.copyfile(source.folder / name, folder / name)
