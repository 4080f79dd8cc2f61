"""What a GGUF file says of its model and transformers does not read, and what neither of them can hold."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from ..core.json_files import read_json
from ..errors import SourceError
from .gguf_header import TensorPlace, Value, file_fetcher, read_places, read_values
from .older_keys import FULL, SLIDING

ROPE_FREQS = "rope_freqs.weight"
"""By what each rotary frequency is divided; a file has it for models whose scaling differs between frequencies."""

_DIVISORS: Mapping[str, Any] = read_json(Path(__file__).with_suffix(".json"))["rotary_divisors"]
"""The scaling, but for its factor, of every published model whose rotary frequencies have divisors."""

_YARN = ("type", "factor", "original_context_length", "finetuned")
"""What a header says of YaRN under `rope.scaling.` without naming any of its further settings."""

_YARN_SETTINGS = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
"""Further settings that transformers has, by their names there."""

_FLOAT32 = 0
"""Number of the type in GGUF."""


@dataclass(frozen=True)
class GgufSettings:
    """The header of a file.

    Args:
        path: The file.
        values: Its numbers and strings that describe the model, without the architecture in front of the name.
        tensors: Its tensors, by name.
        weights: The first byte of the weights.
        tokenizer: What it says under `tokenizer.ggml.`, by the names there.
    """

    path: Path
    values: Mapping[str, Value]
    tensors: Mapping[str, TensorPlace]
    weights: int
    tokenizer: Mapping[str, Any] = field(default_factory=dict)

    def number(self, name: str) -> float | None:
        """Return a number; None where the header does not have it.

        Args:
            name: Its name, without the architecture.
        """
        found = self.values.get(name)
        return float(found) if isinstance(found, (int, float)) else None

    def not_read(self, what: str) -> SourceError:
        """Return the error of something that would be lost.

        Args:
            what: What the file has.
        """
        return SourceError(
            f"{self.path} has {what}, which transformers {transformers.__version__} does not read from GGUF; name the "
            "checkpoint that it was made of, or another file"
        )


def read_settings(path: Path) -> GgufSettings:
    """Read what describes the model.

    Args:
        path: A GGUF file, whole.
    """
    with path.open("rb") as file:
        fetch = file_fetcher(file)
        weights, tensors = read_places(fetch)
        values = read_values(fetch, "")

    def under(prefix: str) -> dict[str, Value]:
        return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}

    architecture = values.get("general.architecture", "")
    places = {tensor.name: tensor for tensor in tensors}
    return GgufSettings(path, under(f"{architecture}."), places, weights, under("tokenizer.ggml."))


def complete_config(config: Any, settings: GgufSettings, *, weights: bool = True) -> None:
    """Put into a config what the file says of its model, where transformers has left the class's default.

    Args:
        config: What transformers has read; it is changed.
        settings: The file's header.
        weights: Whether the weights are there. Without them a scaling that is stored among them is left out.

    Raises:
        SourceError: The file describes something that is not known here, which would be lost.
    """
    for name, first in (("attention_bias", "blk.0.attn_output.bias"), ("mlp_bias", "blk.0.ffn_up.bias")):
        if first in settings.tensors and getattr(config, name, None) is False:
            setattr(config, name, True)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if hasattr(config, name) and (cap := settings.number(name)) is not None:
            setattr(config, name, cap)
    _set_window(config, settings)
    _set_head_size(config, settings)
    rotary = getattr(config, "rope_parameters", None)
    if rotary:
        _set_rotary(config, rotary, settings, weights)


def _set_window(config: Any, settings: GgufSettings) -> None:
    window = settings.number("attention.sliding_window")
    if not window or not hasattr(config, "sliding_window") or config.sliding_window == window:
        return
    if getattr(config, "layer_types", None) is not None:
        raise settings.not_read(f"a sliding window of {window:g} tokens")
    config.sliding_window = int(window)


def _set_head_size(config: Any, settings: GgufSettings) -> None:
    size = settings.number("attention.key_length")
    if size and hasattr(config, "head_dim") and not hasattr(config, "global_head_dim"):
        config.head_dim = int(size)
    scale = getattr(config, "query_pre_attn_scalar", None)
    if (
        scale is not None and scale != config.head_dim
    ):  # the file has none; llama.cpp knows it by the size of the model
        raise settings.not_read(f"heads of {config.head_dim} dimensions, and no scale of their attention")


def _set_rotary(config: Any, rotary: dict[str, Any], settings: GgufSettings, weights: bool) -> None:
    """Set the base, and the scaling, of rotary positions."""
    nested = FULL in rotary or SLIDING in rotary
    main: dict[str, Any] = rotary.get(FULL, {}) if nested else rotary
    if (base := settings.number("rope.freq_base")) is not None:
        main["rope_theta"] = base
    if SLIDING in rotary and (base := settings.number("rope.freq_base_swa")) is not None:
        rotary[SLIDING]["rope_theta"] = base
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    share = main.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    turned = settings.number("rope.dimension_count")
    if turned is not None and not nested and int(size * share) != turned:
        raise settings.not_read(f"rotary positions in {turned:g} of {size} dimensions of a head")
    scaling = _scaling(settings)
    if ROPE_FREQS in settings.tensors and weights:
        scaling = _frequency_scaling(settings, main["rope_theta"], size)
    main.update(scaling)


def _scaling(settings: GgufSettings) -> dict[str, Any]:
    """Return the scaling that the header names; nothing for none."""
    kind, factor = settings.values.get("rope.scaling.type"), settings.number("rope.scaling.factor")
    if kind is None and (factor := settings.number("rope.scale_linear")) not in (None, 1.0):
        kind = "linear"  # as old files have it
    if kind in (None, "none"):
        return {}
    if kind == "linear" and factor is not None:
        return {"rope_type": "linear", "factor": factor}
    before = settings.number("rope.scaling.original_context_length")
    prefix = "rope.scaling."
    named = {name.removeprefix(prefix) for name in settings.values if name.startswith(prefix)}
    others = sorted(named - {*_YARN, *_YARN_SETTINGS})
    if kind == "yarn" and factor is not None and before is not None and not others:
        more = {own: settings.number(prefix + name) for name, own in _YARN_SETTINGS.items() if name in named}
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": int(before), **more}
    by = f" by {', '.join(others)}" if kind == "yarn" and others else ""
    raise settings.not_read(f"rotary positions with the scaling {kind!r}{by}")


def _frequency_scaling(settings: GgufSettings, base: float, size: int) -> dict[str, Any]:
    """Return the scaling that divides each frequency by what the file says.

    Raises:
        SourceError: It is none that is known.
    """
    place = settings.tensors[ROPE_FREQS]
    if place.kind == _FLOAT32:
        count = math.prod(place.lengths)
        found = np.fromfile(settings.path, np.float32, count, offset=settings.weights + place.begin)
        scaling = {**_DIVISORS, "factor": float(found.max())}
        if count == size // 2 and np.allclose(found, llama3_divisors(scaling, base, size), rtol=1e-4):
            return scaling
    raise settings.not_read(f"{ROPE_FREQS} of a scaling that is not known")


def llama3_divisors(scaling: Mapping[str, Any], base: float, size: int) -> np.ndarray[Any, Any]:
    """Return by what Llama 3.1's scaling divides each rotary frequency.

    Args:
        scaling: `factor`, `low_freq_factor`, `high_freq_factor` and `original_max_position_embeddings`.
        base: Base of the frequencies.
        size: Dimensions of a head.

    Returns:
        Shape (size / 2,), the highest frequency first.
    """
    wavelengths = 2 * math.pi * base ** (np.arange(0, size, 2) / size)
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    between = (scaling["original_max_position_embeddings"] / wavelengths - low) / (high - low)
    kept = np.clip(between, 0, 1)  # the share of a frequency that stays
    divisors: np.ndarray[Any, Any] = 1 / ((1 - kept) / factor + kept)
    return divisors


def check_all_read(settings: GgufSettings, known: Collection[str]) -> None:
    """Check that transformers has a place for every tensor of the file.

    Args:
        settings: The file's header.
        known: Names of the tensors that it has a place for.

    Raises:
        SourceError: It has none for one.
    """
    lost = [name for name in settings.tensors if name not in known and name != ROPE_FREQS]
    if lost:
        raise settings.not_read(first_of(lost))


def first_of(names: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are.

    Args:
        names: The names, at least one.
    """
    return names[0] + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")
