"""Opening a source of which no weights are read: its config, and its tokenizer where that is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..core.storage import is_url
from ..errors import SourceError
from .gguf_reading import check_gguf_file, save_gguf_config
from .hub_download import download_config, download_gguf_header, repository_files
from .source import COMMIT, Source, local_path, open_source, refuse_adapter, temporary_folder
from .tensors import refuse_pickles
from .url_download import fetch_checkpoint


def open_config(
    model: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    gguf_file: str | None = None,
    tokenizer: bool = False,
) -> Source:
    """Open a source of which no weights will be read.

    Of a Hub repository config.json alone is fetched, or the header of a GGUF file. Where a folder holds weights, their
    headers are checked.

    Args:
        model: Hub id, folder, or a URL of fsspec.
        revision: Branch, tag or commit of a Hub repository.
        token: Hub token; never stored.
        gguf_file: Name of a GGUF file in the folder or repository, whose config is read.
        tokenizer: Whether the tokenizer is needed: it is fetched from a Hub repository, or read from a GGUF file.

    Raises:
        SourceError: There is no config.json, it belongs to an adapter or to pickled weights, or the headers of a
            folder's weights do not fit it.
    """
    name = str(model)
    if is_url(name):
        folder, storage = fetch_checkpoint(name, gguf_file, weights=False)
        if gguf_file is not None:
            return _open_gguf_config(storage.shown, folder, gguf_file, None, None, tokenizer=tokenizer)
        return replace(open_source(folder), name=storage.shown)
    local = local_path(name)
    if gguf_file is not None and not local.is_file():
        return _open_gguf_config(name, local, gguf_file, revision, token, tokenizer=tokenizer)
    if local.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        source = open_source(model)
        if any(local.glob("*.safetensors")):
            source.check_headers()
        return source
    folder = download_config(name, revision, token, tokenizer=tokenizer)
    commit = folder.name if COMMIT.fullmatch(folder.name) else revision
    files = repository_files(name, commit, token)
    refuse_adapter(name, files)
    if files and not any(file.endswith(".safetensors") for file in files):
        refuse_pickles(name, files)
    return Source(name, folder, revision=commit, is_hub_id=True)


def _open_gguf_config(
    name: str, local: Path, gguf_file: str, revision: str | None, token: str | bool | None, *, tokenizer: bool
) -> Source:
    is_hub_id = not local.is_dir()
    if is_hub_id and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise SourceError(f"{name} does not exist")
    target, owner = temporary_folder()
    folder, commit = local, None
    if is_hub_id:
        folder = target / "header"
        folder.mkdir()
        commit = download_gguf_header(name, gguf_file, revision, token, folder)
    else:
        check_gguf_file(folder, gguf_file)
    save_gguf_config(folder, gguf_file, target, tokenizer=tokenizer)
    return Source(name, target, revision=commit or revision, is_hub_id=is_hub_id, gguf_file=gguf_file, _owner=owner)
