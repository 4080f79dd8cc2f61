"""Scores from weights alone: one tensor after another, no model in memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..architectures.axes import holds_units
from ..architectures.binding import Binding
from ..architectures.slicing import slice_tensor
from ..checkpoint.tensors import TensorInfo, read_tensor
from ..core.finite import kind_of
from ..core.progress import progress_bar
from ..errors import NotFiniteError
from .criterion import Criterion
from .units import check_finite, units_to_score


def score_weights(
    tensors: Mapping[str, TensorInfo],
    binding: Binding,
    criterion: Criterion,
    keys: tuple[str, ...],
    *,
    group_size: int | None = None,
) -> dict[str, torch.Tensor]:
    """Score with a criterion that needs only weights, reading one tensor at a time.

    Args:
        tensors: The checkpoint's tensors.
        binding: The model.
        criterion: A criterion with `needs="weights"`.
        keys: Dimensions to score.
        group_size: Consecutive neurons that are scored as one unit, each with an equal share of its score; None takes
            one.

    Returns:
        Config key to scores, float32: shape (layers,) for `num_hidden_layers`, (layers, units) for the others.

    Raises:
        DataError: A layer's weights are not finite.
        RequestError: The groups do not divide the neurons.
    """
    units = units_to_score(binding, criterion, keys, group_size)
    sums = units.zeros(torch.device("cpu"))
    inner = [bound for bound in binding.tensors.values() if bound.layer is not None]
    with progress_bar(f"{criterion.name} of the weights", len(inner)) as advance:
        for bound in inner:
            if any(holds_units(bound, key) for key in keys):
                units.add(sums, bound, criterion.function(read_tensor(tensors[bound.name])))
            advance(1)
    scores = units.scores({key: criterion.finish(total) for key, total in sums.items()})
    check_finite(scores, "; the weights contain NaN or inf")
    return scores


def key_value_similarity(tensors: Mapping[str, TensorInfo], binding: Binding) -> torch.Tensor:
    """Return the similarity of the KV heads of each layer: the cosine of their key and value projections.

    Args:
        tensors: The checkpoint's tensors.
        binding: The model.

    Returns:
        float32, shape (layers, heads, heads); zero in layers without attention.

    Raises:
        NotFiniteError: A projection holds NaN or inf.
    """
    heads = binding.sizes["kv"]
    rows: list[list[list[torch.Tensor]]] = [[[] for _ in range(heads)] for _ in range(binding.sizes["layers"])]
    similarity = torch.zeros(len(rows), heads, heads)
    with progress_bar("similarity of KV heads", len(rows)) as advance:
        for layer, features in enumerate(rows):
            for bound in binding.layer_tensors(layer):
                if bound.counts("kv"):
                    tensor = read_tensor(tensors[bound.name]).float()
                    for head in range(heads):
                        keep = {"kv": [head], "heads": []}  # of a packed projection only keys and values
                        features[head].append(slice_tensor(tensor, bound, binding.sizes, keep).flatten())
            advance(1)
    for layer, features in enumerate(rows):
        if (kind := kind_of(*(part for parts in features for part in parts))) is not None:
            raise NotFiniteError(f"the key and value projections of layer {layer} are not finite: they hold {kind}")
        if any(features):  # not every layer of a hybrid has attention
            unit = torch.nn.functional.normalize(torch.stack([torch.cat(parts) for parts in features]), dim=-1)
            similarity[layer] = unit @ unit.T
    return similarity
