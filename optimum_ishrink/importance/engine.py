"""The engine: it runs calibration batches and gives every criterion what it needs.

Criteria are pure functions. This file passes each to the code that gathers what it needs: hooks on the running model
(`watchers`), Gram matrices (`gram`), or removals (`removal`). No criterion is known by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from math import isfinite
from typing import Any

import torch

from ..architectures.binding import Binding
from ..architectures.description import EXPERTS, LAYERS
from ..core.finite import ADVICE, not_finite
from ..core.paging import is_paged
from ..core.progress import progress_bar
from ..errors import DataError, NotFiniteError, RequestError
from ..modeling.base import base_of
from .batches import Batch, Batches
from .changes import ChangeWatcher
from .criterion import UNIT_CRITERIA, Criterion
from .gram import score_gram
from .head_loss import backward_from
from .removal import LayerRunner, score_removed_units, score_spans
from .routing import RoutingWatcher
from .sweep import sweep_watchers
from .units import Units, check_finite, units_to_score
from .watchers import ActivationWatcher, GradientWatcher, HiddenStateWatcher, Watcher

WATCHERS: Mapping[str, type[Watcher]] = {
    "gradients": GradientWatcher,
    "changes": ChangeWatcher,
    "activations": ActivationWatcher,
    "hidden_states": HiddenStateWatcher,
    "routing": RoutingWatcher,
}
"""The watcher for each need of a criterion."""


def backward(model: Any, batch: Batch, *, seed: int | None) -> float:
    """Run one batch forward and backward, and return its loss. At most one chunk of logits is in memory at once.

    Args:
        model: The model; the weights of its head take no gradient.
        batch: The batch.
        seed: None for the mean cross-entropy of the text's next tokens, without padding; a number for the sum of the
            cross-entropy of next tokens drawn from the model, from the same random numbers on any device and with any
            number of processes.
    """
    output = base_of(model)(input_ids=batch.input_ids, attention_mask=batch.mask, use_cache=False)
    return backward_from(model, batch, output, seed=seed)


def score_model(
    model: Any,
    binding: Binding,
    windows: torch.Tensor,
    unit_criterion: Criterion | None,
    layer_criterion: Criterion | None,
    keys: tuple[str, ...],
    *,
    expert_criterion: Criterion | None = None,
    attention_mask: torch.Tensor | None = None,
    batch_size: int = 4,
    grows: bool = False,
    group_size: int | None = None,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Score a loaded model on calibration windows; criteria that only watch the running model share one pass.

    Args:
        model: The model, in the dtype to compute in.
        binding: Its binding.
        windows: Token ids, shape (windows, length).
        unit_criterion: Criterion for KV groups, query heads and MLP neurons, or None.
        layer_criterion: Criterion for layers, or None.
        keys: Dimensions to score.
        expert_criterion: Criterion for experts, or None.
        attention_mask: 1 for text and 0 for padding, the shape of `windows`; None when nothing is padding.
        batch_size: Windows in a batch. Criteria of gradients take one gradient per batch, so it is part of their
            definition; four keeps the logits of a vocabulary of 128k within a few GB.
        grows: Whether criteria that it is no part of may run more windows at once, where a GPU has room.
        group_size: Consecutive neurons that are scored as one unit, each with an equal share of its score; None
            takes one, or for criteria that remove units one by one what leaves at most 32 groups in a layer.
        seed: Seed of the labels that a criterion draws from the model.

    Returns:
        Config key to scores, float32 on the CPU, accumulated in float32 whatever the model's dtype.

    Raises:
        DataError: There are no windows, or values are not finite; the message names the layer.
        RequestError: A criterion needs something that this engine does not provide, or the groups do not divide the
            neurons.
    """
    if not len(windows):
        raise DataError("no calibration windows")
    batches = Batches(windows, attention_mask, batch_size, model.device, grows)
    watchers: list[Watcher] = []
    scores: dict[str, torch.Tensor] = {}
    for criterion, wanted in (
        (unit_criterion, tuple(key for key in keys if key not in (EXPERTS, LAYERS))),
        (expert_criterion, tuple(key for key in keys if key == EXPERTS)),
        (layer_criterion, tuple(key for key in keys if key == LAYERS)),
    ):
        if criterion is None or not wanted:
            continue
        units = units_to_score(binding, criterion, wanted, group_size)
        if criterion.needs in WATCHERS:
            watchers.append(WATCHERS[criterion.needs](model, criterion, units))
        elif criterion.needs in _GATHERERS:
            scores.update(_GATHERERS[criterion.needs](model, batches, criterion, units))
        else:
            raise RequestError(f"{criterion.name!r} needs {criterion.needs}, which is not computed on a model")
    if is_paged(model):
        scores.update(sweep_watchers(model, binding, batches, watchers, seed))
        watchers = []
    passes = {(watcher.samples_labels, watcher.runs_alone) for watcher in watchers}  # two losses are two passes
    for which in sorted(passes):
        together = [watcher for watcher in watchers if (watcher.samples_labels, watcher.runs_alone) == which]
        scores.update(_watch(model, binding, batches, together, seed))
    check_finite(scores, f"; {ADVICE}")
    return scores


