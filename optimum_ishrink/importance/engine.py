"""The engine: it runs calibration batches once and gives every criterion what it needs.

Criteria are pure functions; this file knows models, hooks and batches, and no criterion by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..architectures import DIMENSIONS, Binding, BoundTensor
from ..architectures.axes import input_axis, input_readers, layer_module
from ..errors import DataError, RequestError
from ..progress import progress_bar
from ..surgery.slicing import slice_tensor, sum_per_unit
from ..tensor_files import TensorInfo, read_tensor
from .registry import Criterion

UNITS = ("num_key_value_heads", "intermediate_size")
LAYERS = "num_hidden_layers"


@dataclass
class _Totals:
    """Running sums of scores, float32, and how many terms went in."""

    sums: dict[str, torch.Tensor]
    terms: int = 0

    def result(self) -> dict[str, torch.Tensor]:
        return {key: value.cpu() / max(self.terms, 1) for key, value in self.sums.items()}


def score_weights(
    tensors: Mapping[str, TensorInfo], binding: Binding, criterion: Criterion, keys: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    """Score by a criterion that needs only weights, reading one tensor at a time.

    Args:
        tensors: The checkpoint's tensors.
        binding: The model.
        criterion: A criterion with `needs="weights"`.
        keys: Dimensions to score.

    Returns:
        Config key to scores, float32: shape (layers,) for `num_hidden_layers`, (layers, units) for the others.
    """
    scores = _empty(binding, keys, torch.device("cpu"))
    inner = [bound for bound in binding.tensors.values() if bound.layer is not None]
    with progress_bar(f"{criterion.name} of the weights", len(inner)) as advance:
        for bound in inner:
            wanted = [key for key in keys if key == LAYERS or bound.counts(DIMENSIONS[key])]
            if wanted or _reads_heads(bound, keys):
                _add(scores, bound, binding, criterion.function(read_tensor(tensors[bound.name])), keys)
            advance(1)
    return scores


def _reads_heads(bound: BoundTensor, keys: tuple[str, ...]) -> bool:
    return "num_key_value_heads" in keys and bound.counts("heads")


def key_value_similarity(tensors: Mapping[str, TensorInfo], binding: Binding) -> torch.Tensor:
    """Return how alike the KV heads of each layer are: the cosine of their key and value projections.

    Args:
        tensors: The checkpoint's tensors.
        binding: The model.

    Returns:
        float32, shape (layers, heads, heads).
    """
    heads = binding.sizes["kv"]
    rows: list[list[list[torch.Tensor]]] = [[[] for _ in range(heads)] for _ in range(binding.sizes["layers"])]
    with progress_bar("similarity of KV heads", len(rows)) as advance:
        for layer, features in enumerate(rows):
            for bound in binding.layer_tensors(layer):
                if bound.counts("kv"):
                    tensor = read_tensor(tensors[bound.name]).float()
                    for head in range(heads):
                        keep = {"kv": [head], "heads": []}  # of a packed projection, the keys and values alone
                        features[head].append(slice_tensor(tensor, bound, binding.sizes, keep).flatten())
            advance(1)
    stacked = torch.stack([torch.stack([torch.cat(parts) for parts in features]) for features in rows])
    unit = torch.nn.functional.normalize(stacked, dim=-1)
    return unit @ unit.transpose(1, 2)


def _empty(binding: Binding, keys: tuple[str, ...], device: torch.device) -> dict[str, torch.Tensor]:
    layers = binding.sizes["layers"]
    return {
        key: torch.zeros((layers,) if key == LAYERS else (layers, _units(binding, key)), device=device) for key in keys
    }


def _units(binding: Binding, key: str) -> int:
    """Return the number of units in a layer; the neurons of experts are counted through."""
    experts = binding.sizes.get("experts", 1) if DIMENSIONS[key] == "ffn" else 1
    return binding.shape[key] * experts


def _add(
    scores: Mapping[str, torch.Tensor],
    bound: BoundTensor,
    binding: Binding,
    values: torch.Tensor,
    keys: tuple[str, ...],
) -> None:
    """Add one tensor's values to the scores of the units, or of the layer, that it belongs to."""
    assert bound.layer is not None
    for key in keys:
        if key == LAYERS:
            scores[key][bound.layer] += values.sum(dtype=torch.float32)
        else:
            scores[key][bound.layer] += sum_per_unit(values, bound, binding.sizes, DIMENSIONS[key])


