"""`--output` with a URL: the verb writes a local folder, which is uploaded, read again and removed."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any, TextIO, cast

from ..core.cache import cache_folder
from ..core.digest import digest
from ..core.processes import is_main_process
from ..core.storage import is_url, open_storage
from ..core.uploading import check_upload, upload
from ..errors import OutputError, RequestError

UPLOADING = ("shrink", "recover", "analyze", "search", "export")
"""Verbs whose output can be at a URL: those that make a folder or file for others to read."""


class _Renaming:
    """Standard output on which one path is called by another name."""

    def __init__(self, file: TextIO, path: str, name: str) -> None:
        self._file, self._path, self._name = file, path, name

    def write(self, text: str) -> int:
        return self._file.write(text.replace(self._path, self._name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def run_verb(verb: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """Run a verb, and upload its output where `--output` is a URL.

    The local folder's place follows from the URL, so that what a verb resumes from is found again.

    Args:
        verb: The verb.
        args: Its parsed arguments.

    Returns:
        What the verb returns; its output is called by the URL.

    Raises:
        OutputError: Nothing can be written at the URL, something is there already, or this verb writes local files.
        PublishError: The upload failed; the message says where the local folder is, which is complete.
    """
    url = getattr(args, "output", None)
    if not is_url(url):
        return verb(args)
    if args.verb not in UPLOADING:
        raise OutputError(f"ishrink {args.verb} writes to this machine; URLs are for {', '.join(UPLOADING)}")
    if getattr(args, "dry_run", False):
        return verb(args)
    storage = open_storage(str(url), OutputError)
    folder = cache_folder() / "outputs" / digest(storage.shown) / storage.name
    if is_main_process():
        check_upload(storage, args.overwrite)
        if folder.exists() and not args.overwrite:
            raise OutputError(
                f"{folder} is complete, of an earlier run that could not be uploaded: "
                f"ishrink push --model {folder} --url {storage.shown}, or remove it, or pass --overwrite"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
    args.output, args.uploads = str(folder), True
    with redirect_stdout(cast(TextIO, _Renaming(sys.stdout, str(folder), storage.shown))):
        try:
            result = verb(args)
        except OutputError:  # of the local folder itself, such as a disk that is full
            raise
        except RequestError as error:
            raise type(error)(str(error).replace(str(folder), storage.shown)) from None
    if is_main_process():
        upload(folder, storage)
        shutil.rmtree(folder.parent, ignore_errors=True)
    if isinstance(result, dict) and "output" in result:
        result["output"] = storage.shown
    return result