def _watch(
    model: Any, binding: Binding, batches: Batches, watchers: Sequence[Watcher], seed: int
) -> dict[str, torch.Tensor]:
    """Run the model over all batches once, with all watchers in place."""
    gradients = any(watcher.criterion.needs in ("gradients", "changes") for watcher in watchers)
    with ExitStack() as stack:
        for watcher in watchers:
            stack.enter_context(watcher)
        stack.enter_context(torch.set_grad_enabled(gradients))
        advance = stack.enter_context(progress_bar(" and ".join(w.criterion.name for w in watchers), len(batches)))
        before: list[Any] = []

        def remember() -> None:
            before[:] = [watcher.saved() for watcher in watchers]

        def restore() -> None:
            for watcher, saved in zip(watchers, before, strict=True):
                watcher.restore(saved)

        def run(batch: Batch) -> int:
            remember()
            _run_batch(model, binding, batch, watchers, seed if gradients and watchers[0].samples_labels else None)
            return len(batch.input_ids)

        if any(watcher.criterion.needs == "gradients" for watcher in watchers):
            micro = batches.micro_batch(fixed=True)  # one gradient of each batch
            for batch in batches:
                remember()

                def run_parts(size: int, batch: Batch = batch) -> None:
                    for part in batch.parts(size):
                        _run_batch(model, binding, part, watchers, None)

                micro.whole(run_parts, undo=restore, at_most=len(batch.input_ids))
                advance(len(batch.input_ids))
        else:
            for windows in batches.each(run, undo=restore):
                advance(windows)
        scores: dict[str, torch.Tensor] = {}
        for watcher in watchers:
            scores.update(watcher.scores())
    return scores


def _run_batch(model: Any, binding: Binding, batch: Batch, watchers: Sequence[Watcher], seed: int | None) -> None:
    """Run one batch under watchers, and backward where gradients are watched.

    Raises:
        NotFiniteError: The loss is not finite; the message names the first layer that is not.
    """
    for watcher in watchers:
        watcher.begin(batch)
    if torch.is_grad_enabled():
        loss = backward(model, batch, seed=seed)
        if not isfinite(loss):
            with torch.no_grad():
                LayerRunner(model, binding).states(batch)  # raises with the first layer that is not finite
            error = not_finite(model, batch.input_ids, "the model", "the calibration text")
            raise error or NotFiniteError(f"the loss of the calibration text is not finite ({loss}); {ADVICE}")
    else:
        base_of(model)(input_ids=batch.input_ids, attention_mask=batch.mask, use_cache=False)
    for watcher in watchers:
        watcher.end()


def _score_removed(model: Any, batches: Batches, criterion: Criterion, units: Units) -> dict[str, torch.Tensor]:
    if units.keys != (LAYERS,):
        return score_removed_units(model, batches, criterion, units)
    singles = [(layer, layer + 1) for layer in range(units.binding.sizes["layers"])]
    return {LAYERS: score_spans(model, units.binding, batches, criterion, singles)}


def _mix(model: Any, batches: Batches, criterion: Criterion, units: Units) -> dict[str, torch.Tensor]:
    """Score by each part and let the criterion mix them, one kind of unit at a time."""
    parts = [
        score_model(
            model,
            units.binding,
            batches.windows,
            UNIT_CRITERIA[name],
            None,
            units.keys,
            attention_mask=batches.mask,
            batch_size=batches.size,
            grows=batches.grows,
            group_size=units.group,
        )
        for name in criterion.parts
    ]
    return {key: criterion.function(*(part[key] for part in parts)) for key in units.keys}


_GATHERERS: Mapping[str, Callable[[Any, Batches, Criterion, Units], dict[str, torch.Tensor]]] = {
    "gram": score_gram,
    "logits": _score_removed,
    "scores": _mix,
}
"""The function for each need that one pass of the unchanged model does not cover."""
