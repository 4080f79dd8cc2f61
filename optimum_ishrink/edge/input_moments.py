"""What a model's matrices read on calibration text: the second moments of their inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from ..core.finite import ADVICE, kind_of
from ..errors import NotFiniteError

MOST_BYTES = 2 << 30
"""Moments that are held at a time. Where all take more, the text is read again for the next matrices."""


def input_moments(
    model: Any,
    windows: torch.Tensor,
    parameters: Mapping[str, str],
    *,
    averaged: Collection[str] = (),
    batch_size: int = 4,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the second moments of what matrices read, a group of matrices at a time.

    A tied embedding is read as the head. Matrices of another kind of module, such as fused experts, are left out: what
    they read differs from token to token.

    Args:
        model: A causal language model.
        windows: Token ids, int64, shape (windows, length).
        parameters: The parameter of each matrix, by any name for it.
        averaged: Names of the matrices whose outputs are averaged over positions, which values are: attention is a
            weighted mean of them, so that errors that differ from token to token cancel, and those that all tokens
            share do not. What counts is the mean of the inputs so far. That is attention with equal weights; it
            depends on no implementation of attention, and is far nearer than the inputs one by one.
        batch_size: Windows that are read at once.

    Yields:
        The mean over tokens of the outer product of the input with itself, float32, shape (in, in), by the given
        names. Matrices that read the same share a tensor.

    Raises:
        NotFiniteError: What a matrix reads is not finite, or its squares are not.
    """
    found = _readers(model, parameters)
    means = {module for module, names in found.items() if any(name in averaged for name in names)}
    for group in _groups(found):
        moments = _measure(model, windows, group, means, batch_size)
        yield {name: moment for module, moment in moments.items() for name in found[module]}


def _readers(model: Any, parameters: Mapping[str, str]) -> dict[torch.nn.Module, list[str]]:
    """Return the modules that read what their matrix multiplies, with the names of their matrices."""
    head = model.get_output_embeddings()
    found: dict[torch.nn.Module, list[str]] = {}
    for name, parameter in parameters.items():
        module = model.get_submodule(parameter.rpartition(".")[0])
        if isinstance(module, torch.nn.Embedding) and head is not None and head.weight is module.weight:
            module = head
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            found.setdefault(module, []).append(name)
    return found


def _groups(modules: Mapping[torch.nn.Module, Any]) -> list[list[torch.nn.Module]]:
    groups: list[list[torch.nn.Module]] = []
    nbytes = MOST_BYTES
    for module in modules:
        weight: Any = module.weight
        size = 4 * weight.shape[0 if isinstance(module, Conv1D) else 1] ** 2
        if nbytes + size > MOST_BYTES:
            groups.append([])
            nbytes = 0
        groups[-1].append(module)
        nbytes += size
    return groups


@torch.no_grad()
def _measure(
    model: Any,
    windows: torch.Tensor,
    modules: list[torch.nn.Module],
    means: Collection[torch.nn.Module],
    batch_size: int,
) -> dict[torch.nn.Module, torch.Tensor]:
    sums: dict[torch.nn.Module, torch.Tensor] = {}
    first: dict[torch.nn.Module, torch.nn.Module] = {}
    last: list[Any] = [None, None]

    def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        read = inputs[0].float()
        if module in means:
            read = read.cumsum(dim=-2) / torch.arange(1, read.shape[-2] + 1, device=read.device)[:, None]
        elif inputs[0] is last[0]:  # queries and keys read the same, one after the other
            first[module] = last[1]
            return
        else:
            last[:] = inputs[0], module
        rows = read.flatten(0, -2)
        sums[module] = sums.get(module, 0) + rows.T @ rows

    handles = [module.register_forward_pre_hook(add) for module in modules]
    try:
        for batch in torch.split(windows, batch_size):
            model(input_ids=batch.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if (kind := kind_of(*sums.values())) is not None:
        raise NotFiniteError(f"what matrices read on the calibration text is not finite ({kind}); {ADVICE}")
    for moment in sums.values():
        moment /= windows.numel()
    return {module: sums[first.get(module, module)] for module in modules if first.get(module, module) in sums}
