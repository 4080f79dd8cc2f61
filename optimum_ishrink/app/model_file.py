"""What a site says of a model's GGUF file, and the checks before a browser has to fail on it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.generation import GENERATION_CONFIG
from ..checkpoint.whole_gguf import check_whole
from ..core.json_files import read_json
from ..edge.gguf_quantizations import EMBEDDING, GGUF_QUANTIZATIONS, HEAD
from ..errors import SourceError, one_line

MOST_BYTES = 2**31 - 1
"""A browser holds a file in one buffer, which has no more."""

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "do_sample")
"""What the page reads of a generation config."""

_HEADER_SAMPLING: Mapping[str, str] = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_p": "top_p",
    "general.sampling.top_k": "top_k",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}

_CACHE_BYTES = 2
"""Bytes of a number in the KV cache: llama.cpp holds it in 16 bits."""


@dataclass(frozen=True)
class ModelFile:
    """A model's GGUF file, as a site describes it.

    Args:
        path: The file.
        name: The model's name.
        nbytes: Bytes of the file.
        architecture: Its architecture, as llama.cpp names it.
        quantization: Its quantisation; `mixed` where its matrices have several types.
        types: The types of its tensors, in alphabetical order.
        parameters: Weights in all tensors.
        context: The longest context that it was trained for, in tokens; None where the header does not say.
        vocabulary: Number of tokens.
        cache_bytes: Bytes of a token in the KV cache; None where the header does not say.
        template: SHA-256 of its chat template; None where it has none.
        generation: What its generation config says of sampling.
    """

    path: Path
    name: str
    nbytes: int
    architecture: str
    quantization: str
    types: tuple[str, ...]
    parameters: int
    context: int | None
    vocabulary: int
    cache_bytes: int | None
    template: str | None
    generation: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return what the page reads of it, without its role and parts."""
        return {
            "architecture": self.architecture,
            "quantization": self.quantization,
            "tensor_types": list(self.types),
            "parameters": self.parameters,
            "context": self.context,
            "vocabulary": self.vocabulary,
            "kv_cache_bytes_per_token": self.cache_bytes,
            "chat_template": self.template is not None,
            "template_sha256": self.template,
            "generation": dict(self.generation),
        }


def read_model_file(path: Path, generation: Path | None = None) -> ModelFile:
    """Read what a site says of a model, and check that llama.cpp can run it in a browser.

    Args:
        path: The GGUF file.
        generation: The checkpoint's folder, whose generation config counts; None for the header's, or that of the
            file's folder.

    Raises:
        SourceError: The file is no whole GGUF file, a part of a split one, too large for a browser, has no tokenizer,
            or llama.cpp does not know its architecture or types.
    """
    check_whole(path)
    import gguf

    nbytes = path.stat().st_size
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # the reader raises many types for a damaged file
        reason = one_line(error)
        raise SourceError(f"cannot read {path} as GGUF ({reason})") from None
    header = _Header(reader)
    architecture = str(header.get("general.architecture", ""))
    pieces = header.get("split.count", 0)
    if pieces > 1:
        raise SourceError(
            f"{path} is one of {pieces} parts of a model; merge them with llama.cpp's `llama-gguf-split --merge`, and "
            "name the whole file"
        )
    if nbytes > MOST_BYTES:
        raise SourceError(
            f"{path} has {nbytes / 1e9:.2f} GB, and a browser holds files of up to 2 GB; name one of a smaller "
            "quantization, such as q4_0"
        )
    if architecture not in gguf.MODEL_ARCH_NAMES.values():
        raise SourceError(
            f"{path} has the architecture {architecture!r}, which the llama.cpp of this version does not know; name "
            "another model"
        )
    vocabulary = header.length("tokenizer.ggml.tokens")
    if not vocabulary:
        raise SourceError(f"{path} holds no tokenizer, so that nothing can be typed; name the file of a whole model")
    template = header.get("tokenizer.chat_template")
    return ModelFile(
        path,
        str(header.get("general.name") or path.stem),
        nbytes,
        architecture,
        _quantization(header, reader.tensors),
        tuple(sorted({each.tensor_type.name.lower() for each in reader.tensors})),
        sum(int(tensor.n_elements) for tensor in reader.tensors),
        header.get(f"{architecture}.context_length"),
        vocabulary,
        _cache_bytes(header, architecture),
        None if not template else hashlib.sha256(str(template).encode()).hexdigest(),
        _generation(header, path, generation),
    )


class _Header:
    """The values of a header."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or the default where the header has none."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def length(self, key: str) -> int:
        """Return how many values a list has."""
        field = self._reader.get_field(key)
        return 0 if field is None else len(field.data)


def _quantization(header: _Header, tensors: Any) -> str:
    """Return a file's quantisation: the header's, unless that tells of 16 bits or none and the layers have others."""
    names = {entry.file_type: entry for entry in GGUF_QUANTIZATIONS.values()}
    named = names.get(header.get("general.file_type"))
    inner = [each for each in tensors if len(each.shape) > 1 and each.name not in (EMBEDDING, HEAD)]
    types = {each.tensor_type.name.lower() for each in inner or tensors}
    if named is not None and (not named.is_exact or types == {named.tensor_type.name}):
        return named.name
    return types.pop() if len(types) == 1 else "mixed"


def _cache_bytes(header: _Header, architecture: str) -> int | None:
    """Return the bytes of a token in the KV cache; None where the header does not say."""

    def value(key: str) -> Any:
        return header.get(f"{architecture}.{key}")

    layers, heads, width = value("block_count"), value("attention.head_count"), value("embedding_length")
    groups = value("attention.head_count_kv")
    groups = heads if groups is None else groups
    if layers is None or groups is None:
        return None
    lengths = [value(f"attention.{part}_length") for part in ("key", "value")]
    if None in lengths:
        if not isinstance(heads, int) or heads < 1 or width is None:
            return None
        lengths = [width // heads if length is None else length for length in lengths]
    total = sum(groups[:layers]) if isinstance(groups, list) else groups * layers
    return int(total * sum(lengths) * _CACHE_BYTES)


def _generation(header: _Header, path: Path, folder: Path | None) -> dict[str, Any]:
    """Return what a model's generation config says of sampling."""
    if folder is None:
        found = {name: header.get(key) for key, name in _HEADER_SAMPLING.items()}
        stored = {name: value for name, value in found.items() if value is not None}
        if stored:
            return _checked(stored, str(path))
    config = (folder or path.parent) / GENERATION_CONFIG
    if not config.is_file():
        return {}
    raw = read_json(config)
    if not isinstance(raw, dict):
        raise SourceError(f"{config} is not a JSON object; mend it, or remove it")
    return _checked({name: raw[name] for name in _SAMPLING if raw.get(name) is not None}, str(config))


def _checked(found: dict[str, Any], place: str) -> dict[str, Any]:
    for name, value in found.items():
        flag = isinstance(value, bool)
        if name == "do_sample":
            right = flag
        else:
            right = isinstance(value, (int, float)) and not flag and math.isfinite(value) and value >= 0
        if not right:
            raise SourceError(f"{place} has {name} {value!r}; mend it, or remove it")
    # A header's numbers have 32 bits, so that 0.2 reads as 0.20000000298.
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in found.items()}
