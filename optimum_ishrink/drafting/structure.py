"""What a running model shows of its layers: which projections belong to attention, and which way a weight lies."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..architectures.description import name_pattern
from .tiny_class import compute, token_ids


@dataclass(frozen=True)
class Structure:
    """What a model shows when it runs.

    Args:
        attention: Patterns of the tensors that belong to attention.
        inputs: Those of attention's projections that read the residual stream.
        outputs: Those of attention's projections that write to it: the last that run.
        transposed: Weights that store (in, out).
    """

    attention: frozenset[str]
    inputs: frozenset[str]
    outputs: frozenset[str]
    transposed: frozenset[str]


def read_structure(model: Any) -> Structure:
    """Run a tiny model once, and return what its modules are.

    Args:
        model: A random model.
    """
    modules = dict(model.named_modules())
    ran: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    def watch(name: str) -> Callable[..., None]:
        return lambda _module, args, output: ran.append((name, args[0], output))

    leaves = {name: module for name, module in modules.items() if _is_projection(module)}
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves.items()]
    try:
        compute(model, token_ids(model))
    finally:
        for handle in handles:
            handle.remove()
    attention, inputs, outputs, transposed = set(), set(), set(), set()
    for name, _ in model.named_parameters():
        if _attention_of(name, modules) is not None:
            attention.add(name_pattern(name))
    last: dict[str, str] = {}
    for name, given, output in ran:
        weight = f"{name}.weight"
        if not isinstance(leaves[name], nn.Linear) and _is_transposed(leaves[name], given, output):
            transposed.add(name_pattern(weight))
        parent = _attention_of(weight, modules)
        if parent is not None:
            last[parent] = name
            inputs |= {name_pattern(f"{name}.{part}") for part, _ in leaves[name].named_parameters()}
    for name in last.values():
        outputs |= {name_pattern(f"{name}.{part}") for part, _ in leaves[name].named_parameters()}
    return Structure(frozenset(attention), frozenset(inputs - outputs), frozenset(outputs), frozenset(transposed))


def _is_projection(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def _attention_of(name: str, modules: dict[str, nn.Module]) -> str | None:
    """Return the module of the class that a layer's attention is, to which a parameter belongs, or None."""
    parts = name.split(".")[:-1]
    for length in range(len(parts), 0, -1):
        parent = ".".join(parts[:length])
        if parent in modules and re.search(r"attention|attn", type(modules[parent]).__name__, re.IGNORECASE):
            return parent
    return None


def _is_transposed(module: nn.Module, given: torch.Tensor, output: torch.Tensor) -> bool:
    """Whether a weight stores (in, out): the module computes the product that way."""
    weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
    if weight.shape[0] != given.shape[-1] or weight.shape[1] != output.shape[-1]:
        return False
    with torch.no_grad():
        found = given @ weight + (0 if bias is None else bias)
    return bool(torch.allclose(found, output, atol=1e-4))


@contextmanager
def changed_parameters(model: Any, edits: dict[str, torch.Tensor]) -> Iterator[None]:
    """Give a model other values of some parameters while the block runs.

    Args:
        model: The model.
        edits: Name of a parameter to its values.
    """
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in edits}
    try:
        with torch.no_grad():
            for name, value in edits.items():
                parameters[name].copy_(value)
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                parameters[name].copy_(value)


def input_of(model: Any, module: str, ids: torch.Tensor) -> torch.Tensor:
    """Return what a module reads when the model computes, shape (texts, tokens, channels).

    Args:
        model: The model.
        module: Name of the module.
        ids: Tokens.
    """
    found: list[torch.Tensor] = []
    handle = model.get_submodule(module).register_forward_pre_hook(lambda _module, args: found.append(args[0]))
    try:
        compute(model, ids)
    finally:
        handle.remove()
    return found[0]
