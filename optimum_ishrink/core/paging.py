"""Models whose weights are in memory a layer or two at a time, as seen by the code that runs them.

Code that runs layers is the same for a model in memory and for one on disk. Where it reads a module's weights without
running it, it asks for them by `present`; where it holds hidden states of all windows, it holds them in what
`new_states` gives. Both do nothing for a model in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch

from .spool import InMemory, Spool, States, filled


class Pager(Protocol):
    """Brings the weights of a model's parts into memory, and takes them out again."""

    spool: Spool
    binding: Any
    """The model's binding."""

    def bring(self, part: int) -> None:
        """Read the weights of a part unless they are in memory."""

    def release(self) -> None:
        """Take all weights out of memory."""


_PAGERS: WeakKeyDictionary[Any, Pager] = WeakKeyDictionary()
_PARTS: WeakKeyDictionary[Any, tuple[Pager, int]] = WeakKeyDictionary()


def register(model: Any, pager: Pager, parts: Iterable[tuple[Any, int]]) -> None:
    """Say which pager a model and its modules have.

    Args:
        model: The model.
        pager: Its pager.
        parts: Modules, each with the number of the part that holds its weights.
    """
    _PAGERS[model] = pager
    for module, part in parts:
        _PARTS[module] = (pager, part)


def is_paged(model: Any) -> bool:
    """Whether a model's weights are read from disk when their turn comes."""
    return model in _PAGERS


def present(module: Any) -> Any:
    """Return a module of a layer once its weights are in memory.

    Args:
        module: The layer, or a module in it.
    """
    found = _PARTS.get(module)
    if found is not None:
        found[0].bring(found[1])
    return module


def release(model: Any) -> None:
    """Take the weights of a model that is on disk out of memory; another stage needs the room.

    Args:
        model: The model.
    """
    if model in _PAGERS:
        _PAGERS[model].release()


def spool_of(model: Any) -> Spool | None:
    """Return where a model that is on disk keeps its files; None for one in memory."""
    return _PAGERS[model].spool if model in _PAGERS else None


def binding_of(model: Any) -> Any:
    """Return the binding of a model that is on disk; None for one in memory."""
    return _PAGERS[model].binding if model in _PAGERS else None


def new_states(model: Any) -> States:
    """Return an empty sequence for hidden states: in memory, or in a file for a model that is on disk.

    Args:
        model: The model.
    """
    spool = spool_of(model)
    return InMemory() if spool is None else spool.states()


def kept(model: Any, tensors: Iterable[torch.Tensor]) -> States:
    """Return hidden states, each stored as soon as it is made.

    Args:
        model: The model.
        tensors: What makes them.
    """
    return filled(new_states(model), tensors)
