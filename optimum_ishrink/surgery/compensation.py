"""Closed-form repair: the projections that read what was cut are solved anew, layer by layer.

What is left of a layer's neurons (or heads) is asked to produce what the whole layer produced. That is linear least
squares in the weights of the projection, so forward passes are enough. Each layer is solved on what the already cut
and repaired layers below it give, and half of its target is the base model's own residual stream: so it makes up for
the errors of the layers below as well as for its own.

The cut layers are run as the base's own layers with the removed channels left unread, which is the same computation:
no second model is held. Only merged KV heads and experts, which are not the base's with something left out, need the
cut model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..architectures.axes import input_axis, input_readers, layer_module
from ..architectures.slicing import axis_index, slice_tensor
from ..architectures.spec import Binding, BoundTensor
from ..core.progress import note, progress_bar
from ..errors import DataError
from ..modeling.layerwise import capture, enter_layers, first_row, run_layer, run_span
from ..report.plan import Plan
from .least_squares import Moments, choose_repair, least_ridge
from .units import kept_units

FOLDS = 4
"""Parts of the calibration text that are held out in turn to choose a ridge: one a source, or a quarter each."""


@dataclass(frozen=True)
class Repair:
    """What became of one projection.

    Args:
        name: Name of its weight in the new checkpoint.
        ridge: The ridge that was best on held-out text; None when the cut weight was better than all.
        error: Unexplained share of the target's energy on held-out text, as it was cut.
        new_error: The same, repaired.
    """

    name: str
    ridge: float | None
    error: float
    new_error: float


def needs_cut_model(binding: Binding, plan: Plan) -> bool:
    """Whether the cut layers are something else than the base's with channels left unread.

    Args:
        binding: The base's binding.
        plan: The plan.
    """
    return plan.merges is not None or ("intermediate_size" in plan.units and binding.sizes.get("experts", 1) > 1)


@torch.no_grad()
def compensate(
    base: Any,
    binding: Binding,
    plan: Plan,
    windows: torch.Tensor,
    write: Callable[[str, torch.Tensor], None],
    *,
    kinds: torch.Tensor | None = None,
    cut_model: Any = None,
    batch_size: int = 4,
    rank: int | None = None,
) -> list[Repair]:
    """Repair a cut checkpoint, from the first layer to the last.

    In memory at once: the base, the hidden states of all windows for base and cut model, what enters one projection,
    and that projection's sums.

    Args:
        base: The base model.
        binding: The base's binding.
        plan: The plan that was cut by.
        windows: Calibration windows, token ids, shape (windows, length).
        write: Takes each weight that was solved, by its name in the new checkpoint: float64, in the file's layout.
        kinds: For each window the number of the source that it is from, shape (windows,). Each kind of text is held
            out in turn to choose the ridge, so that what fits one kind and hurts another is not chosen. With one kind
            alone, every fourth window is.
        cut_model: The cut model, on the base's device and in its dtype, where `needs_cut_model` says so.
        batch_size: Windows run at once.
        rank: Rank that the change of a weight may have; any when None.

    Returns:
        What became of each projection.

    Raises:
        DataError: There are too few windows to hold any out, or activations that are not finite; the message names
            the layer.
    """
    check_windows(len(windows))
    folds = make_folds(len(windows), kinds)
    batches = [
        (fold, windows[rows][start : start + batch_size])
        for fold, rows in enumerate(folds)
        for start in range(0, len(rows), batch_size)
    ]
    work = _Work([fold for fold, _ in batches], len(folds), write, rank)
    reference, how = enter_layers(base, binding, [ids for _, ids in batches])
    layers = [base.get_submodule(layer_module(binding, layer)) for layer in range(binding.sizes["layers"])]

    def through(states: Sequence[torch.Tensor], span: Sequence[int]) -> list[torch.Tensor]:
        chosen, calls = [layers[index] for index in span], [how[index] for index in span]
        return [run_span(chosen, calls, hidden) for hidden in states]

    kept = [*plan.layers, len(layers)]
    reference = through(reference, range(kept[0]))
    current = reference
    repairs: list[Repair] = []
    with progress_bar("compensation", len(plan.layers)) as advance:
        for position, layer in enumerate(plan.layers):
            dropped = range(layer + 1, kept[position + 1])
            after = through(reference, [layer])
            beyond = through(after, dropped) if dropped else after
            part = None if cut_model is None else cut_model.get_submodule(layer_module(binding, layer, position))
            keep = kept_units(binding, plan, position)
            sites = [
                _site(layers[layer], part, bound, binding, keep, absorbs)
                for bound, absorbs in cut_readers(binding, plan, layer, dropped=bool(dropped))
            ]
            cut = _Layer(layers[layer], part, how[layer])
            if not sites:
                current = after if current is reference else [cut.run(hidden) for hidden in current]
            reference = beyond  # what entered the base's layer is not needed again, and is as large as the rest
            for number, site in enumerate(sites):
                last = number == len(sites) - 1
                name = site.bound.in_layer(position)
                goal = beyond if site.absorbs else after
                span = partial(through, span=dropped if site.absorbs else ())
                try:
                    repair, found = work.repair(cut, site, name, current, goal, span, last=last)
                except DataError as error:
                    raise DataError(f"layer {layer}, {site.name}: {error}") from None
                repairs.append(repair)
                if last:
                    current = found
            advance(1)
    return repairs


def check_windows(count: int, *, samples: str = "calibration_samples", off: str = "compensation='none'") -> None:
    """Check that there are enough calibration windows to hold any out.

    Args:
        count: How many there are.
        samples: The setting that says how many.
        off: The setting that does without them.

    Raises:
        DataError: There are fewer than `FOLDS`.
    """
    if count < FOLDS:
        raise DataError(
            f"compensation needs at least {FOLDS} calibration windows, not {count}; raise {samples}, or "
            f"leave it out with {off}"
        )


def make_folds(count: int, kinds: torch.Tensor | None) -> list[torch.Tensor]:
    """Return the windows' indices in parts that are held out in turn.

    Args:
        count: Number of windows.
        kinds: The source of each window, or None. More sources than `FOLDS` share a fold.
    """
    several = kinds is not None and bool((kinds != kinds[0]).any())
    number = kinds % FOLDS if kinds is not None and several else torch.arange(count) % FOLDS
    found = [(number == fold).nonzero().flatten() for fold in range(FOLDS)]
    return [rows for rows in found if len(rows)]


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
    """One projection.

    Args:
        bound: Its weight in the base.
        name: Its module's name within the layer.
        index: Input channels that stay; None when all do, or when the cut model's own layer is run.
        weight: The weight as it was cut, shape (out, in), in the model's dtype.
        bias: Its bias, or None.
        absorbs: Whether it stands in for dropped layers behind it.
    """

    bound: BoundTensor
    name: str
    index: torch.Tensor | None
    weight: torch.Tensor
    bias: torch.Tensor | None
    absorbs: bool

    def inputs(self, whole: torch.Tensor) -> torch.Tensor:
        """Return the channels that stay."""
        return whole if self.index is None else whole[..., self.index]

    def apply(self, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return what the projection puts out with a weight of the model's dtype."""
        return torch.nn.functional.linear(inputs, weight, self.bias)


