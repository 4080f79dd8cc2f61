"""The models of a recovery's teachers: loaded when they are first wanted, and only where they run."""

from __future__ import annotations

from typing import Any

import torch

from ..architectures.axes import layer_module
from ..checkpoint.session import Session
from ..checkpoint.source import Source
from ..core.finite import check_predictions
from .sharding import loading_device, share_layers, shares_weights


def layer_names(source: Source) -> tuple[str, ...]:
    """Return the names of the modules of a model's layers, in order.

    Args:
        source: The model.
    """
    return tuple(layer_module(source.binding, layer) for layer in range(source.binding.sizes["layers"]))


class TeacherModels:
    """Models that one process alone runs whole, before the training, or that all processes run in step, in it.

    Where processes share the weights of what they train, they share the layers of what runs in step as well, and that
    was never whole on any device. Else both are the same models.

    Args:
        session: Device and dtype, and the base.
        sources: The teachers; none where no teacher's weights are wanted.
        is_base: Whether the first is the session's own model.
    """

    def __init__(self, session: Session, sources: tuple[Source, ...], *, is_base: bool) -> None:
        self.session = session
        self.sources = sources
        self.is_base = is_base
        self._whole: dict[int, Any] = {}
        self._in_step: tuple[Any, ...] | None = None

    def whole(self, number: int = 0) -> Any:
        """Return a teacher that is whole on this process' device.

        Args:
            number: Which of them.
        """
        if number not in self._whole:
            base = number == 0 and self.is_base
            source = self.sources[number]
            self._whole[number] = self.session.model if base else self._load(source)
        return self._whole[number]

    def all_whole(self) -> tuple[Any, ...]:
        """Return all teachers, whole on this process' device."""
        return tuple(self.whole(number) for number in range(len(self.sources)))

    def in_step(self) -> tuple[Any, ...]:
        """Return all teachers for a training in which every process runs them on every batch."""
        if self._in_step is None:
            if shares_weights():
                self.release()  # who needs the base later needs it whole, and in one process alone
                self._in_step = tuple(self._share(source) for source in self.sources)
            else:
                self._in_step = self.all_whole()
        return self._in_step

    def release(self) -> None:
        """Let go of the models that are whole, the session's own among them: it is read again when it is needed."""
        if self.is_base:
            self.session.loaded = None
        self._whole.clear()

    def _load(self, source: Source) -> Any:
        return source.load_model(self.session.dtype, self.session.device)

    def _share(self, source: Source) -> Any:
        device = self.session.device
        model = source.load_model(self.session.dtype, loading_device(device))
        return share_layers(model, layer_names(source), device)

    def check(self, models: tuple[Any, ...], ids: torch.Tensor, text: str) -> None:
        """Check that teachers' predictions are finite.

        Args:
            models: The teachers' models.
            ids: A window of their text, shape (1, length).
            text: Name of the text.

        Raises:
            NotFiniteError: One gives NaN or infinite values.
        """
        for source, model in zip(self.sources, models, strict=True):
            check_predictions(model, ids, source.display_name, text)
