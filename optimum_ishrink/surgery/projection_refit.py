"""Re-fitting one projection: its text, window by window, the choice of a ridge, and the new weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..core.paging import new_states, release, spool_of
from ..core.processes import from_main_process
from ..core.progress import note
from ..core.spool import InMemory, States, filled
from ..modeling.experts import FusedExperts
from ..report.compensation import ProjectionRepair
from .cut_layer import CutLayer, stream_is_sum
from .expert_refit import Routed, refit_experts
from .few_tokens import choose_weight, empty_folds
from .least_squares import least_ridge
from .sites import Site


@dataclass
class ProjectionRefit:
    """Re-fits one projection after the other, and starts each search for a ridge at the one of the layer before.

    Args:
        model: The base, which is in memory or on disk, and so are what enters a projection and its sums.
        folds: The fold of each batch.
        number_of_folds: Number of folds.
        tokens: Number of tokens in all batches.
        write: Takes each new weight, by its name in the new checkpoint: float64, in the file's layout.
        rank: Maximum rank of a weight's change; None sets no limit.
        shared: Whether each process has a part of the batches.
    """

    model: Any
    folds: Sequence[int]
    number_of_folds: int
    tokens: int
    write: Callable[[str, torch.Tensor], None]
    rank: int | None
    shared: bool
    _ridge: dict[str, float] = field(default_factory=dict, init=False)
    """The last ridge of the projections of one name."""
    _is_sum: dict[str, bool] = field(default_factory=dict, init=False)
    """`stream_is_sum` of the projections of one name."""

    def memory(self) -> dict[str, Any]:
        """Return what the next layer starts from, as plain values."""
        return {"ridge": dict(self._ridge), "is_sum": dict(self._is_sum)}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Start where another object was.

        Args:
            memory: What its `memory` returned; empty for a new start.
        """
        self._ridge.update(memory.get("ridge", {}))
        self._is_sum.update(memory.get("is_sum", {}))

    def __call__(
        self,
        layer: CutLayer,
        site: Site,
        name: str,
        current: States,
        goal: States,
        span: Callable[[States], States],
        *,
        last: bool,
    ) -> tuple[ProjectionRepair, States]:
        """Re-fit one projection by ridge regression, and use the new weight in its layer from then on.

        Args:
            layer: The layer.
            site: The projection.
            name: Name of its weight in the new checkpoint.
            current: What enters the cut layer, one tensor per batch.
            goal: The base's residual stream that the cut layer has to reproduce, one tensor per batch.
            span: Runs the base's dropped layers that follow this one.
            last: Whether it is the last to re-fit in its layer.

        Returns:
            What became of it; and, when it is the last, what the repaired layer gives.

        Raises:
            DataError: The activations are not finite, or too uniform.
        """
        if site.name not in self._is_sum:
            is_sum = stream_is_sum(layer.base, site.name, current[0], layer.calls)
            self._is_sum[site.name] = from_main_process(is_sum) if self.shared else is_sum  # they read other windows
        is_sum = self._is_sum[site.name]
        spool = spool_of(self.model)
        zeros = None if spool is None else spool.zeros
        text = empty_folds(site.weight, self.number_of_folds, self.tokens, self.rank, zeros, shared=self.shared)
        inputs, rests, before = new_states(self.model), new_states(self.model), 0
        for fold, hidden, wanted in zip(self.folds, current, goal, strict=True):
            if fold != before:  # batches come fold by fold
                text[before].put_away()
                before = fold
            seen = layer.observe(site, hidden)
            target = seen.output
            if is_sum:
                # Half of the target is what the whole layer (and the dropped layers after it) would make of this
                # input, half what brings the stream back to the base's: the first alone lets errors grow, the second
                # alone overfits.
                further = span(InMemory([seen.whole]))[0].float() - seen.whole.float() if site.absorbs else 0
                target = seen.output + (further + wanted.float() - seen.rest - seen.output) / 2
            if site.bias is not None:
                target = target - site.bias.float()
            text[fold].add(seen.inputs.flatten(0, -2), target.flatten(0, -2))
            if last and is_sum:
                inputs.append(seen.inputs)
                rests.append(seen.rest.to(hidden.dtype))
        self._note_few_tokens(site)
        release(self.model)  # solving needs the room of layers, and takes far longer than to read one again
        start = self._ridge.get(site.name)
        weight, ridge, error, new_error = choose_weight(text, site.weight, start, self.rank, zeros, shared=self.shared)
        if ridge is not None:
            self._ridge[site.name] = ridge
            self.write(name, site.stored(weight))
        used = weight.to(site.weight.dtype)
        layer.refitted.append((site, used))
        outputs = new_states(self.model)
        if last and is_sum:
            for index in range(len(rests)):
                output, rest = site.apply(inputs.take(index), used), rests.take(index)
                outputs.append(rest.copy_(rest.float() + output.float()))
        elif last:
            outputs = filled(outputs, (layer.run(hidden) for hidden in current))
        return ProjectionRepair(name, ridge, error, new_error), outputs

    def experts(
        self, experts: FusedExperts, batches: Sequence[Routed]
    ) -> dict[int, tuple[torch.Tensor, ProjectionRepair]]:
        """Re-fit the experts of a layer one after another, each on the tokens that are routed to it.

        Args:
            experts: The experts of the cut layer.
            batches: What they read, one entry per batch.
        """
        return refit_experts(experts, batches, self.folds, self.number_of_folds, self.rank, shared=self.shared)

    def _note_few_tokens(self, site: Site) -> None:
        tokens, width = self.tokens, site.weight.shape[1]
        if tokens < width and site.name not in self._ridge:
            note(
                f"compensation: {tokens:,} calibration tokens are fewer than the {width:,} inputs of {site.name}, "
                f"so its ridge is at least {least_ridge(width, tokens):.2g}; raise calibration_samples "
                "for a better repair"
            )
