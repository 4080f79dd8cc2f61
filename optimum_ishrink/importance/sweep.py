"""Watchers on a model whose layers come from disk: layer by layer over all batches, and for gradients back again.

A model in memory runs batch by batch, through all layers. Here each layer runs on all batches before the next is read,
and every watcher sees the same tensors in the same order within its layer, so that the sums are the same to the bit.
Gradients come from a second sweep, from the last layer to the first: each layer runs once more on what entered it,
and passes on the gradient of what left it, as one backward pass through the whole model would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import isfinite
from typing import Any

import torch

from ..architectures.binding import Binding
from ..core.finite import ADVICE, kind_of
from ..core.paging import kept, new_states, release
from ..core.progress import progress_bar
from ..core.spool import States
from ..errors import NotFiniteError
from ..modeling.base import base_of, layers_of
from ..modeling.given_states import given
from ..modeling.layer_output import hidden_of, parts_of
from ..modeling.layerwise import enter_layers
from .batches import Batches
from .head_loss import backward_from
from .scoring_progress import ScoringProgress
from .watchers import Watcher


class Sweep:
    """One model and its batches, run layer by layer.

    Args:
        model: The model, whose layers come from disk.
        binding: Its binding.
        batches: Calibration windows, without padding.
        progress: Where finished layers are stored, so that a killed run resumes.
    """

    def __init__(self, model: Any, binding: Binding, batches: Batches, progress: ScoringProgress) -> None:
        self.model = model
        self.binding = binding
        self.batches = list(batches)
        self.progress = progress
        self.layers = layers_of(model, binding)
        self._parts: int | None = None
        with torch.no_grad():
            self.states, self.calls = enter_layers(model, binding, [batch.input_ids for batch in self.batches])

    def forward(self, watchers: Sequence[Watcher]) -> dict[str, torch.Tensor]:
        """Run all layers once under watchers of the forward pass, and return config key to scores.

        Args:
            watchers: The watchers.
        """
        states, first = self.states, 0
        with ExitStack() as stack:
            for watcher in watchers:
                stack.enter_context(watcher)
            stack.enter_context(torch.no_grad())
            found = self.progress.read(watchers)
            if found is not None:
                first, states = found
                self.progress.restore(watchers)
            advance = stack.enter_context(progress_bar(_names(watchers), len(self.layers)))
            advance(first)
            for number in range(first, len(self.layers)):
                states = kept(self.model, self._layer(number, states, watchers))
                self.progress.write(watchers, number + 1, states)
                advance(1)
            return self._scores(watchers)

    def _layer(self, number: int, states: States, watchers: Sequence[Watcher]) -> Iterator[torch.Tensor]:
        """Run one layer on all batches, and yield what leaves it."""
        for batch, hidden in zip(self.batches, states, strict=True):
            for watcher in watchers:
                watcher.begin(batch)
            yield self._run(number, hidden)
            for watcher in watchers:
                watcher.end()

    def _run(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        output = self.layers[number](hidden, **self.calls[number][len(hidden)])
        self._parts = parts_of(output)
        return hidden_of(output)

    def backward(
        self, watchers: Sequence[Watcher], riders: Sequence[Watcher], *, seed: int | None
    ) -> dict[str, torch.Tensor]:
        """Run all layers forward, and then once more from the last to the first with gradients, under watchers.

        Args:
            watchers: The watchers of gradients.
            riders: Watchers of the forward pass.
            seed: Seed of the labels that are drawn from the model; None for the text's own next tokens.

        Returns:
            Config key to scores, of all watchers.

        Raises:
            NotFiniteError: The loss is not finite; the message names the first layer that is not.
        """
        found = self.progress.read(watchers)
        with ExitStack() as stack:
            for rider in riders:
                stack.enter_context(rider)
            whole = found is not None and found[0] == len(self.layers)
            entering = self._entering((*watchers, *riders), riders, whole=whole)
            scores = self._scores(riders)
        done, gradients = found if found is not None else (0, self._from_head(entering, seed))
        with ExitStack() as stack:
            for watcher in watchers:
                stack.enter_context(watcher)
            if found is not None:
                self.progress.restore(watchers)
            stack.enter_context(torch.enable_grad())
            advance = stack.enter_context(progress_bar(_names(watchers), len(self.layers)))
            advance(done)
            for number in reversed(range(len(self.layers) - done)):
                gradients = kept(self.model, self._backward_layer(number, entering[number], gradients, watchers))
                self.progress.write(watchers, len(self.layers) - number, gradients)
                advance(1)
            self.progress.drop_entering()
            return {**scores, **self._scores(watchers)}

    @torch.no_grad()
    def _entering(self, watchers: Sequence[Watcher], riders: Sequence[Watcher], *, whole: bool) -> list[States]:
        """Return what enters each layer, and what leaves the last; nothing where all have run backward already."""
        entering = [self.states, *self.progress.read_entering()]
        if whole or len(entering) > 1:
            self.progress.restore_entering(riders)
        if whole:
            return []
        with progress_bar(f"{_names(watchers)}: forward", len(self.layers)) as advance:
            advance(len(entering) - 1)
            for number in range(len(entering) - 1, len(self.layers)):
                entering.append(kept(self.model, self._layer(number, entering[-1], riders)))
                self.progress.write_entering(entering[1:], riders)
                advance(1)
        return entering

    def _from_head(self, entering: Sequence[States], seed: int | None) -> States:
        """Return the gradient of the loss at what leaves the last layer, for each batch."""
        gradients = new_states(self.model)
        if self._parts is None:  # all layers ran before the run was killed
            with torch.no_grad():
                self._run(0, self.states[0])
        release(self.model)  # the head is as large as several layers
        with _without_gradients(self.model), progress_bar("loss", len(self.batches)) as advance:
            for batch, hidden in zip(self.batches, entering[-1], strict=True):
                leaf = hidden.requires_grad_()
                with given(self.model, self.layers, leaf, self._parts or 0):
                    output = base_of(self.model)(input_ids=batch.input_ids, attention_mask=batch.mask, use_cache=False)
                loss = backward_from(self.model, batch, output, seed=seed)
                if not isfinite(loss):
                    self._raise_not_finite(entering, loss)
                assert leaf.grad is not None
                gradients.append(leaf.grad)
                advance(1)
        return gradients

    def _backward_layer(
        self, number: int, states: States, gradients: States, watchers: Sequence[Watcher]
    ) -> Iterator[torch.Tensor]:
        """Run one layer forward and backward on all batches, and yield the gradients of what enters it."""
        for batch, hidden, gradient in zip(self.batches, states, gradients, strict=True):
            for watcher in watchers:
                watcher.begin(batch)
            leaf = hidden.requires_grad_()
            self._run(number, leaf.clone()).backward(gradient)  # type: ignore[no-untyped-call]
            for watcher in watchers:
                watcher.end()
            assert leaf.grad is not None
            yield leaf.grad

    def _raise_not_finite(self, entering: Sequence[States], loss: float) -> None:
        for number, states in enumerate(entering[1:]):
            for batch, hidden in zip(self.batches, states, strict=True):
                if (kind := kind_of(batch.text(hidden))) is not None:
                    raise NotFiniteError(f"layer {number} gives values that are not finite ({kind}); {ADVICE}")
        raise NotFiniteError(f"the loss of the calibration text is not finite ({loss}); {ADVICE}")

    def _scores(self, watchers: Sequence[Watcher]) -> dict[str, torch.Tensor]:
        scores: dict[str, torch.Tensor] = {}
        for watcher in watchers:
            watcher.terms //= len(self.layers)  # every layer counted the tokens of every batch
            scores.update(watcher.scores())
        release(self.model)
        return scores


@contextmanager
def _without_gradients(model: Any) -> Iterator[None]:
    """Let gradients flow to activations, and to no weights."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, needed in before.items():
            parameter.requires_grad_(needed)


