"""Loading a checkpoint folder into memory: the model and the tokenizer, without remote code and without gaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoProcessor, AutoTokenizer

from ..architectures.composite import loading_options
from ..architectures.model_class import auto_class
from ..core.json_files import read_json
from ..errors import SourceError, one_line
from .tensors import preview

_UNUSABLE = (OSError, ValueError, KeyError, TypeError, ImportError, StrictDataclassError)
"""What transformers raises for files that it cannot use; the last is a config class that refuses a value."""


def load_tokenizer(folder: Path) -> Any:
    """Load a checkpoint folder's tokenizer.

    Raises:
        SourceError: The folder holds no usable tokenizer.
    """
    try:
        # Without this argument, transformers asks on the terminal whether it may run the folder's code.
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except _UNUSABLE as error:
        reason = one_line(error)
        raise SourceError(f"{folder} holds no usable tokenizer ({reason})") from None


def load_processor(folder: Path) -> Any:
    """Load a checkpoint folder's processor of images and text.

    Raises:
        SourceError: The folder holds none, or it needs a package that is not installed.
    """
    try:
        found = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    except _UNUSABLE as error:
        reason = one_line(error)
        raise SourceError(f"{folder} holds no usable processor of images ({reason})") from None
    if getattr(found, "image_processor", None) is None:  # the auto class falls back on the tokenizer
        raise SourceError(
            f"{folder} holds no processor of images; add the base's processor files, or calibrate on text"
        )
    return found


def load_model(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a checkpoint folder with the plain auto class of its type, and check that every tensor was found and fits.

    Args:
        folder: The checkpoint.
        dtype: Compute dtype.
        device: Where to put the model.

    Raises:
        SourceError: A file is missing or damaged, or does not fit the model class.
    """
    try:
        # Safetensors alone: a pickle is never loaded.
        model_type = model_type_of(folder)
        model, info = auto_class(model_type).from_pretrained(
            folder,
            dtype=dtype,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
            **loading_options(model_type),
        )
    except torch.OutOfMemoryError:
        raise
    except (*_UNUSABLE, RuntimeError, SafetensorError) as error:
        reason = one_line(error)
        raise SourceError(f"{folder} cannot be loaded ({type(error).__name__}: {reason})") from None
    for problem in ("missing_keys", "mismatched_keys"):
        if info[problem]:
            raise SourceError(f"{folder} does not load cleanly: {problem} {preview(sorted(map(str, info[problem])))}")
    return model.to(device).eval()


def model_type_of(folder: Path) -> str:
    """Return the `model_type` of a checkpoint's config.json; the empty text where there is none.

    Args:
        folder: The checkpoint.
    """
    raw = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    return str(raw.get("model_type")) if isinstance(raw, dict) else ""
