"""How far masked predictions are from the whole model's, whose logits are computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..core.finite import kind_of, not_finite
from ..errors import NotFiniteError
from ..evaluation.text_quality import name_measurements
from ..evaluation.text_statistics import TextQuality, compare_logits, mean_over_windows, perplexity
from ..report.measurement import Measurement
from .masking import Mask, together

LOGITS_LIMIT = 2**30
"""Bytes of the whole model's logits that are held: 1 GiB, five times what eight windows of 256 tokens need with a
vocabulary of 49k in bfloat16. Beyond it they are computed again for every measurement, which doubles its time."""

Advance = Callable[[int], None]


class Reference:
    """The whole model's predictions on the windows that are measured on.

    They are held in main memory and in the dtype in which the model computes them, so that nothing is rounded.

    Args:
        model: The model, with nothing masked.
        windows: Token ids, shape (windows, length).
        limit: Bytes of logits to keep; more are computed again whenever they are needed.
    """

    def __init__(self, model: Any, windows: torch.Tensor, limit: int = LOGITS_LIMIT) -> None:
        self.model = model
        self.windows = windows
        self._limit = limit
        self._kept: dict[int, torch.Tensor] = {}

    def ids(self, index: int) -> torch.Tensor:
        """Return a window as a batch of one, on the model's device."""
        return self.windows[index : index + 1].to(self.model.device)

    def logits(self, index: int) -> torch.Tensor:
        """Return the logits of a window's predicted tokens, shape (length - 1, vocabulary), on the model's device.

        Args:
            index: Index of the window. Nothing may be masked when it is requested for the first time.
        """
        if index not in self._kept:
            logits = predict(self.model, self.ids(index))
            if logits.nbytes * len(self.windows) > self._limit:
                return logits
            self._kept[index] = logits.cpu()
        return self._kept[index].to(self.model.device)


@torch.no_grad()
def predict(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of the predicted tokens of one window, shape (length - 1, vocabulary).

    Args:
        model: The model.
        ids: Token ids, shape (1, length).
    """
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return logits


def measure_masked(
    reference: Reference,
    masks: Callable[[int], Sequence[Mask]],
    label: str,
    *,
    metrics: Sequence[str] = ("perplexity", "kl_divergence", "top1_agreement"),
    whole: bool = False,
    advance: Advance = lambda steps: None,
) -> tuple[Measurement, ...]:
    """Measure the model under masks against itself without them.

    Args:
        reference: The whole model's predictions.
        masks: Index of a window to what is masked in it.
        label: Name of the text.
        metrics: Which figures are wanted.
        whole: Whether nothing is masked: then the reference is compared with itself and nothing runs.
        advance: Called with 1 after each window.

    Returns:
        The figures, with standard errors over windows.

    Raises:
        NotFiniteError: The logits are not finite.
    """
    columns: dict[str, list[torch.Tensor]] = {}
    for index in range(len(reference.windows)):
        base = reference.logits(index)
        ids = reference.ids(index)
        logits = base
        if not whole:
            with together(masks(index)):
                logits = predict(reference.model, ids)
        for name, values in compare_logits(logits, base, ids[0, 1:]).items():
            columns.setdefault(name, []).append(values)
        advance(1)
    statistics = {name: torch.stack(values) for name, values in columns.items()}
    if (kind := kind_of(*statistics.values())) is not None:
        for index in range(len(reference.windows)):
            if (error := not_finite(reference.model, reference.ids(index), "the model", label)) is not None:
                raise error
        raise NotFiniteError(
            f"the predictions on {label} are not finite ({kind}) with a part of the model at zero; try dtype='float32'"
        )
    found = TextQuality(
        perplexity(statistics["nll"]), mean_over_windows(statistics["kl"]), mean_over_windows(statistics["agree"])
    )
    return tuple(each for each in name_measurements(found, label, {}) if each.metric in metrics)
