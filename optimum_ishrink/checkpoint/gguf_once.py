"""One reading of a GGUF file's header, and of its tensors' names, for the several that transformers does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any
from unittest.mock import patch

_LOCK = Lock()


@contextmanager
def read_once() -> Iterator[set[str]]:
    """Within the block, transformers opens a GGUF file once.

    It opens it for the config, for the tokenizer, and for the weights, and makes the table of the names of an
    architecture's tensors once for each module of the model. Both take the gguf package seconds for a common file: of
    the time in which SmolLM2-135M is read, more than half. Neither is changed by who reads it. Two threads that read
    files wait for one another.

    Yields:
        The names of the tensors that transformers has a place for in the model; empty before it has read weights, and
        where it reads an architecture by its newer reader.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reading

    known: set[str] = set()
    places = reading.get_gguf_hf_weights_map

    def remembered(*args: Any, **kwargs: Any) -> dict[str, str]:
        found: dict[str, str] = places(*args, **kwargs)
        known.update(found)
        return found

    with (
        _LOCK,
        patch.object(gguf, "GGUFReader", cache(gguf.GGUFReader)),
        patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
        patch.object(reading, "get_gguf_hf_weights_map", remembered),
    ):
        yield known
