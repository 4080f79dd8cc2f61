"""Watchers of the running model: gradients, activations and hidden states, reduced to sums at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from ..architectures.axes import layer_module
from ..architectures.binding import BoundTensor
from ..architectures.description import LAYERS, NEURONS
from ..core.paging import present
from ..core.processes import summed, summed_count
from ..modeling.experts import DownProjections, fused_experts, gather_arguments, one_by_one
from ..modeling.layer_output import hidden_of
from .batches import Batch
from .criterion import Criterion
from .units import Units


@dataclass(frozen=True)
class Routed:
    """The tokens that an expert reads in one batch.

    Args:
        gates: Their gate weights, shape (pairs,).
        is_text: Which of them are not padding, bool, shape (pairs,).
    """

    gates: torch.Tensor
    is_text: torch.Tensor

    def text(self, values: torch.Tensor) -> torch.Tensor:
        """Return the rows of values, shape (pairs, ...), that are text."""
        return values if bool(self.is_text.all()) else values[self.is_text]


class Watcher(ABC):
    """The hooks of one criterion; they are in the model inside the `with` block alone.

    Args:
        model: The model.
        criterion: The criterion.
        units: What it scores.
    """

    samples_labels = False
    """Whether the loss that it watches is that of tokens drawn from the model, not of the text's tokens."""

    runs_alone = False
    """Whether it calls modules itself, which other watchers would observe as well."""

    def __init__(self, model: Any, criterion: Criterion, units: Units) -> None:
        self.model = model
        self.criterion = criterion
        self.units = units
        self.sums = units.zeros(model.device)
        self.terms = 0
        self.batch: Batch | None = None
        self.handles: list[Any] = []
        self.contexts = ExitStack()

    def __enter__(self) -> Watcher:
        self.install()
        return self

    def watch_experts(self, read: Callable[[int, int, torch.Tensor, Routed], None]) -> None:
        """Observe what the projections of fused experts read, where the model has any.

        Args:
            read: Called with the layer, the expert, what its projection reads, shape (pairs, neurons), and which
                tokens these are of.
        """
        experts = fused_experts(self.model, self.units.binding)
        if not experts:
            return
        called: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for layer, fused in experts.items():

            def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int = layer) -> None:
                called[layer] = gather_arguments(args, kwargs)[1:]  # type: ignore[assignment]

            self.handles.append(fused.module.register_forward_pre_hook(enter, with_kwargs=True))

        def observe(layer: int, expert: int, inputs: torch.Tensor) -> None:
            assert self.batch is not None
            chosen, weights = (values.reshape(self.batch.mask.numel(), -1) for values in called[layer])
            place, token = torch.where((chosen == expert).T)  # the order in which an expert's tokens are gathered
            assert len(token) == len(inputs), "an expert reads other tokens than were routed to it"
            text = self.batch.mask.flatten()[token].bool()
            read(layer, expert, inputs, Routed(weights[token, place], text))

        weights = {layer: fused.weight for layer, fused in experts.items()}
        self.contexts.enter_context(one_by_one(self.model))
        self.contexts.enter_context(DownProjections(weights, observe))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.contexts.close()
        for handle in self.handles:
            handle.remove()

    @abstractmethod
    def install(self) -> None:
        """Register the hooks in the model and store their handles."""

    def begin(self, batch: Batch) -> None:
        """Store the batch that runs next."""
        self.batch = batch

    def end(self) -> None:  # noqa: B027 - most have nothing to do
        """Finish the batch."""

    def running(self) -> dict[str, torch.Tensor]:
        """Return every sum that grows from batch to batch, by name, for a run that may be resumed."""
        return {f"sums.{key}": total for key, total in self.sums.items()}

    def saved(self) -> tuple[int, Mapping[str, torch.Tensor]]:
        """Return copies of all that grows from batch to batch, for `restore`."""
        return self.terms, {name: total.clone() for name, total in self.running().items()}

    def restore(self, saved: tuple[int, Mapping[str, torch.Tensor]]) -> None:
        """Go back to before a batch that could not be run to its end.

        Args:
            saved: What `saved` returned.
        """
        self.terms = saved[0]
        for name, total in self.running().items():
            total.copy_(saved[1][name])

    def scores(self) -> dict[str, torch.Tensor]:
        """Return config key to scores, float32 on the CPU."""
        terms = summed_count(self.terms, self.model.device)
        return self.units.scores({key: summed(total) / max(terms, 1) for key, total in self.sums.items()})


