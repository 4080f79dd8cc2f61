"""Seconds that a checkpoint takes on a device, by the prices of a profile that `ishrink profile` measured there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from ..architectures.binding import Binding, BoundTensor
from ..architectures.description import HEADS
from ..architectures.expressions import axis_length
from ..core.json_files import read_json
from ..errors import RequestError, SourceError
from .limits import DECODE, TTFT, readable
from .prices import Probe, attention, fit
from .profile_schema import DEVICE_REPORT, PROFILE_SCHEMA, TORCH

_INNER = ("num_key_value_heads", "num_attention_heads", "intermediate_size")


def read_profile(path: Path) -> dict[str, Any]:
    """Read the JSON object of a profile.

    Args:
        path: The file, or the report of a device that holds one.

    Raises:
        SourceError: It is missing, damaged, or no profile.
    """
    data = read_json(path)
    if isinstance(data, dict) and data.get("kind") == DEVICE_REPORT:
        data = data.get("profile")
        if data is None:
            raise SourceError(
                f"{path} is a device's report without a cost profile; the page's button 'Cost profile' makes it, on a "
                "site that `ishrink app --probes` wrote"
            )
    if not isinstance(data, dict) or data.get("schema") != PROFILE_SCHEMA:
        raise SourceError(f"{path} is not a profile that this version wrote; make it with `ishrink profile`")
    return {key: value for key, value in data.items() if key != "schema"}


def check_profiled(model: str, model_type: str, shape: Mapping[str, int], binding: Binding) -> None:
    """Check that a profile is of a model.

    Args:
        model: The name of the model that was profiled.
        model_type: Its architecture.
        shape: Its sizes by config key.
        binding: The model.

    Raises:
        RequestError: It is of another one.
    """
    # A profile of an older version names fewer dimensions.
    same = all(binding.shape.get(key) == size for key, size in shape.items())
    if model_type != binding.description.model_type or not same:
        raise RequestError(
            f"the profile is of {model} ({model_type}), another model; make one of this model with "
            "`ishrink profile` on the device"
        )


def vocabulary_matrices(binding: Binding) -> tuple[str, str]:
    """Return the names of the embedding and of the head; the same name where the embedding is the head, too.

    Args:
        binding: The model.
    """
    outer = [
        bound.name
        for bound in binding.tensors.values()
        if bound.layer is None and bound.counts("vocab") and len(bound.axes) > 1
    ]
    embedding = next(name for name in outer if name not in HEADS)
    return embedding, next((name for name in outer if name in HEADS), embedding)


@dataclass(frozen=True)
class Times:
    """What a target on time counts: the expected seconds of a decoded token, or those to the first token.

    The features are those of `search.cost_model`, of a checkpoint whose matrices all have one type.

    Args:
        metric: `decode` or `ttft`.
        prices: The price of each feature in seconds.
        prompt: Tokens of the prompt.
        new_tokens: Tokens that were decoded after it.
        binding: The model.
    """

    metric: str
    prices: Mapping[str, float]
    prompt: int
    new_tokens: int
    binding: Binding
    _inner: dict[tuple[int, ...], list[int]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def _price(self) -> float:
        """The price of a weight that every token is multiplied with."""
        known = ("once", "layers", "head", "attention")
        found = sum(value for name, value in self.prices.items() if name not in known)
        return found * (1 if self.metric == DECODE else self.prompt)

    @property
    def _head_price(self) -> float:
        return self._price if self.metric == DECODE else self.prices.get("head", 0.0)

    @property
    def per_parameter(self) -> float:
        """Seconds that one more parameter of the vocabulary takes: the embedding's own takes none."""
        embedding, head = vocabulary_matrices(self.binding)
        return self._head_price if embedding == head else self._head_price / 2

    def of(self, binding: Binding, shape: Mapping[str, int], count: int) -> float:
        """Return the expected seconds of a shape.

        Args:
            binding: The model.
            shape: The sizes by config key.
            count: Its number of parameters, which is not read: vectors cost nothing.
        """
        sizes = binding.resized(shape)
        key = tuple(shape.get(name, 0) for name in _INNER)
        if key not in self._inner:
            layers = [0] * binding.sizes["layers"]
            for bound in binding.tensors.values():
                if bound.layer is not None:
                    layers[bound.layer] += _weights(bound, sizes)
            self._inner[key] = layers
        embedding, head = vocabulary_matrices(binding)
        others = sum(
            _weights(bound, sizes)
            for bound in binding.tensors.values()
            if bound.layer is None and bound.name not in (embedding, head)
        )
        weights = others + sum(self._inner[key][: sizes["layers"]])
        layers_read = sizes["layers"] * (1 if self.metric == DECODE else self.prompt)
        return (
            self.prices.get("once", 0.0)
            + self.prices.get("layers", 0.0) * layers_read
            + self.prices.get("attention", 0.0) * attention(sizes, self.prompt, self.new_tokens)[self.metric]
            + self._price * weights
            + self._head_price * _weights(binding.tensors[head], sizes)
        )

    def words(self, value: float) -> str:
        """Return an amount with its unit.

        Args:
            value: Seconds.
        """
        return readable(self.metric, 1 / value if self.metric == DECODE else value)

    def change(self, value: float, whole: float) -> str:
        """Return by how much an amount differs, of decoding in tokens per second.

        Args:
            value: Seconds.
            whole: Those of the unpruned model.
        """
        return f"{whole / value - 1:+.2%}" if self.metric == DECODE else f"{value / whole - 1:+.2%}"


def _weights(bound: BoundTensor, sizes: Mapping[str, int]) -> int:
    """Return the weights of a matrix; vectors have none."""
    return prod(axis_length(axis, sizes) for axis in bound.axes) if len(bound.axes) > 1 else 0


def read_times(path: Path, binding: Binding, metric: str) -> Times:
    """Read what times are expected to be from a profile.

    Args:
        path: The profile.
        binding: The model.
        metric: `decode` or `ttft`.

    Raises:
        SourceError: The file is no profile.
        RequestError: It is of another runtime or model.
    """
    assert metric in (DECODE, TTFT), metric
    data = read_profile(path)
    try:
        if data["runtime"] != TORCH:
            raise RequestError(
                f"the profile is of {data['runtime']}, and shrink writes a checkpoint for {TORCH}; make one with "
                f"`ishrink profile --runtime {TORCH}`, or search with this one"
            )
        check_profiled(data["model"], data["model_type"], data["shape"], binding)
        prices = fit([Probe(**probe) for probe in data["probes"]]).prices[metric]
        prompt, new_tokens = data["workload"]["prompt"], data["workload"]["new_tokens"]
    except (KeyError, TypeError):
        raise SourceError(f"{path} is a damaged profile; make it again with `ishrink profile`") from None
    return Times(metric, prices, prompt, new_tokens, binding)