def _site(whole: Any, part: Any, bound: BoundTensor, binding: Binding, keep: Any, absorbs: bool) -> _Site:
    assert bound.layer is not None
    name = bound.name.removesuffix(".weight").split(f".{bound.layer}.", 1)[1]
    projection = (whole if part is None else part).get_submodule(name)
    weight, index = projection.weight.detach(), None
    if part is None:
        index = axis_index(input_axis(bound), binding.sizes, keep)
        index = None if index is None else index.to(weight.device)
        weight = slice_tensor(weight, bound, binding.sizes, keep)
    weight = weight.T if bound.transposed else weight
    bias = None if projection.bias is None else projection.bias.detach()
    return _Site(bound, name, index, weight, bias, absorbs)


class _Layer:
    """A layer as the plan leaves it, with what was solved in it so far."""

    def __init__(self, whole: Any, part: Any, how: Mapping[int, Mapping[str, Any]]) -> None:
        self.whole = whole
        self.part = whole if part is None else part
        self.how = how
        self.solved: list[tuple[_Site, torch.Tensor]] = []

    def run(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the layer gives."""
        with ExitStack() as stack:
            for site, weight in self.solved:

                def instead(
                    _: Any, inputs: Any, __: Any, site: _Site = site, weight: torch.Tensor = weight
                ) -> torch.Tensor:
                    return site.apply(site.inputs(inputs[0]), weight)

                handle = self.part.get_submodule(site.name).register_forward_hook(instead)
                stack.callback(handle.remove)
            return run_layer(self.part, hidden, self.how[len(hidden)])


@dataclass
class _Work:
    """What stays the same from projection to projection: folds, where the weights go, and what was found out."""

    folds: Sequence[int]
    number_of_folds: int
    write: Callable[[str, torch.Tensor], None]
    rank: int | None

    def __post_init__(self) -> None:
        self._ridge: dict[str, float] = {}
        self._is_sum: dict[str, bool] = {}

    def _say_if_few(self, tokens: int, site: _Site) -> None:
        width = site.weight.shape[1]
        if tokens < width and site.name not in self._ridge:
            note(
                f"compensation: {tokens:,} calibration tokens are fewer than the {width:,} inputs of {site.name}, so "
                f"its ridge is at least {least_ridge(width, tokens):.2g}; more calibration_samples would tell more"
            )

    def repair(
        self,
        layer: _Layer,
        site: _Site,
        name: str,
        current: Sequence[torch.Tensor],
        goal: Sequence[torch.Tensor],
        span: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]],
        *,
        last: bool,
    ) -> tuple[Repair, list[torch.Tensor]]:
        """Solve one projection: gather its sums over all windows, choose the ridge, set the weight.

        Args:
            layer: The layer.
            site: The projection.
            name: Name of its weight in the new checkpoint.
            current: What enters the cut layer, one tensor a batch.
            goal: The base's residual stream where the cut layer has to arrive.
            span: Runs the base's layers that were dropped behind this one.
            last: Whether it is the last to solve in its layer.

        Returns:
            What became of it; and, when it is the last, what the repaired layer gives.
        """
        if site.name not in self._is_sum:
            self._is_sum[site.name] = stream_is_sum(layer.whole, site.name, current[0], layer.how)
        is_sum = self._is_sum[site.name]
        sums = [Moments.zeros(site.weight) for _ in range(self.number_of_folds)]
        inputs: list[torch.Tensor] = []
        beside: list[torch.Tensor] = []
        for fold, hidden, wanted in zip(self.folds, current, goal, strict=True):
            cut_inputs, own, rest, whole = _look(layer, site, hidden)
            target = own
            if is_sum:
                # Half of the target is what the whole layer (and what was dropped behind it) would make of this
                # input, half what brings the stream back to the base's: the first alone lets errors grow, the second
                # alone overfits.
                further = span([whole])[0].float() - whole.float() if site.absorbs else 0
                target = own + (further + wanted.float() - rest - own) / 2
            if site.bias is not None:
                target = target - site.bias.float()
            sums[fold].add(cut_inputs.flatten(0, -2), target.flatten(0, -2))
            if last and is_sum:
                inputs.append(cut_inputs)
                beside.append(rest.to(hidden.dtype))
        self._say_if_few(sum(moments.tokens for moments in sums), site)
        start = self._ridge.get(site.name)
        weight, ridge, error, new_error = choose_repair(sums, site.weight, start, self.rank)
        if ridge is not None:
            self._ridge[site.name] = ridge
            self.write(name, weight.T if site.bound.transposed else weight)
        layer.solved.append((site, weight.to(site.weight.dtype)))
        outputs: list[torch.Tensor] = []
        if last and is_sum:
            for rest in beside:
                made = site.apply(inputs.pop(0), layer.solved[-1][1])
                outputs.append(rest.copy_(rest.float() + made.float()))
        elif last:
            outputs = [layer.run(hidden) for hidden in current]
        return Repair(name, ridge, error, new_error), outputs


def _look(
    layer: _Layer, site: _Site, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what the cut projection reads, what the whole one gives, what else is in the stream, and the whole's.

    Args:
        layer: The layer.
        site: The projection.
        hidden: What enters the layer.

    Returns:
        Inputs of the cut projection, shape (batch, length, in); output of the whole projection, float32; what the
        layer gives without the projection, float32; what the whole layer gives.
    """
    if layer.part is layer.whole:
        with capture(layer.whole.get_submodule(site.name)) as seen:
            whole = layer.run(hidden)
        own = seen["output"].float()
        return site.inputs(seen["input"]), own, whole.float() - own, whole
    with capture(layer.whole.get_submodule(site.name)) as base:
        whole = run_layer(layer.whole, hidden, layer.how[len(hidden)])
    with capture(layer.part.get_submodule(site.name)) as cut:
        part = layer.run(hidden)
    return cut["input"], base["output"].float(), part.float() - cut["output"].float(), whole


def stream_is_sum(layer: Any, name: str, hidden: torch.Tensor, how: Mapping[int, Mapping[str, Any]]) -> bool:
    """Whether what a projection puts out is added to the residual stream as it is.

    It is not where a norm or a factor stands behind it; and for an attention, the MLP behind it answers to the change.
    Then the stream says nothing about the projection in closed form, and its own output is the whole target.

    Args:
        layer: A layer.
        name: The projection's name within it.
        hidden: What enters the layer, shape (batch, length, hidden).
        how: How it is called, by batch size.
    """
    kwargs = {key: first_row(value, len(hidden)) for key, value in how[len(hidden)].items()}
    projection = layer.get_submodule(name)
    with capture(projection) as seen:
        before = run_layer(layer, hidden[:1], kwargs)
    change = seen["output"].float().std() * torch.ones_like(seen["output"])
    handle = projection.register_forward_hook(lambda _, __, output: output + change.to(output.dtype))
    try:
        difference = run_layer(layer, hidden[:1], kwargs).float() - before.float()
    finally:
        handle.remove()
    return bool((difference - change.float()).norm() < 0.05 * change.float().norm())
