"""Closed-form repair: the projections that read what was cut are solved anew, layer by layer.

What is left of a layer's neurons (or heads) is asked to produce what the whole layer produced. That is linear least
squares in the weights of the projection, so one pass of forward passes is enough. Each layer is solved on what the
already cut and repaired layers below it give, and half of its target is the base model's own residual stream: so it
makes up for the errors of the layers below as well as for its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..architectures import Binding, BoundTensor
from ..architectures.axes import input_readers, layer_module
from ..artifacts import Plan
from ..errors import DataError
from ..layerwise import capture, enter_layers, first_row, run_layer, run_span
from ..progress import progress_bar

RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Ridges to choose from, in units of the Gram matrix's mean diagonal."""

HELD_OUT = 8
"""Every eighth window chooses the ridge and is not solved on."""


def solve_ridge(gram: torch.Tensor, cross: torch.Tensor, weight: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return the weight that minimises `||X W'^T - Y||^2 + lambda ||W' - W||^2`, with `lambda = ridge *
    mean(diag(gram))`.

    `W' = (Y^T X + lambda W) (X^T X + lambda I)^-1`. The ridge pulls towards the weight that was kept, not towards
    zero: where the calibration text says nothing of a direction, the trained weight stands.

    Source: FASP, arXiv:2501.09412, eq. 8, and SlimGPT, arXiv:2412.18110, with another centre of the ridge.

    Args:
        gram: `X^T X`, shape (in, in).
        cross: `Y^T X`, shape (out, in).
        weight: The weight as it was cut, shape (out, in).
        ridge: Strength, relative to the mean of the Gram matrix's diagonal.

    Returns:
        float64, shape (out, in).

    Raises:
        DataError: The Gram matrix is not finite, or too singular even for this ridge.
    """
    if not gram.isfinite().all() or not cross.isfinite().all():
        raise DataError("the activations are not finite; try dtype='float32'")
    gram, cross, weight = gram.double(), cross.double(), weight.double()
    strength = ridge * gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    left = gram + strength * torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    factor, info = torch.linalg.cholesky_ex(left)
    if info.item():
        raise DataError(f"the calibration text is too uniform to solve with a ridge of {ridge}; give more text")
    return torch.cholesky_solve((cross + strength * weight).T, factor).T


@dataclass
class Moments:
    """Sums over tokens that least squares needs, float32 on the model's device.

    Args:
        gram: `X^T X`.
        cross: `Y^T X`.
        energy: `sum ||y||^2`.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    energy: torch.Tensor

    @classmethod
    def zeros(cls, weight: torch.Tensor) -> Moments:
        """Return empty sums for a weight of shape (out, in)."""
        width = weight.shape[1]
        options: dict[str, Any] = {"dtype": torch.float32, "device": weight.device}
        return cls(
            torch.zeros(width, width, **options), torch.zeros(weight.shape, **options), torch.zeros((), **options)
        )

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Add tokens: inputs of shape (tokens, in) and targets of shape (tokens, out)."""
        inputs, targets = inputs.float(), targets.float()
        self.gram.addmm_(inputs.T, inputs)
        self.cross.addmm_(targets.T, inputs)
        self.energy += targets.square().sum()

    def error(self, weight: torch.Tensor) -> float:
        """Return the share of the targets' energy that a weight leaves unexplained."""
        w = weight.double()
        fit = (w @ self.gram.double() * w).sum() - 2 * (w * self.cross.double()).sum()
        return float((fit + self.energy.double()) / self.energy.double().clamp_min(1e-30))


@dataclass(frozen=True)
class Repair:
    """What became of one projection.

    Args:
        name: Name of its weight in the new checkpoint.
        ridge: The ridge that was best on held-out windows; None when the cut weight was better than all.
        error: Unexplained share of the target's energy on held-out windows, as it was cut.
        new_error: The same, repaired.
    """

    name: str
    ridge: float | None
    error: float
    new_error: float


def restrict_rank(update: torch.Tensor, gram: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the map of a given rank that is nearest to an update, in what both make of the calibration inputs.

    With `D` the update and `G = X^T X`, `U U^T D` minimises `||X (D' - D)^T||` over maps of rank r, where `U` holds
    the top r eigenvectors of `D G D^T`.

    Source: EoRA, arXiv:2410.21271, section 3.2: the singular vectors of the error in the eigenspace of the inputs.

    Args:
        update: float64, shape (out, in).
        gram: `X^T X`, shape (in, in).
        rank: The rank.
    """
    outputs = update @ gram.double() @ update.T
    vectors: torch.Tensor = torch.linalg.eigh((outputs + outputs.T) / 2).eigenvectors[:, -rank:]
    return vectors @ (vectors.T @ update)


def choose_repair(
    fit: Moments, held_out: Moments, weight: torch.Tensor, rank: int | None = None
) -> tuple[torch.Tensor, float | None]:
    """Return the weight that is best on held-out windows, with its ridge; the cut weight itself is a candidate.

    Args:
        fit: Sums over the windows to solve on.
        held_out: Sums over the windows to choose on.
        weight: The weight as it was cut, shape (out, in).
        rank: Rank that the change of the weight may have; any when None.
    """
    best, best_ridge, best_error = weight.double(), None, held_out.error(weight)
    for ridge in RIDGES:
        candidate = solve_ridge(fit.gram, fit.cross, weight, ridge)
        if rank is not None:
            candidate = weight.double() + restrict_rank(candidate - weight.double(), fit.gram, rank)
        error = held_out.error(candidate)
        if error < best_error:
            best, best_ridge, best_error = candidate, ridge, error
    return best, best_ridge


@torch.no_grad()
def compensate(
    base: Any,
    model: Any,
    binding: Binding,
    plan: Plan,
    windows: torch.Tensor,
    *,
    batch_size: int = 4,
    rank: int | None = None,
) -> tuple[dict[str, torch.Tensor], list[Repair]]:
    """Repair a cut model in place, from the first layer to the last.

    In memory at once: both models, the hidden states of all windows for each, and one projection's sums.

    Args:
        base: The base model.
        model: The cut model, on the same device and in the same dtype; its projections are changed.
        binding: The base's binding.
        plan: The plan that it was cut by.
        windows: Calibration windows, token ids, shape (windows, length).
        batch_size: Windows run at once.
        rank: Rank that the change of a weight may have; any when None.

    Returns:
        The new weights by their names in the new checkpoint, in float64; and what became of each projection.

    Raises:
        DataError: There are too few windows to hold any out, or activations that are not finite.
    """
    if len(windows) < HELD_OUT:
        raise DataError(f"compensation needs at least {HELD_OUT} calibration windows, not {len(windows)}")
    batches = [windows[start : start + batch_size] for start in range(0, len(windows), batch_size)]
    reference, how = enter_layers(base, binding, batches)
    current, _ = enter_layers(model, binding, batches, layers=len(plan.layers))
    layers = [base.get_submodule(layer_module(binding, layer)) for layer in range(binding.sizes["layers"])]

    def advance_through(states: Sequence[torch.Tensor], span: Sequence[int]) -> list[torch.Tensor]:
        """Run base layers one after another."""
        for layer in span:
            states = [run_layer(layers[layer], hidden, how[layer][len(hidden)]) for hidden in states]
        return list(states)

    weights: dict[str, torch.Tensor] = {}
    repairs: list[Repair] = []
    kept = [*plan.layers, len(layers)]
    reference = advance_through(reference, range(kept[0]))
    with progress_bar("compensation", len(plan.layers)) as advance:
        for position, layer in enumerate(plan.layers):
            following = kept[position + 1]
            part = model.get_submodule(layer_module(binding, layer, position))
            dropped = range(layer + 1, following)
            after = advance_through(reference, [layer])
            beyond = advance_through(after, dropped)
            for bound, absorbs in cut_readers(binding, plan, layer, dropped=bool(dropped)):
                name = bound.name.removesuffix(".weight").split(f".{layer}.", 1)[1]
                site = _Site(
                    layers[layer],
                    part,
                    name,
                    bound.transposed,
                    how[layer],
                    _stream_is_sum(part, name, current, how[layer]),
                )
                span = dropped if absorbs else ()
                solved, repair = _repair(
                    site,
                    bound.in_layer(position),
                    current,
                    beyond if absorbs else after,
                    partial(run_span, [layers[index] for index in span], [how[index] for index in span]),
                    rank,
                )
                repairs.append(repair)
                if repair.ridge is not None:
                    weights[repair.name] = solved.T if site.transposed else solved
            current = [run_layer(part, hidden, how[layer][len(hidden)]) for hidden in current]
            reference = beyond
            advance(1)
    return weights, repairs


def cut_readers(binding: Binding, plan: Plan, layer: int, *, dropped: bool) -> list[tuple[BoundTensor, bool]]:
    """Return the projections of a layer to solve anew, the attention's before the MLP's.

    They are those whose inputs were cut; and, where the layers that follow were dropped, the MLP's, which can take
    over what is linear in them (ReplaceMe, arXiv:2505.02819, folded into the projection from the start).

    Args:
        binding: The base's binding.
        plan: The plan.
        layer: Index of the layer in the base.
        dropped: Whether layers were dropped right behind it.

    Returns:
        Each projection, and whether it stands in for the dropped layers as well.
    """
    found = []
    for key in ("num_attention_heads", "intermediate_size"):
        absorbs = dropped and key == "intermediate_size"
        if absorbs or plan.new_shape[key] < plan.shape[key]:
            readers = (bound for bound in input_readers(binding, key) if bound.layer == layer)
            # Fused experts are no modules that could be solved one by one: they stay as they were cut.
            found += [(bound, absorbs) for bound in readers if bound.expert is None]
    return found


@dataclass(frozen=True)
class _Site:
    """One projection in the base's layer and in the cut one."""

    whole: Any
    part: Any
    name: str
    transposed: bool
    how: Mapping[int, Mapping[str, Any]]
    stream_is_sum: bool

    @property
    def projection(self) -> Any:
        return self.part.get_submodule(self.name)

    def weight(self) -> torch.Tensor:
        """The cut projection's weight as (out, in); a view, so that it can be written through."""
        weight: torch.Tensor = self.projection.weight.detach()
        return weight.T if self.transposed else weight


def _repair(
    site: _Site,
    name: str,
    current: Sequence[torch.Tensor],
    stream: Sequence[torch.Tensor],
    beyond: Callable[[torch.Tensor], torch.Tensor],
    rank: int | None,
) -> tuple[torch.Tensor, Repair]:
    """Solve one projection: gather its sums over all windows, choose the ridge, set the weight.

    Args:
        site: The projection.
        name: Name of its weight in the new checkpoint.
        current: What enters the cut layer.
        stream: The base's residual stream where the cut layer has to arrive.
        beyond: Runs the base's layers that were dropped behind this one.
        rank: Rank that the change of the weight may have; any when None.
    """
    weight = site.weight()
    sums = (Moments.zeros(weight), Moments.zeros(weight))
    seen = 0
    for hidden, wanted in zip(current, stream, strict=True):
        kwargs = site.how[len(hidden)]
        with capture(site.whole.get_submodule(site.name)) as own:
            whole = run_layer(site.whole, hidden, kwargs)
        with capture(site.projection) as cut:
            part = run_layer(site.part, hidden, kwargs)
        target = own["output"].float()
        if site.stream_is_sum:
            # Half of the target is what the whole layer (and what was dropped behind it) would make of this input,
            # half what brings the stream back to the base's: the first alone lets errors grow, the second alone
            # overfits.
            target = target + (beyond(whole).float() - whole.float())
            target = (target + cut["output"].float() + (wanted.float() - part.float())) / 2
        if site.projection.bias is not None:
            target = target - site.projection.bias.float()
        for row in range(len(hidden)):
            held = (seen + row) % HELD_OUT == HELD_OUT - 1
            sums[held].add(cut["input"][row], target[row])
        seen += len(hidden)
    solved, ridge = choose_repair(sums[0], sums[1], weight, rank)
    error = sums[1].error(weight)
    if ridge is not None:
        weight.copy_(solved.to(weight.dtype))
    return solved, Repair(name, ridge, error, sums[1].error(site.weight()))


def _stream_is_sum(
    part: Any, name: str, current: Sequence[torch.Tensor], how: Mapping[int, Mapping[str, Any]]
) -> bool:
    """Whether what a projection puts out is added to the residual stream as it is.

    It is not where a norm or a factor stands behind it; and for an attention, the MLP behind it answers to the change.
    Then the stream says nothing about the projection in closed form, and its own output is the whole target.
    """
    hidden = current[0][:1]
    kwargs = {key: first_row(value, len(current[0])) for key, value in how[len(current[0])].items()}
    projection = part.get_submodule(name)
    with capture(projection) as seen:
        before = run_layer(part, hidden, kwargs)
    change = seen["output"].float().std() * torch.ones_like(seen["output"])
    handle = projection.register_forward_hook(lambda _, __, output: output + change.to(output.dtype))
    try:
        difference = run_layer(part, hidden, kwargs).float() - before.float()
    finally:
        handle.remove()
    return bool((difference - change.float()).norm() < 0.05 * change.float().norm())
