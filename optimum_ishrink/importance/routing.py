"""What a router sends to each expert, and what the expert makes of it, observed on the running model."""

from __future__ import annotations

from typing import Any

import torch

from ..architectures.description import EXPERTS
from ..core.processes import summed, summed_count
from ..modeling.experts import expert_modules, gather_arguments
from .criterion import Routing
from .watchers import Watcher


class RoutingWatcher(Watcher):
    """Sums gate weights and norms of outputs over the tokens that are routed to each expert.

    A layer's module of experts is called a second time, with every pair of a token and an expert as a token of its
    own that is routed to that expert alone, with a gate of 1: that is the expert's own output, whatever its
    activation, its biases and its layout are.
    """

    runs_alone = True

    def install(self) -> None:
        """Hook the experts of each layer."""
        layers, experts = self.units.binding.sizes["layers"], self.units.binding.sizes["experts"]
        self._found = torch.zeros(4, layers, experts, device=self.model.device)
        for layer, module in expert_modules(self.model, self.units.binding).items():

            def observe(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int = layer) -> None:
                if not self._inside:
                    self._inside = True
                    try:
                        self._add(layer, module, *gather_arguments(args, kwargs))
                    finally:
                        self._inside = False

            self.handles.append(module.register_forward_pre_hook(observe, with_kwargs=True))

    _inside = False
    """Whether the experts are being called by this watcher."""

    @torch.no_grad()
    def _add(self, layer: int, module: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> None:
        assert self.batch is not None
        text = self.batch.mask.flatten().bool()
        hidden = hidden.reshape(-1, hidden.shape[-1])[text]
        chosen, weights = chosen.reshape(len(text), -1)[text], weights.reshape(len(text), -1)[text]
        found = self._found[:, layer]
        for place in range(chosen.shape[1]):  # one expert of each token at a time: no larger than the layer's own pass
            expert, gate = chosen[:, place], weights[:, place]
            norm = module(hidden, expert[:, None], torch.ones_like(gate)[:, None]).float().norm(dim=-1)
            gate = gate.float()
            for total, values in zip(found, (torch.ones_like(norm), gate, norm, gate * norm), strict=True):
                total.index_add_(0, expert, values.to(total))

    def end(self) -> None:
        """Count the batch's tokens."""
        assert self.batch is not None
        self.terms += self.batch.tokens

    def running(self) -> dict[str, torch.Tensor]:
        """Return every sum that grows from batch to batch, by name."""
        return {**super().running(), "routing": self._found}

    def scores(self) -> dict[str, torch.Tensor]:
        """Return config key to scores, float32 on the CPU."""
        tokens = summed_count(self.terms, self.model.device)
        routed, gates, norms, gated_norms = summed(self._found)
        values = self.criterion.function(Routing(routed, gates, norms, gated_norms, tokens))
        return {EXPERTS: values.float().cpu()}
