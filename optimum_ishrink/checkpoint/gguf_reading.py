"""Reading a GGUF file: into a dequantised checkpoint folder, and its own licence and languages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..core.progress import progress_bar
from ..errors import SourceError, one_line
from .gguf_header import file_fetcher, read_values
from .gguf_once import read_once
from .gguf_settings import check_all_read, complete_config, first_of, read_settings
from .gguf_vocabulary import complete_tokenizer
from .missing_files import no_gguf
from .older_keys import add_older_keys
from .tensors import preview
from .whole_gguf import check_whole


def convert_gguf(folder: Path, gguf_file: str, dtype: torch.dtype, target: Path) -> str | None:
    """Read a GGUF file and save it as a plain checkpoint: config, tokenizer files and safetensors.

    Args:
        folder: The folder that holds the file.
        gguf_file: Its name.
        dtype: Dtype of the safetensors.
        target: An existing, empty folder.

    Returns:
        What `add_older_keys` returns.

    Raises:
        SourceError: The file is missing, cut short, or cannot be read; it lacks values of the model's weights, or has
            something that would be lost.
    """
    check_gguf_file(folder, gguf_file)
    check_whole(folder / gguf_file)
    settings = read_settings(folder / gguf_file)
    # transformers draws its own bar, which cannot be turned off; errors are raised, so nothing else is lost. Once
    # it is this thread's turn, not before: what is redirected is the whole process's.
    with (
        _errors(folder / gguf_file),
        progress_bar(f"reading {gguf_file}", 1) as advance,
        read_once() as known,
        redirect_stderr(StringIO()),
    ):
        config = AutoConfig.from_pretrained(folder, gguf_file=gguf_file)
        complete_config(config, settings)
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=gguf_file, config=config, dtype=dtype, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file, trust_remote_code=False)
        complete_tokenizer(tokenizer, settings)
        advance(1)
    if missing := sorted(loaded["missing_keys"]):  # transformers draws values for them at random, and goes on
        raise SourceError(
            f"{folder / gguf_file} has no values that transformers {transformers.__version__} can read for "
            f"{first_of(missing)}; name the checkpoint that it was made of, or another file"
        )
    if known:
        check_all_read(settings, known)
    elif unread := sorted(loaded["unexpected_keys"]):
        raise settings.not_read(preview(unread))
    _remove_quantizer(model)
    # transformers takes the name of the training run from the file; a path or a name here would only mislead.
    model.config._name_or_path = ""
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return add_older_keys(target, tokenizer)


def save_gguf_config(folder: Path, gguf_file: str, target: Path, *, tokenizer: bool = False) -> None:
    """Save the config in a GGUF file as config.json, and its tokenizer where that is needed.

    Args:
        folder: The folder that holds the file.
        gguf_file: Its name. Its weights need not be there.
        target: An existing folder.
        tokenizer: Whether the tokenizer's files are saved as well; a long list of tokens takes seconds.

    Raises:
        SourceError: The file cannot be read, or has something that would be lost.
    """
    with _errors(folder / gguf_file), read_once():
        config = AutoConfig.from_pretrained(folder, gguf_file=gguf_file)
        settings = read_settings(folder / gguf_file)
        complete_config(config, settings, weights=False)
        if tokenizer:
            read = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file, trust_remote_code=False)
            complete_tokenizer(read, settings)
            read.save_pretrained(target)
    config._name_or_path = ""
    config.save_pretrained(target)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turn what transformers raises for a file that is not valid GGUF, of many types, into one line."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        reason = one_line(error)
        raise SourceError(f"cannot read {path} as GGUF ({reason})") from None


def check_gguf_file(folder: Path, gguf_file: str) -> None:
    """Check that a folder holds a GGUF file.

    Raises:
        SourceError: It does not; the message names those that it holds.
    """
    if not (folder / gguf_file).is_file():
        raise no_gguf(str(folder), gguf_file, (path.name for path in folder.iterdir()))


def _remove_quantizer(model: Any) -> None:
    """Remove the traces of the GGUF quantiser, so that the model is saved as a plain one."""
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        model.__dict__.pop(attribute, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def gguf_metadata(path: Path) -> tuple[str | None, dict[str, str], tuple[str, ...]]:
    """Return the licence that a GGUF file names, its name and link, and the languages.

    The file's header is read here: the gguf package takes seconds for the list of tokens, which is of no use.

    Args:
        path: The file.

    Raises:
        SourceError: Its header cannot be read.
    """
    with path.open("rb") as file:
        try:
            entries = read_values(file_fetcher(file), "general.")
        except ValueError as error:
            raise SourceError(f"cannot read {path} as GGUF ({error})") from None
    texts = {
        name: [str(each) for each in (value if isinstance(value, list) else [value])]
        for name, value in entries.items()
    }
    found = {}
    for key in ("license", "license_name", "license_link"):
        if value := texts.get("general." + key.replace("_", ".")):
            found[key] = value[0]
    return found.pop("license", None), found, tuple(texts.get("general.languages", ()))
