"""Proving the description that a family has already, for one config: where it is false, the axis that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..architectures.description import Description, describe
from ..architectures.expressions import Axis, evaluate, parse_axes
from ..architectures.model_class import bind_config
from ..architectures.slicing import axis_index
from ..errors import IShrinkError, RequestError, VerificationError
from .draft import Draft, draft_description
from .proof import CLAIMS, NOTHING_SMALLER, Proof, Subject, make_subject, prove
from .tiny_class import check_class, config_values
from .tiny_values import Tiny, make_tiny

_SMALL_ENOUGH = 20_000_000
"""Parameters of a model that is proved at its own size where its class cannot be made smaller."""


@dataclass(frozen=True)
class Check:
    """What became of a description's claims on a tiny random model.

    Args:
        model_type: The architecture.
        proofs: One for each dimension that it says can change, for all together, and for the cache.
        inexact: Dimensions whose cut is not the original with the removed units at zero, as the description says.
        notes: What the proof leaves out, as sentences.
    """

    model_type: str
    proofs: tuple[Proof, ...]
    inexact: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "model_type": self.model_type,
            "proofs": [proof.to_json() for proof in self.proofs],
            "inexact": list(self.inexact),
            "notes": list(self.notes),
        }


def check_description(raw: Mapping[str, Any]) -> Check:
    """Prove the description of a config's architecture, on a tiny random model with the config's flags.

    Args:
        raw: The contents of config.json.

    Returns:
        What was proved.

    Raises:
        ArchitectureError: The architecture has no description, or it does not account for every parameter.
        SourceError: The class refuses the config, or cannot be made tiny.
        VerificationError: It proves false; the message names the dimension, the largest difference and the axis.
    """
    model_type = check_class(raw)
    description = describe(model_type)
    bind_config({key: value for key, value in raw.items() if key != "quantization_config"})
    subject, tiny, notes = _small(description, raw)
    bound = subject.binding.description  # what holds for a config like this one
    proofs = prove(subject)
    tried = [proof for proof in proofs if proof.failure != NOTHING_SMALLER]
    notes += tuple(f"{proof.claim}: {proof.words}" for proof in proofs if proof.failure == NOTHING_SMALLER)
    inexact = tuple(key for key, entry in bound.dimensions.items() if entry.inexact and key in CLAIMS)
    false = [proof for proof in tried if not proof.holds and proof.claim not in inexact]
    if false:
        claims = "; ".join(f"{proof.claim}: {proof.words}" for proof in false)
        raise VerificationError(
            f"the {model_type} description proves false for this config: {claims}{_suspects(bound, raw, tiny)}"
        )
    return Check(model_type, tuple(tried), inexact, notes)


def _small(description: Description, raw: Mapping[str, Any]) -> tuple[Subject, Tiny | None, tuple[str, ...]]:
    """Return a tiny model of a config's class; the model itself where it is small already and no other can be made."""
    try:
        tiny = make_tiny(raw)
        values = {**tiny.values, **_other_vocabularies(tiny, config_values(raw))}
        return make_subject(description, values), tiny, tiny.notes
    except RequestError as error:
        if bind_config(raw)[1].num_parameters() > _SMALL_ENOUGH:
            raise
        note = f"the proof is on the model's own sizes, since others cannot be chosen freely: {error}"
        return make_subject(description, config_values(raw)), None, (note,)


def _other_vocabularies(tiny: Tiny, values: Mapping[str, Any]) -> dict[str, int]:
    """Return the further tables of tokens with as many rows as the vocabulary, as the config has them.

    A draft tells them apart by their sizes; whether the vocabulary can be cut rests on whether they are alike.
    """
    vocab = tiny.keys["vocab"]
    alike = [key for key in tiny.size_keys if "vocab" in key and values[key] == values[vocab]]
    rows: int = tiny.values[vocab]
    return dict.fromkeys(alike, rows)


def _suspects(description: Description, raw: Mapping[str, Any], tiny: Tiny | None) -> str:
    """Return the axes that a draft has otherwise, in words."""
    if tiny is None:
        return ""
    try:
        draft = draft_description(raw)
    except IShrinkError as error:
        return f"; no draft can be made to compare it with: {error}"
    found = list(_different_axes(description, draft, tiny))
    return f"; a draft differs in {'; '.join(found[:4])}" if found else "; a draft has the same axes"


def _different_axes(description: Description, draft: Draft, tiny: Tiny) -> Iterator[str]:
    other = draft.description
    try:
        sizes, others = _sizes(description, tiny), _sizes(other, tiny)
    except TypeError:  # a size that the config has as a list
        return
    for pattern, axes in description.tensors.items():
        for axis, (one, two) in enumerate(zip(axes, other.tensors.get(pattern, axes), strict=False)):
            if one != two and _positions(one, sizes) != _positions(two, others):
                yield f"axis {axis} of {pattern}: described as {in_words(one)}, drafted as {in_words(two)}"


def _sizes(description: Description, tiny: Tiny) -> dict[str, int]:
    return {name: evaluate(text, tiny.values.get) for name, text in description.sizes.items()}


def _positions(axis: Axis, sizes: Mapping[str, int]) -> list[Any]:
    """Return the positions of the first half of the units along an axis, for each kind of unit."""
    found: list[Any] = []
    for unit in ("heads", "kv", "ffn", "vocab"):
        index = axis_index(axis, sizes, {unit: range(sizes[unit] // 2)})
        found.append(index if index is None else torch.as_tensor(index).tolist())
    return found


def in_words(axis: Axis) -> str:
    """Return an axis in the language of descriptions.

    Args:
        axis: The axis.
    """
    sections = ["*".join(section.factors) for section in axis]
    text = sections[0] if len(sections) == 1 else f"[{'; '.join(sections)}]"
    assert parse_axes(text) == (axis,)
    return text
