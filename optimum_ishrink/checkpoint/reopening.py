"""Opening a written checkpoint as its user will: its tokenizer, its configs, and the model with its logits.

`from_pretrained` of an auto class looks at more than weights: a second copy of a tied head, an adapter, a config
that a class reads in its own way. So what it opens is compared with the model class of the config, filled with the
tensors as this package reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..architectures.composite import loading_options, text_config
from ..architectures.model_class import model_class, parse_config
from ..core.json_files import read_json
from ..core.progress import note
from ..errors import SourceError, VerificationError
from .generation import GENERATION_CONFIG, mend_generation_config
from .loading import load_model, load_tokenizer
from .tensors import read_index, read_tensor
from .writing import verify_checkpoint

TEXT = "The ferry leaves pier 7 at 9:45 with 12 bicycles and a dog."
"""A short text with words, digits and punctuation."""

_TOKENS = 32
"""Tokens of it that are run."""

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2**-6, torch.float16: 2**-9}
"""How far logits can be apart, as a share of the largest: two runs of one model need not agree to the last bit."""


def check_files(folder: Path, source: Path) -> Any:
    """Check everything that is opened with a checkpoint but the model: headers, tokenizer and generation config.

    Args:
        folder: The written checkpoint.
        source: The folder that its tokenizer comes from.

    Returns:
        The tokenizer, or None where the source has none that opens.

    Raises:
        VerificationError: Something does not open, or is not what the source has.
    """
    verify_checkpoint(folder)
    path = folder / GENERATION_CONFIG
    if path.is_file() and (dropped := mend_generation_config(path)[1]):
        raise VerificationError(f"the written {GENERATION_CONFIG} sets {', '.join(dropped)} without effect")
    return check_tokenizer(folder, source)


def check_tokenizer(folder: Path, source: Path) -> Any:
    """Open a written checkpoint's tokenizer as its user will, and compare it with the source's.

    Args:
        folder: The written checkpoint.
        source: The folder that the tokenizer comes from.

    Returns:
        The tokenizer, or None where the source has none that opens.

    Raises:
        VerificationError: It does not open although the source's does, or it cuts a text into other tokens.
    """
    written, reason = _opened(folder)
    original, _ = _opened(source)
    if original is None:
        note(f"{source.name} has no tokenizer that AutoTokenizer opens; the result has what files there are")
        return None
    if written is None:
        raise VerificationError(f"the written tokenizer does not open: {reason}")
    if written(TEXT)["input_ids"] != original(TEXT)["input_ids"]:
        raise VerificationError("the written tokenizer cuts a text into other tokens than the source's")
    if written.chat_template != original.chat_template:
        raise VerificationError("the written tokenizer has another chat template than the source's")
    return written


def _opened(folder: Path) -> tuple[Any, str]:
    try:
        return load_tokenizer(folder), ""
    except SourceError as error:
        return None, str(error)


@torch.no_grad()
def check_logits(folder: Path, tokenizer: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Open a written checkpoint's model as its user will, and compare its logits on a short text.

    What is expected are the logits of the config's model class, filled with the tensors of the files by this package.
    One of the two models is in memory at a time.

    Args:
        folder: The checkpoint.
        tokenizer: Its tokenizer; None runs the first token ids instead of a text.
        dtype: Compute dtype.
        device: Where to run it.

    Raises:
        VerificationError: The model does not load cleanly, or its logits are others.
    """
    config = parse_config(read_json(folder / "config.json"))
    ids = _token_ids(tokenizer, text_config(config).vocab_size).to(device)
    expected = _logits(lambda: _filled(folder, config, dtype).to(device), ids)
    try:
        found = _logits(lambda: _loaded(folder, config, dtype, device), ids)
    except SourceError as error:
        raise VerificationError(str(error)) from None
    limit = _TOLERANCE[dtype] * float(expected.abs().nan_to_num().amax().clamp_min(1e-6))
    if not torch.allclose(found, expected, rtol=0, atol=limit, equal_nan=True):
        raise VerificationError(
            "the model that from_pretrained opens gives other logits than the tensors that were written: they differ "
            f"by up to {float((found - expected).abs().amax()):.3g}, where {limit:.1g} is rounding"
        )


@torch.no_grad()
def check_runs(model: Any, tokenizer: Any) -> None:
    """Run a written checkpoint on a short text, its layers read from disk one by one as transformers reads them.

    Args:
        model: The checkpoint's model.
        tokenizer: Its tokenizer; None runs the first token ids instead of a text.

    Raises:
        SourceError: Its tensors do not load.
        VerificationError: Its logits have another size than its vocabulary.
    """
    size = text_config(model.config).vocab_size
    logits = model(input_ids=_token_ids(tokenizer, size), use_cache=False).logits
    if logits.shape[-1] != size:
        raise VerificationError(f"the written model gives {logits.shape[-1]} logits for {size} tokens")


def _logits(load: Callable[[], Any], ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = load().eval()(input_ids=ids, use_cache=False).logits
    return logits.float().cpu()


def _filled(folder: Path, config: Any, dtype: torch.dtype) -> Any:
    state = {name: read_tensor(info) for name, info in read_index(folder).items()}
    how = loading_options(config.model_type)
    return model_class(config).from_pretrained(None, config=config, state_dict=state, dtype=dtype, **how)


def _loaded(folder: Path, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    model = load_model(folder, dtype, device)
    if getattr(model, "_hf_peft_config_loaded", False):
        raise VerificationError("an adapter lies beside the written weights, and from_pretrained loads it on top")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if config.tie_word_embeddings and head.weight is not embedding.weight:
        raise VerificationError("the written head is not the embedding, to which the config ties it")
    return model


def _token_ids(tokenizer: Any, vocabulary: int) -> torch.Tensor:
    """Return ids of the text that the model has embeddings for, shape (1, tokens)."""
    found = [] if tokenizer is None else tokenizer(TEXT)["input_ids"]
    ids = [token for token in found if token < vocabulary][:_TOKENS]
    return torch.tensor([ids or list(range(min(vocabulary, _TOKENS)))])
