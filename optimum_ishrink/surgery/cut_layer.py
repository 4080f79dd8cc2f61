"""A layer as the plan leaves it, run and observed with the weights that were re-fitted in it so far."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch

from ..modeling.layerwise import capture, first_row, run_layer
from .sites import Site

Calls = Mapping[int, Mapping[str, Any]]
"""The keyword arguments of a layer, by batch size."""


class Observation(NamedTuple):
    """What one projection reads and gives in one batch.

    Args:
        inputs: What the cut projection reads, shape (batch, length, in).
        output: What the whole projection gives, float32.
        rest: What the cut layer gives without the projection, float32.
        whole: What the whole layer gives.
    """

    inputs: torch.Tensor
    output: torch.Tensor
    rest: torch.Tensor
    whole: torch.Tensor


class CutLayer:
    """A layer as the plan leaves it.

    Args:
        base: The base's layer.
        cut: The cut model's layer, or None where the base's own layer is run with channels left unread.
        calls: How the layer is called.
    """

    def __init__(self, base: Any, cut: Any, calls: Calls) -> None:
        self.base = base
        self.cut = base if cut is None else cut
        self.calls = calls
        self.refitted: list[tuple[Site, torch.Tensor]] = []
        """The projections with their new weights, in the model's dtype."""

    def run(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the layer gives."""
        with ExitStack() as stack:
            for site, weight in self.refitted:

                def replace_output(
                    _: Any, inputs: Any, __: Any, site: Site = site, weight: torch.Tensor = weight
                ) -> torch.Tensor:
                    return site.apply(site.inputs(inputs[0]), weight)

                handle = self.cut.get_submodule(site.name).register_forward_hook(replace_output)
                stack.callback(handle.remove)
            return run_layer(self.cut, hidden, self.calls[len(hidden)])

    def observe(self, site: Site, hidden: torch.Tensor) -> Observation:
        """Run the cut layer and the whole one, and return what a projection reads and gives in them.

        Args:
            site: The projection.
            hidden: What enters the layer, shape (batch, length, hidden).
        """
        if self.cut is self.base:
            with capture(self.base.get_submodule(site.name)) as seen:
                whole = self.run(hidden)
            output = _as_windows(seen["output"], whole).float()
            return Observation(site.inputs(_as_windows(seen["input"], whole)), output, whole.float() - output, whole)
        with capture(self.base.get_submodule(site.name)) as base:
            whole = run_layer(self.base, hidden, self.calls[len(hidden)])
        with capture(self.cut.get_submodule(site.name)) as cut:
            part = self.run(hidden)
        rest = part.float() - _as_windows(cut["output"], whole).float()
        return Observation(_as_windows(cut["input"], whole), _as_windows(base["output"], whole).float(), rest, whole)


def _as_windows(values: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return values with the batch and length of a layer's output: blocks of experts handle tokens without them."""
    return values.reshape(*whole.shape[:-1], values.shape[-1])


def stream_is_sum(layer: Any, name: str, hidden: torch.Tensor, calls: Calls) -> bool:
    """Whether a projection's output is added to the residual stream as it is.

    It is not where a norm or a factor follows it; and for an attention, the MLP that follows responds to the change.
    Then the stream says nothing about the projection in closed form, and the projection's own output is the whole
    target.

    Args:
        layer: A layer.
        name: The projection's name within it.
        hidden: What enters the layer, shape (batch, length, hidden).
        calls: How the layer is called.
    """
    kwargs = {key: first_row(value, len(hidden)) for key, value in calls[len(hidden)].items()}
    projection = layer.get_submodule(name)
    with capture(projection) as seen:
        before = run_layer(layer, hidden[:1], kwargs)
    change = seen["output"].float().std() * torch.ones_like(before)
    handle = projection.register_forward_hook(lambda _, __, output: output + change.view_as(output).to(output.dtype))
    try:
        difference = run_layer(layer, hidden[:1], kwargs).float() - before.float()
    finally:
        handle.remove()
    change = _as_windows(change, difference).float()
    return bool((difference - change).norm() < 0.05 * change.norm())