def next_token_loss(logits: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of the next token, in float32, over the tokens that are not padding.

    Args:
        logits: Shape (batch, length, vocabulary).
        input_ids: Shape (batch, length).
        attention_mask: 1 for text and 0 for padding, shape (batch, length).
    """
    labels = input_ids[:, 1:].masked_fill((attention_mask[:, 1:] * attention_mask[:, :-1]) == 0, -100)
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


def score_model(
    model: Any,
    binding: Binding,
    windows: torch.Tensor,
    unit_criterion: Criterion | None,
    layer_criterion: Criterion | None,
    keys: tuple[str, ...],
    *,
    attention_mask: torch.Tensor | None = None,
    batch_size: int = 4,
) -> dict[str, torch.Tensor]:
    """Score a loaded model on calibration windows: one pass serves units and layers.

    Args:
        model: The model, in the dtype to compute in.
        binding: Its binding.
        windows: Token ids, shape (windows, length).
        unit_criterion: For KV groups and MLP neurons, or None.
        layer_criterion: For layers, or None.
        keys: Dimensions to score.
        attention_mask: 1 for text and 0 for padding, the shape of `windows`; None when nothing is padding.
        batch_size: Windows in a batch. Taylor takes one gradient per batch, so it is part of its definition; four
            keeps the logits of a vocabulary of 128k within a few GB.

    Returns:
        Config key to scores, float32 on the CPU, accumulated in float32 whatever the model's dtype.

    Raises:
        DataError: There are no windows, or the scores are not finite; the message names the layer.
        RequestError: A criterion needs what this engine does not give.
    """
    if not len(windows):
        raise DataError("no calibration windows")
    mask = torch.ones_like(windows) if attention_mask is None else attention_mask
    totals: list[_Totals] = []
    unit_keys = tuple(key for key in keys if key != LAYERS)
    gradients = any(c is not None and c.needs == "gradients" for c in (unit_criterion, layer_criterion))
    current: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        for criterion, wanted in ((unit_criterion, unit_keys), (layer_criterion, (LAYERS,) if LAYERS in keys else ())):
            if criterion is None or not wanted:
                continue
            if criterion.needs not in _WATCHERS:
                raise RequestError(f"{criterion.name!r} needs {criterion.needs}, which is not read from a model")
            total = _Totals(_empty(binding, wanted, model.device))
            totals.append(total)
            stack.enter_context(_WATCHERS[criterion.needs](model, binding, criterion, wanted, total, current))
        stack.enter_context(torch.enable_grad() if gradients else torch.no_grad())
        names = " and ".join(c.name for c in (unit_criterion, layer_criterion) if c is not None)
        with progress_bar(f"{names}", len(windows)) as advance:
            for start in range(0, len(windows), batch_size):
                batch = windows[start : start + batch_size].to(model.device)
                current["mask"] = mask[start : start + batch_size].to(model.device)
                if gradients:
                    output = model(input_ids=batch, attention_mask=current["mask"], use_cache=False)
                    next_token_loss(output.logits, batch, current["mask"]).backward()  # type: ignore[no-untyped-call]
                else:
                    model.base_model(input_ids=batch, attention_mask=current["mask"], use_cache=False)
                for total in totals:
                    total.terms += 1
                advance(len(batch))
    scores: dict[str, torch.Tensor] = {}
    for total in totals:
        scores.update(total.result())
    for key, values in scores.items():
        bad = (~values.isfinite()).reshape(len(values), -1).any(dim=1).nonzero().flatten().tolist()
        if bad:
            raise DataError(f"the importance of {key} is not finite in layer {bad[0]}; try dtype='float32'")
    return scores


Watcher = Callable[[Any, Binding, Criterion, tuple[str, ...], _Totals, dict[str, torch.Tensor]], Any]


@contextmanager
def _watch_gradients(
    model: Any,
    binding: Binding,
    criterion: Criterion,
    keys: tuple[str, ...],
    total: _Totals,
    current: dict[str, torch.Tensor],
) -> Iterator[None]:
    """Reduce every gradient to its units as soon as it is there, and free it: no second copy of the weights."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    handles = []
    for name, parameter in model.named_parameters():
        bound = binding.in_memory.get(name)
        parameter.requires_grad_(bound is not None and bound.layer is not None)
        if bound is not None and bound.layer is not None:

            def reduce(weight: torch.Tensor, bound: BoundTensor = bound) -> None:
                assert weight.grad is not None
                _add(total.sums, bound, binding, criterion.function(weight.detach(), weight.grad), keys)
                weight.grad = None

            handles.append(parameter.register_post_accumulate_grad_hook(reduce))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


@contextmanager
def _watch_activations(
    model: Any,
    binding: Binding,
    criterion: Criterion,
    keys: tuple[str, ...],
    total: _Totals,
    current: dict[str, torch.Tensor],
) -> Iterator[None]:
    """Sum the squares of what enters each projection; the criterion is applied once, at the end."""
    handles = []
    watched: list[tuple[BoundTensor, Any, torch.Tensor]] = []
    tokens = torch.zeros((), dtype=torch.float64)
    found = {bound.name: bound for key in keys for bound in input_readers(binding, key)}
    if "intermediate_size" in keys and binding.sizes.get("experts", 1) > 1:
        raise RequestError(f"{criterion.name!r} cannot see into experts; use importance='taylor' or 'magnitude'")
    for bound in found.values():
        module = model.get_submodule(bound.name.removesuffix(".weight"))
        sums = torch.zeros(module.weight.shape[0 if bound.transposed else 1], dtype=torch.float32, device=model.device)
        watched.append((bound, module, sums))

        def add(_: Any, inputs: tuple[torch.Tensor, ...], sums: torch.Tensor = sums) -> None:
            rows = inputs[0].flatten(0, -2)
            keep = current["mask"].flatten().bool()
            sums += (rows if bool(keep.all()) else rows[keep]).float().square().sum(dim=0)

        handles.append(module.register_forward_pre_hook(add))

    def count(*_: Any) -> None:
        tokens.add_(current["mask"].sum().cpu())

    handles.append(model.base_model.register_forward_pre_hook(count))
    try:
        yield
        for bound, module, sums in watched:
            weight = module.weight.detach()
            channels = criterion.function(sums / tokens.to(sums), weight.T if bound.transposed else weight)
            for key in keys:
                unit = DIMENSIONS[key]
                assert bound.layer is not None
                inputs_alone = replace(bound, axes=(input_axis(bound),))
                total.sums[key][bound.layer] += sum_per_unit(channels, inputs_alone, binding.sizes, unit)
        total.terms = 1  # already a mean over tokens
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _watch_hidden_states(
    model: Any,
    binding: Binding,
    criterion: Criterion,
    keys: tuple[str, ...],
    total: _Totals,
    current: dict[str, torch.Tensor],
) -> Iterator[None]:
    """Compare what enters each layer with what leaves it."""
    handles = []
    for layer in range(binding.sizes["layers"]):

        @torch.no_grad()  # beside a criterion that needs gradients, these values must not hold on to their graph
        def compare(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, layer: int = layer) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            mask = current["mask"].to(torch.float32)
            values = criterion.function(before, after) * mask
            total.sums[LAYERS][layer] += values.sum() / mask.sum()

        module = model.get_submodule(layer_module(binding, layer))
        handles.append(module.register_forward_hook(compare, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_WATCHERS: Mapping[str, Watcher] = {
    "gradients": _watch_gradients,
    "activations": _watch_activations,
    "hidden_states": _watch_hidden_states,
}
