"""The student with its loss: one forward pass that returns what one step minimises."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from ..errors import RequestError
from ..modeling.head import Head, chunked_sum
from .exits import exit_states, parts_called
from .loss import Term
from .observe import Observed, observe
from .targets import IGNORED, Targets
from .teacher import ChunkOfTeacher, LayerMap, Lesson, Teacher


def count_tokens(labels: torch.Tensor) -> torch.Tensor:
    """Return how many tokens a batch predicts: those with a label, and all.

    Args:
        labels: Shape (batch, length); the first token of a window is context only.

    Returns:
        float64, shape (2,).
    """
    predicted = labels[:, 1:]
    return torch.tensor([float((predicted != IGNORED).sum()), float(predicted.numel())], dtype=torch.float64)


class Student(torch.nn.Module):
    """A causal language model and a weighted sum of losses.

    It is what the trainer trains and what is wrapped for several processes, so that whatever a step computes runs
    inside the wrapper's forward pass.

    Args:
        model: The causal language model, prepared for training.
        terms: The losses.
        teacher: The teacher; None when no loss needs one.
        layer_map: Which of the teacher's layers each layer corresponds to; needed by losses that compare layers.
        temperature: Temperature of the distributions.
        jsd_beta: Share of the teacher in the mixture of the Jensen-Shannon divergence.
        skew: Share of a distribution itself in the mixture that skewed divergences compare it with.
        exits: Numbers of layers after which the head is trained, too, with the losses that read logits (LayerSkip,
            Elhoushi et al. 2024, arXiv:2404.16710, equation 3).
        exit_weight: Weight of all exits together beside the whole model, shared evenly among them.
        autocast: Dtype to compute in when the trained parameters are float32 and the rest is not; None for the
            parameters' own.
        chunk: Logits held at once; by default what the device allows.
    """

    def __init__(
        self,
        model: Any,
        terms: Sequence[Term],
        teacher: Teacher | None = None,
        layer_map: LayerMap | None = None,
        *,
        temperature: float = 1.0,
        jsd_beta: float = 0.5,
        skew: float = 0.1,
        exits: Sequence[int] = (),
        exit_weight: float = 1.0,
        autocast: torch.dtype | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.terms = tuple(terms)
        self.layer_map = layer_map
        self.temperature, self.jsd_beta, self.skew = temperature, jsd_beta, skew
        self.exits = tuple(exits)
        self.exit_weight = exit_weight
        self.autocast = autocast
        self.head = Head(model, chunk)
        # Not a submodule: it is neither trained nor saved nor wrapped.
        object.__setattr__(self, "_teacher", teacher)

    @property
    def names(self) -> tuple[str, ...]:
        """What `forward` returns, in order: the total, each term of the whole model, and each exit."""
        return ("loss", *(term.loss.name for term in self.terms), *(f"exit_{count}" for count in self.exits))

    @property
    def config(self) -> Any:
        """The model's config, where the trainer looks for it."""
        return self.model.config

    @property
    def _no_split_modules(self) -> Any:
        """The classes that fully sharded training wraps, where accelerate looks for them."""
        return self.model._no_split_modules

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, window: torch.Tensor, counts: torch.Tensor
    ) -> Any:
        """Return the weighted sum of the losses, each of them, and the loss at each early exit.

        Args:
            input_ids: Token ids, shape (batch, length).
            labels: The same with `IGNORED` where no label is wanted.
            window: Number of each window in the recovery text, shape (batch,).
            counts: What sums are divided by, from `count_tokens`, over all batches of the step.

        Returns:
            float32, as many as there are `names`: the total, which alone has a gradient, then each term's own value,
            then the weighted sum of those that read logits at each exit.
        """
        device = input_ids.device
        reads = {term.loss.reads for term in self.terms}
        computing = nullcontext() if self.autocast is None else torch.autocast(device.type, dtype=self.autocast)
        with computing:
            teacher: Teacher | None = self.__dict__["_teacher"]
            lesson = Lesson() if teacher is None else teacher.teach(input_ids, window)
            layers = "hidden_states" in reads or bool(self.exits)
            with parts_called(self.model, record=bool(self.exits)) as called:
                seen = observe(self.model, input_ids, layers=layers, values="values" in reads)
            scale = counts.to(device).float().clamp_min(1).reciprocal()
            sums = torch.zeros(len(self.names), device=device)
            if "logits" in reads:
                found = self._of_logits(seen.last, seen.output_class, lesson, input_ids, labels, scale)
                sums = sums + torch.nn.functional.pad(found, (0, len(self.exits)))
            for place, states in enumerate(exit_states(self.model, seen, called, self.exits)):
                value = self._of_logits(states, seen.output_class, lesson, input_ids, labels, scale)[0]
                sums = sums + self._at(0, value * self.exit_weight / len(self.exits))
                sums = sums + self._at(1 + len(self.terms) + place, value.detach())
        with torch.autocast(device.type, enabled=False):
            for place, term in enumerate(self.terms, start=1):
                if term.loss.reads != "logits":
                    value = self._of_layers(term, seen, lesson) * scale[1]
                    sums = sums + self._at(0, term.weight * value) + self._at(place, value.detach())
        return sums

    def _at(self, place: int, value: torch.Tensor) -> torch.Tensor:
        """Return a vector of `names` that is zero but for one place."""
        return torch.nn.functional.pad(value.reshape(1), (place, len(self.names) - 1 - place))

    def _of_logits(
        self,
        states: torch.Tensor,
        output_class: type,
        lesson: Lesson,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        scale: torch.Tensor,
    ) -> torch.Tensor:
        """Return the losses that read logits at what enters the head, and their weighted sum in front."""
        following = labels[:, 1:].flatten()
        within = None
        if lesson.shared is not None:
            within = input_ids[:, 1:].flatten().masked_fill(lesson.shared, IGNORED)

        taught = ChunkOfTeacher(lesson, len(following), self.head.rows)

        def of_chunk(logits: torch.Tensor, part: slice) -> torch.Tensor:
            missing = None if within is None else within[part]
            targets = Targets(following[part], taught(part), self.temperature, missing, self.jsd_beta, self.skew)
            total = torch.zeros((), device=logits.device)
            values = []
            with torch.autocast(logits.device.type, enabled=False):
                for term in self.terms:
                    if term.loss.reads == "logits":
                        value = term.loss.function(logits, targets).sum() * scale[0 if term.loss.labels else 1]
                        total = total + term.weight * value
                        values.append(value.detach())
                    else:
                        values.append(torch.zeros((), device=logits.device))
            return torch.stack([total, *values])

        return chunked_sum(
            states[:, :-1].flatten(0, 1),
            lambda rows: self.head(rows, output_class),
            of_chunk,
            rows=self.head.rows,
            head_trains=self.head.trains,
        )

    def _of_layers(self, term: Term, seen: Observed, lesson: Lesson) -> torch.Tensor:
        """Return a layer loss summed over the tokens that predict another, mean over layers."""
        assert self.layer_map is not None, "losses that compare layers come with a layer map"
        hidden = term.loss.reads == "hidden_states"
        ours, theirs = (seen.layers, lesson.layers) if hidden else (seen.values, lesson.values)
        places = self.layer_map.outputs if hidden else self.layer_map.attentions
        found = [(state, theirs[layer]) for state, layer in zip(ours, places, strict=True)]
        # Not every layer of a hybrid has attention.
        pairs = [(state, wanted) for state, wanted in found if state is not None and wanted is not None]
        if not pairs:
            raise RequestError(
                f"the loss {term.loss.name!r} compares attention, but no layer of the model with attention "
                "corresponds to one of the teacher's; name another teacher, or another loss"
            )
        total = torch.zeros((), device=seen.last.device)
        for state, wanted in pairs:
            wanted = wanted.to(state.device)
            if hidden:
                if state.shape[-1] != wanted.shape[-1]:
                    raise RequestError(
                        f"the loss {term.loss.name!r} compares hidden states, but the teacher's have "
                        f"{wanted.shape[-1]} entries and the model's {state.shape[-1]}; "
                        "name a teacher of the same width, or another loss"
                    )
                state, wanted = state[:, :-1], wanted[:, :-1]
            else:
                state, wanted = state[:, :, :-1], wanted[:, :, :-1]
            values = term.loss.function(state, wanted)
            if lesson.shared is not None:
                # Not a product: what is elsewhere is of another text, and may be anything.
                values = values.where(lesson.shared.view_as(values), 0.0)
            total = total + values.sum()
        return total / len(pairs)