class GradientWatcher(Watcher):
    """Reduces every gradient to its units as soon as it is computed, and frees it: no second copy of the weights."""

    def install(self) -> None:
        """Enable gradients of the layers' parameters and of no others."""
        self._before = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        self._of_batch = self.units.zeros(self.model.device)
        for name, parameter in self.model.named_parameters():
            bound = self.units.binding.in_memory.get(name)
            parameter.requires_grad_(bound is not None and bound.layer is not None)
            if bound is not None and bound.layer is not None:

                def reduce(weight: torch.Tensor, bound: BoundTensor = bound) -> None:
                    assert weight.grad is not None and self.batch is not None
                    if not self.batch.last:  # the gradient is that of all parts together
                        return
                    self.units.add(self._of_batch, bound, self.criterion.function(weight.detach(), weight.grad))
                    weight.grad = None

                self.handles.append(parameter.register_post_accumulate_grad_hook(reduce))

    def end(self) -> None:
        """Apply the criterion's norm or absolute value to the batch's sums, and add them."""
        assert self.batch is not None
        if not self.batch.last:
            return
        for key, total in self._of_batch.items():
            self.sums[key] += self.criterion.finish(total)
            total.zero_()
        self.terms += 1

    def restore(self, saved: tuple[int, Mapping[str, torch.Tensor]]) -> None:
        """Go back to before a batch that could not be run to its end, and drop its gradients."""
        super().restore(saved)
        for total in self._of_batch.values():
            total.zero_()
        self.model.zero_grad()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._before[name])


class ActivationWatcher(Watcher):
    """Sums the squares of what enters each projection; the criterion is applied once, at the end."""

    def install(self) -> None:
        """Hook the projections that read the units."""
        self._squares: list[tuple[BoundTensor, Any, torch.Tensor]] = []
        for bound in self.units.readers().values():
            module = self.model.get_submodule(bound.module)
            width = module.weight.shape[0 if bound.transposed else 1]
            sums = torch.zeros(width, dtype=torch.float32, device=self.model.device)
            self._squares.append((bound, module, sums))

            def add(_: Any, inputs: tuple[torch.Tensor, ...], sums: torch.Tensor = sums) -> None:
                assert self.batch is not None
                # The only copy is squared in place: a second one would cost more than all the arithmetic.
                sums.add_(self.batch.text(inputs[0]).to(torch.float32, copy=True).square_().sum(dim=0))

            self.handles.append(module.register_forward_pre_hook(add))
        self._experts: dict[int, torch.Tensor] = {}
        if NEURONS in self.units.keys:
            sizes = self.units.binding.sizes
            for layer in fused_experts(self.model, self.units.binding):
                self._experts[layer] = torch.zeros(sizes["experts"], sizes["ffn"], device=self.model.device)
            self.watch_experts(self._add_expert)

    @torch.no_grad()
    def _add_expert(self, layer: int, expert: int, inputs: torch.Tensor, routed: Routed) -> None:
        # What a channel brings to the layer's output is scaled by the gate.
        scaled = inputs.float() * routed.gates.float()[:, None]
        self._experts[layer][expert] += routed.text(scaled).square_().sum(dim=0)

    def end(self) -> None:
        """Count the batch's tokens."""
        assert self.batch is not None
        self.terms += self.batch.tokens

    def running(self) -> dict[str, torch.Tensor]:
        """Return every sum that grows from batch to batch, by name."""
        squares = {f"squares.{bound.name}": sums for bound, _, sums in self._squares}
        return {**super().running(), **squares, **{f"experts.{i}": sums for i, sums in self._experts.items()}}

    def scores(self) -> dict[str, torch.Tensor]:
        """Return config key to scores, float32 on the CPU."""
        totals = self.units.zeros(self.model.device)
        terms = summed_count(self.terms, self.model.device)
        for bound, module, squares in self._squares:
            weight = present(module).weight.detach()
            channels = self.criterion.function(
                summed(squares) / max(terms, 1), weight.T if bound.transposed else weight
            )
            self.units.add_channels(totals, bound, channels)
        experts = fused_experts(self.model, self.units.binding) if self._experts else {}
        for layer, fused in experts.items():
            present(fused.module)
            for expert, moment in enumerate(summed(self._experts[layer]) / max(terms, 1)):
                channels = self.criterion.function(moment, fused.matrix(expert))
                totals[NEURONS][layer, self.units.of_expert(expert)] += channels.view(-1, self.units.group).sum(-1)
        return self.units.scores(totals)


class HiddenStateWatcher(Watcher):
    """Compares what enters each layer with what leaves it."""

    def install(self) -> None:
        """Hook the layers."""
        for layer in range(self.units.binding.sizes["layers"]):

            @torch.no_grad()  # in a pass with gradients these values must not keep their graph alive
            def compare(
                _: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, layer: int = layer
            ) -> None:
                assert self.batch is not None
                before = args[0] if args else kwargs["hidden_states"]
                after = hidden_of(output)
                self.sums[LAYERS][layer] += self.batch.text(self.criterion.function(before, after)).sum()

            module = self.model.get_submodule(layer_module(self.units.binding, layer))
            self.handles.append(module.register_forward_hook(compare, with_kwargs=True))

    def end(self) -> None:
        """Count the batch's tokens."""
        assert self.batch is not None
        self.terms += self.batch.tokens
