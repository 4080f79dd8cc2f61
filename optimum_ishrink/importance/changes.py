"""First-order change of the loss when a unit or a layer is set to zero, observed token by token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..architectures.axes import layer_module
from ..architectures.binding import BoundTensor
from ..architectures.description import LAYERS, NEURONS
from ..modeling.layer_output import hidden_of
from .watchers import Routed, Watcher


def sampled_loss(logits: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of next tokens that are drawn from the model.

    Its gradients are draws from the score function of the model's own distribution, so the mean of their squares is
    the Fisher information, the curvature of the KL divergence. With the next tokens of
    the text it would not be (Kunstner et al. 2019, arXiv:1905.12558).

    Args:
        logits: Shape (tokens, vocabulary).
        level: Uniform numbers between 0 and 1, shape (tokens,): the token is drawn at that level of the cumulative
            distribution.

    Returns:
        float32, shape (tokens,).
    """
    log_p = logits.float().log_softmax(-1)
    with torch.no_grad():
        cumulative = log_p.exp().cumsum_(-1)
        drawn = torch.searchsorted(cumulative, level[:, None] * cumulative[:, -1:]).clamp_(max=logits.shape[-1] - 1)
    return -log_p.gather(-1, drawn)[:, 0]


class ChangeWatcher(Watcher):
    """Multiplies what a unit (or a layer) contributes by the gradient of the loss there, for each token."""

    samples_labels = True

    def install(self) -> None:
        """Hook the projections that read the units, or the layers; gradients flow to activations, not to weights."""
        self._before = {name: parameter.requires_grad for name, parameter in self.model.named_parameters()}
        self.model.requires_grad_(False)
        embeddings = self.model.get_input_embeddings()
        # The weights take no gradients, so the graph begins at the embeddings, which some classes scale in place.
        self.handles.append(embeddings.register_forward_hook(lambda _, __, output: output.requires_grad_().clone()))
        if LAYERS in self.units.keys:
            for layer in range(self.units.binding.sizes["layers"]):
                module = self.model.get_submodule(layer_module(self.units.binding, layer))
                self.handles.append(module.register_forward_hook(self._compare(layer), with_kwargs=True))
        for bound in self.units.readers().values():
            module = self.model.get_submodule(bound.module)
            self.handles.append(module.register_forward_pre_hook(self._read(bound)))
        if NEURONS in self.units.keys:
            self.watch_experts(self._read_expert)

    def _read_expert(self, layer: int, expert: int, inputs: torch.Tensor, routed: Routed) -> None:
        if not inputs.requires_grad:
            return
        entering, place = inputs.detach(), self.units.of_expert(expert)

        def reduce(gradient: torch.Tensor) -> None:
            change = routed.text(entering.to(torch.float32, copy=True).mul_(gradient))
            per_unit = change.view(len(change), -1, self.units.group).sum(-1)
            # Of a token that is not routed to the expert nothing changes without it.
            self.sums[NEURONS][layer, place] += self.criterion.function(per_unit).sum(dim=0)

        inputs.register_hook(reduce)  # type: ignore[no-untyped-call]

    def _compare(self, layer: int) -> Callable[..., None]:
        def compare(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = (args[0] if args else kwargs["hidden_states"]).detach()
            after = hidden_of(output)
            leaving = after.detach()  # a hook that refers to its own tensor would keep the whole graph alive

            def reduce(gradient: torch.Tensor) -> None:
                assert self.batch is not None
                change = (leaving.float() - before.float()) * gradient.float()
                values = self.criterion.function(self.batch.text(change.sum(-1)))
                self.sums[LAYERS][layer] += values.sum()

            after.register_hook(reduce)  # type: ignore[no-untyped-call]

        return compare

    def _read(self, bound: BoundTensor) -> Callable[..., None]:
        layer, place = bound.layer, self.units.place(bound)
        assert layer is not None
        keys = [key for key in self.units.keys if key != LAYERS and bound.name in self.units.readers((key,))]
        channels = {key: self.units.channels(bound, key).to(self.model.device) for key in keys}

        def read(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            entering = inputs[0].detach()  # a hook that refers to its own tensor would keep the whole graph alive

            def reduce(gradient: torch.Tensor) -> None:
                assert self.batch is not None
                change = self.batch.text(entering.to(torch.float32, copy=True).mul_(gradient))
                for key, units in channels.items():
                    # Neurons have one channel each, in order: there is nothing to gather.
                    per_unit = change if units.shape[1] == 1 else change[:, units].sum(-1)
                    self.sums[key][layer, place] += self.criterion.function(per_unit).sum(dim=0)

            if inputs[0].requires_grad:  # not in forward passes without gradients
                inputs[0].register_hook(reduce)  # type: ignore[no-untyped-call]

        return read

    def end(self) -> None:
        """Count the batch's tokens."""
        assert self.batch is not None
        self.terms += self.batch.tokens

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._before[name])
