"""Scores from the Gram matrices of the inputs of projections, with one layer's in memory at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ..architectures.axes import input_readers, layer_module
from ..core.finite import ADVICE, kind_of
from ..core.paging import kept, present
from ..core.processes import summed
from ..core.progress import progress_bar
from ..errors import DataError, NotFiniteError, RequestError
from ..modeling.layerwise import enter_layers, run_layer
from .batches import Batches
from .criterion import Criterion
from .units import Units

RIDGE = 0.01
"""Ridge in units of the Gram matrix's mean diagonal. On SmolLM2-135M-Instruct a tenth of the mean diagonal was clearly
worse than a hundredth."""

_LOG = logging.getLogger(__name__)


def with_ridge(gram: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return `X^T X / tokens + lambda I` in float64, with `lambda = RIDGE * mean(diag) * max(1, channels / tokens)`.

    With fewer tokens than channels some directions have no data, so the ridge grows in proportion.

    Args:
        gram: `X^T X`, shape (channels, channels).
        tokens: Rows of X.
    """
    mean = gram.double() / tokens
    # Where nothing was ever active, any positive ridge makes the score zero.
    strength = RIDGE * max(1.0, len(gram) / tokens) * mean.diagonal().mean().clamp_min(1e-30)
    return mean + strength * torch.eye(len(gram), dtype=torch.float64, device=gram.device)


@torch.no_grad()
def score_gram(model: Any, batches: Batches, criterion: Criterion, units: Units) -> dict[str, torch.Tensor]:
    """Score units by the Gram matrices of the inputs of the projections that read them.

    The sums are float32 on the model's device; the solve is float64.

    Args:
        model: The model.
        batches: Calibration windows, without padding.
        criterion: A criterion with `needs="gram"`.
        units: What to score.

    Returns:
        Config key to scores, float32 on the CPU.

    Raises:
        RequestError: There is padding.
        DataError: Activations are NaN or inf, or too uniform to solve; the message names the layer.
    """
    binding = units.binding
    if batches.mask is not None and not batches.mask.all():
        raise RequestError(
            f"{criterion.name!r} needs windows without padding; cut the text into windows of one length"
        )
    readers = [(key, bound) for key in units.keys for bound in input_readers(binding, key)]
    modules = {bound.name: model.get_submodule(bound.module) for _, bound in readers}
    widths = {bound.name: modules[bound.name].weight.shape[0 if bound.transposed else 1] for _, bound in readers}
    widest = max(widths.values())
    tokens = batches.windows.numel()
    if tokens < widest:
        _LOG.warning(
            "%s: %s calibration tokens are fewer than the %s channels of a projection, so the ridge was raised; "
            "raise calibration_samples for more reliable scores",
            *(criterion.name, f"{tokens:,}", f"{widest:,}"),
        )
    sums = units.zeros(model.device)
    states, how = enter_layers(model, binding, [batch.input_ids for batch in batches])
    with progress_bar(criterion.name, len(how)) as advance:
        for layer, kwargs in enumerate(how):
            module = model.get_submodule(layer_module(binding, layer))
            here = [(key, bound) for key, bound in readers if bound.layer == layer]
            with ExitStack() as stack:
                grams = {
                    name: stack.enter_context(gram_of(modules[name], widths[name]))
                    for name in dict.fromkeys(bound.name for _, bound in here)
                }
                states = kept(model, (run_layer(module, hidden, kwargs[len(hidden)]) for hidden in states))
            for gram in grams.values():
                summed(gram)
            for key, bound in here:
                if (kind := kind_of(grams[bound.name])) is not None:
                    raise NotFiniteError(
                        f"the activations that enter {bound.name.removesuffix('.weight')} in layer {layer} are not "
                        f"finite ({kind}); {ADVICE}"
                    )
                weight = present(modules[bound.name]).weight.detach()
                weight = weight.T if bound.transposed else weight
                channels = units.channels(bound, key).to(model.device)
                try:
                    sums[key][layer] += criterion.function(with_ridge(grams[bound.name], tokens), weight, channels)
                except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                    raise DataError(
                        f"the calibration text is too uniform to solve layer {layer} for; give more text or try "
                        "dtype='float32'"
                    ) from None
            if (kind := next(filter(None, map(kind_of, states)), None)) is not None:
                raise NotFiniteError(f"layer {layer} gives values that are not finite ({kind}); {ADVICE}")
            advance(1)
    return units.scores(sums)


@contextmanager
def gram_of(projection: Any, width: int) -> Iterator[torch.Tensor]:
    """Yield the Gram matrix of a projection's inputs, float32; it is filled while the block runs the projection.

    Args:
        projection: The projection's module.
        width: Its input channels.
    """
    gram = torch.zeros(width, width, dtype=torch.float32, device=projection.weight.device)

    def add(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        rows = inputs[0].flatten(0, -2).float()
        gram.addmm_(rows.T, rows)

    handle = projection.register_forward_pre_hook(add)
    try:
        yield gram
    finally:
        handle.remove()
