"""What the runtime that a plan is made for cannot run, so that no plan is made that it would not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..architectures.binding import Binding
from ..architectures.description import LAYERS
from ..architectures.layer_order import LayerRule
from ..architectures.layer_patterns import layer_pattern
from ..architectures.runtime_limits import depth_limit, layer_limit, layer_order, model_limit, size_limit
from ..errors import ShapeError

ADVICE = "leave out for_runtime for a model that runs in PyTorch"


@dataclass(frozen=True)
class RuntimeCheck:
    """Checks shapes of one model for llama.cpp, or none when no runtime is named.

    Args:
        binding: The model.
        runtime: `llama.cpp`, or None.
        protected: Protected layers at the beginning and at the end.
    """

    binding: Binding
    runtime: str | None
    protected: tuple[int, int] = (0, 0)

    def refusal(self, shape: Mapping[str, int]) -> str | None:
        """Return why the runtime cannot run a shape, or None if it can.

        Args:
            shape: New values by config key.
        """
        if self.runtime is None:
            return None
        model_type = self._written_as(shape)
        sizes = self.binding.resized(shape)
        depth = sizes["layers"]
        key = (model_type, depth)
        if key not in self._depths:
            found = model_limit(model_type, self.binding.config)
            self._depths[key] = found or depth_limit(model_type, self.binding.config, depth, *self.protected)
        return size_limit(model_type, self.binding.config, sizes) or self._depths[key]

    @cached_property
    def _depths(self) -> dict[tuple[str, int], str | None]:
        return {}

    def check(self, shape: Mapping[str, int]) -> None:
        """Check that the runtime can run a shape, with some choice of its layers.

        Args:
            shape: New values by config key.

        Raises:
            ShapeError: It cannot; the message names the config key.
        """
        reason = self.refusal(shape)
        if reason is not None:
            raise ShapeError(f"{reason}; {ADVICE}")

    def order(self, shape: Mapping[str, int]) -> LayerRule | None:
        """Return what the layers have to be, to choose them by; None where any will do.

        That is the order that the runtime takes for given, or else the pattern that the config can hold. It names the
        layers that the model cannot go without, whatever runs it.

        Args:
            shape: New values by config key.
        """
        order = None
        if self.runtime is not None:
            order = layer_order(self._written_as(shape), self.binding.config, shape[LAYERS])
        if order is None:
            return layer_pattern(self.binding, shape[LAYERS])
        return replace(order, required=frozenset(self.binding.required_layers))

    def check_layers(self, shape: Mapping[str, int], layers: Sequence[int], edited: Any) -> None:
        """Check that the runtime runs the retained layers as transformers does.

        Args:
            shape: The new shape.
            layers: Indices of the retained layers.
            edited: The config of the result.

        Raises:
            ShapeError: It does not; the message names the config key.
        """
        if self.runtime is None:
            return
        reason = layer_limit(self._written_as(shape), edited)
        if reason is not None:
            removed = [layer for layer in range(self.binding.shape[LAYERS]) if layer not in set(layers)]
            raise ShapeError(
                f"{reason}, with layers {', '.join(map(str, removed))} removed; keep all layers, or {ADVICE}"
            )

    def _written_as(self, shape: Mapping[str, int]) -> str:
        change = self.binding.class_change(shape)
        # In a model of several parts, what a runtime cannot do is a matter of the decoder, whose config this is.
        own = getattr(self.binding.config, "model_type", None) or self.binding.description.model_type
        return own if change is None else change.model_type