def _names(watchers: Sequence[Watcher]) -> str:
    return " and ".join(watcher.criterion.name for watcher in watchers)


def sweep_watchers(
    model: Any, binding: Binding, batches: Batches, watchers: Sequence[Watcher], seed: int
) -> dict[str, torch.Tensor]:
    """Run a model whose layers come from disk under watchers, and return config key to scores.

    Args:
        model: The model.
        binding: Its binding.
        batches: Calibration windows, without padding.
        watchers: The watchers.
        seed: Seed of labels that are drawn from the model.

    Raises:
        NotFiniteError: The model gives values that are not finite.
    """
    riders = [watcher for watcher in watchers if not _of_gradients(watcher) and not watcher.runs_alone]
    alone = [[watcher] for watcher in watchers if watcher.runs_alone]
    losses = [
        [watcher for watcher in watchers if _of_gradients(watcher) and watcher.samples_labels == drawn]
        for drawn in (False, True)
    ]
    scores: dict[str, torch.Tensor] = {}
    for group in filter(None, losses):
        sweep = Sweep(model, binding, batches, ScoringProgress(model, (*group, *riders)))
        scores.update(sweep.backward(group, riders, seed=seed if group[0].samples_labels else None))
        riders = []  # they have seen the forward pass
    for group in (*alone, *([riders] if riders else [])):
        scores.update(Sweep(model, binding, batches, ScoringProgress(model, group)).forward(group))
    return scores


def _of_gradients(watcher: Watcher) -> bool:
    return watcher.criterion.needs in ("gradients", "changes")
