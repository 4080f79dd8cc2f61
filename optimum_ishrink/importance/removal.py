"""Scores by removal: a unit is set to zero, or layers are left out, and the rest of the model runs.

For each batch the model runs once unchanged; then a removal costs only the layers after it. Weights are neither copied
nor changed: a layer that is left out returns its input.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..architectures.axes import input_readers
from ..architectures.binding import Binding
from ..core.finite import ADVICE, kind_of
from ..core.processes import summed, summed_count
from ..core.progress import progress_bar
from ..errors import NotFiniteError
from ..modeling.base import base_of, layers_of
from ..modeling.layer_output import as_output, hidden_of, parts_of
from ..modeling.layerwise import check_apart
from .batches import Batch, Batches
from .criterion import Criterion
from .units import Units

_OTHER = "choose a criterion that runs the whole model"

_CHUNK = 2**22
"""Logits compared in float32 at once, 17 MB."""

Span = tuple[int, int]
"""First layer of a span of layers, and the one after its last."""


class LayerRunner:
    """Runs a model from any layer on, with layers left out.

    Args:
        model: The model.
        binding: Its binding.
    """

    def __init__(self, model: Any, binding: Binding) -> None:
        self.model = model
        self.layers = layers_of(model, binding)
        self._parts: int | None = None  # of a layer's output, once one has run

    def logits(
        self, batch: Batch, first: int = 0, entering: torch.Tensor | None = None, without: Collection[int] = ()
    ) -> torch.Tensor:
        """Return the logits, shape (windows, length, vocabulary).

        Args:
            batch: The windows.
            first: The layer to begin with.
            entering: What enters it, from `states`; None when the model runs from its beginning.
            without: Layers to leave out.
        """
        with self._left_out({*range(first), *without}, entering):
            output = self.model(input_ids=batch.input_ids, attention_mask=batch.mask, use_cache=False)
        result: torch.Tensor = output.logits
        return result

    def states(self, batch: Batch, without: Collection[int] = (), *, logits: bool = True) -> list[torch.Tensor]:
        """Return what enters each layer and what leaves the last, and after these the logits if requested.

        Args:
            batch: The windows.
            without: Layers to leave out.
            logits: Whether to return the logits as well.

        Raises:
            DataError: The output of a layer has NaN or inf; the message names it.
        """
        if without and self._parts is None:
            self.states(batch, logits=False)
        states: list[torch.Tensor] = []

        def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states.append(args[0] if args else kwargs["hidden_states"])

        def leave(_: Any, __: Any, output: Any) -> None:
            self._parts = parts_of(output)
            states.append(hidden_of(output))

        handles = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in self.layers]
        handles.append(self.layers[-1].register_forward_hook(leave))
        model = self.model if logits else base_of(self.model)
        try:
            with self._left_out(without, None):
                output = model(input_ids=batch.input_ids, attention_mask=batch.mask, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        finite = torch.stack([batch.text(state).isfinite().all() for state in states[1:]])
        if not finite.all():
            layer = int(finite.int().argmin())
            kind = kind_of(batch.text(states[1:][layer]))
            raise NotFiniteError(f"layer {layer} gives values that are not finite ({kind}); {ADVICE}")
        return [*states, output.logits] if logits else states

    @contextmanager
    def _left_out(self, layers: Collection[int], entering: torch.Tensor | None) -> Iterator[None]:
        """Let layers return their input; the first layer of the model returns `entering`, where it is given."""
        replaced = {layer: self.layers[layer].__dict__.get("forward") for layer in layers}
        for layer in layers:

            def pass_through(*args: Any, layer: int = layer, **kwargs: Any) -> Any:
                hidden = args[0] if args else kwargs["hidden_states"]
                if layer == 0 and entering is not None:
                    hidden = entering
                return as_output(hidden, self._parts or 0)

            self.layers[layer].forward = pass_through
        try:
            yield
        finally:
            for layer, forward in replaced.items():
                del self.layers[layer].forward
                if forward is not None:
                    self.layers[layer].forward = forward


def compare_logits(criterion: Criterion, before: torch.Tensor, after: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the sum of a criterion's values over the tokens that have a next one, float64, a scalar.

    Args:
        criterion: A criterion with `needs="logits"`.
        before: Logits of the unchanged model, shape (windows, length, vocabulary).
        after: Logits with something removed, the same shape.
        batch: The windows.
    """
    total = torch.zeros((), dtype=torch.float64, device=before.device)
    positions = max(1, _CHUNK // before.shape[-1])
    for row, predicted in enumerate(batch.predicted):
        for index in predicted.nonzero().flatten().split(positions):
            following = batch.input_ids[row, index + 1]
            total += criterion.function(before[row, index], after[row, index], following).sum(dtype=torch.float64)
    return total


@torch.no_grad()
def score_spans(
    model: Any,
    binding: Binding,
    batches: Batches,
    criterion: Criterion,
    spans: Sequence[Span],
    without: Collection[int] = (),
) -> torch.Tensor:
    """Score the removal of spans of layers, each in addition to layers that were removed before.

    Args:
        model: The model.
        binding: Its binding.
        batches: Calibration windows.
        criterion: A layer criterion with `measures_removal`.
        spans: The spans; single layers are spans of one.
        without: Layers that were removed before.

    Returns:
        float32 on the CPU, shape (spans,).

    Raises:
        NotFiniteError: The output of a layer has NaN or inf, or a score is NaN or inf.
    """
    check_apart(binding, criterion.name, _OTHER)
    runner = LayerRunner(model, binding)
    total = torch.zeros(len(spans), dtype=torch.float64, device=model.device)
    terms = 0
    by_logits = criterion.needs == "logits"
    with progress_bar(f"{criterion.name} without layers", len(batches) * len(spans)) as advance:

        def run(batch: Batch) -> tuple[torch.Tensor, int]:
            found = torch.zeros_like(total)
            states = runner.states(batch, without, logits=by_logits)
            for number, (start, stop) in enumerate(spans):
                if by_logits:
                    after = runner.logits(batch, stop, states[start], without)
                    found[number] = compare_logits(criterion, states[-1], after, batch)
                else:
                    values = batch.text(criterion.function(states[start], states[stop]))
                    found[number] = values.sum(dtype=torch.float64)
                advance(len(batch.input_ids))
            return found, int(batch.predicted.sum()) if by_logits else batch.tokens

        for found, count in batches.each(run):
            total += found
            terms += count
    scores = (summed(total) / max(summed_count(terms, model.device), 1)).float().cpu()
    if (kind := kind_of(scores)) is not None:
        first = spans[int(scores.isfinite().int().argmin())]
        raise NotFiniteError(
            f"{criterion.name} is not finite ({kind}) without layers {first[0]} to {first[1] - 1}; {ADVICE}"
        )
    return scores


@torch.no_grad()
def score_removed_units(model: Any, batches: Batches, criterion: Criterion, units: Units) -> dict[str, torch.Tensor]:
    """Score units by setting each to zero at the projection that reads it, with one pass from its layer on for each.

    Args:
        model: The model.
        batches: Calibration windows.
        criterion: A unit criterion with `needs="logits"`.
        units: What to score.

    Returns:
        Config key to scores, float32 on the CPU.

    Raises:
        DataError: The output of a layer has NaN or inf.
    """
    binding = units.binding
    check_apart(binding, criterion.name, _OTHER)
    runner = LayerRunner(model, binding)
    sites = [
        (key, bound.layer or 0, model.get_submodule(bound.module), units.channels(bound, key))
        for key in units.keys
        for bound in input_readers(binding, key)
    ]
    sums = {key: total.double() for key, total in units.zeros(model.device).items()}
    terms = 0
    with progress_bar(criterion.name, len(batches) * sum(len(channels) for *_, channels in sites)) as advance:

        def run(batch: Batch) -> tuple[dict[str, torch.Tensor], int]:
            found = {key: torch.zeros_like(total) for key, total in sums.items()}
            states = runner.states(batch)
            for key, layer, module, channels in sites:
                for unit, removed in enumerate(channels.to(model.device)):
                    handle = module.register_forward_pre_hook(_zeroing(removed))
                    try:
                        after = runner.logits(batch, layer, states[layer])
                    finally:
                        handle.remove()
                    found[key][layer, unit] += compare_logits(criterion, states[-1], after, batch)
                    advance(len(batch.input_ids))
            return found, int(batch.predicted.sum())

        for found, count in batches.each(run):
            for key, total in found.items():
                sums[key] += total
            terms += count
    terms = summed_count(terms, model.device)
    return units.scores({key: summed(total) / max(terms, 1) for key, total in sums.items()})


def _zeroing(channels: torch.Tensor) -> Callable[[Any, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
    """Return a hook that sets input channels to zero."""

    def zero(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0].index_fill(-1, channels, 0), *inputs[1:])

    return zero
