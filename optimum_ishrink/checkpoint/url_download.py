"""Fetching a checkpoint from a URL of fsspec, such as `s3://bucket/model`: only the files that are needed."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

from ..core.cache import cache_folder
from ..core.digest import digest
from ..core.fetching import fetch_files
from ..core.storage import Storage, open_storage
from ..errors import SourceError
from .hub_download import CHECKPOINT_FILES, CONFIG_FILES, SECOND_COPIES
from .missing_files import no_config, no_gguf
from .tensors import refuse_pickles


def fetch_checkpoint(url: str, gguf_file: str | None = None, *, weights: bool = True) -> tuple[Path, Storage]:
    """Fetch a checkpoint into the cache, where it has not changed since, and return its folder and its place.

    A changed file, by what its file system says of it (size, time, checksum), makes another folder.

    Args:
        url: The URL of the folder that holds it.
        gguf_file: Name of a GGUF file to fetch as well.
        weights: Whether the weights are fetched; a GGUF file always is.

    Raises:
        SourceError: It cannot be read, or holds no checkpoint; the message says why.
        OutputError: There is no space or no permission in the cache.
    """
    storage = open_storage(url, SourceError)
    there = storage.list_files(depth=2)  # chat templates may be in a folder
    if not there:
        raise SourceError(f"{storage.shown} is empty or does not exist; name the folder that holds config.json")
    if gguf_file is not None and gguf_file not in there:
        raise no_gguf(storage.shown, gguf_file, there)
    if gguf_file is None and "config.json" not in there:
        raise no_config(storage.shown, there)
    allowed = [*(CHECKPOINT_FILES if weights else CONFIG_FILES), *([gguf_file] if gguf_file else [])]
    needed = {
        name: there[name]
        for name in filter_repo_objects(sorted(there), allow_patterns=allowed, ignore_patterns=list(SECOND_COPIES))
    }
    if weights and gguf_file is None and not any(name.endswith(".safetensors") for name in needed):
        refuse_pickles(storage.shown, there)
    state = digest({"url": storage.shown, "files": needed})
    folder = cache_folder() / "sources" / state / storage.name
    fetch_files(storage, {name: size for name, (size, _) in needed.items()}, folder)
    return folder, storage
