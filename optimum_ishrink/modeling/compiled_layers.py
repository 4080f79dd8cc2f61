"""Layers compiled by torch.compile, one graph for all that are alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import RequestError, one_line

_REMEDY = "leave out torch_compile"


def check_compiler(device: torch.device) -> None:
    """Compile one operation, so that a missing compiler is found before long work.

    Args:
        device: Where compiled layers will run.

    Raises:
        RequestError: It cannot be compiled.
    """
    try:
        # It is cached by its code; with a name of its own it is compiled here, not where a run did before.
        torch.compile(lambda values: values * 2 + 1)(torch.ones(2, device=device))
    except Exception as error:  # a compiler that is missing or broken raises whatever it likes
        raise RequestError(
            f"torch_compile cannot compile for {device} ({one_line(error)}); install a C++ compiler such as g++ (and "
            f"Triton for a GPU), or {_REMEDY}"
        ) from None


@contextmanager
def compiled_layers(model: Any, layers: Sequence[str]) -> Iterator[None]:
    """Let a model's layers run compiled, while the block runs.

    Only their forward passes are compiled: hooks on a layer run as ever, and layers that are alike share one graph,
    so that a deep model is compiled no longer than a shallow one. What is outside of the layers runs as it is, since
    the loss replaces the base's forward pass to compute the head in chunks.

    Args:
        model: The causal language model.
        layers: Names of the modules of its layers.

    Raises:
        RequestError: A layer cannot be compiled, or would be compiled anew for more shapes than torch remembers.
    """
    modules = [model.get_submodule(name) for name in layers]
    before = [module.__dict__.get("forward") for module in modules]
    # Otherwise torch goes on without compiling, and says so in a log alone.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for module in modules:
            module.forward = _compiled(module.forward)
        try:
            yield
        finally:
            for module, forward in zip(modules, before, strict=True):
                del module.forward
                if forward is not None:
                    module.forward = forward


def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    compiled = torch.compile(forward)

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return compiled(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise RequestError(f"a layer of this model cannot be compiled ({one_line(error)}); {_REMEDY}") from None

    return run
