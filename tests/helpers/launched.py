"""What Python launches: the operations that reach torch's dispatcher, and those that make it wait for their result."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

WAITS = "aten._local_scalar_dense.default"
"""What `.item()`, `float()` and `if tensor` come to: on a GPU, a wait for all that was launched before."""


class Launched(TorchDispatchMode):
    """Counts operations, by name, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations[str(function)] += 1
        return function(*args, **(kwargs or {}))
