"""The proof of a description: on a tiny random model, the cut equals the original with the removed units at zero.

It does what a cut does, with the same functions for slicing and for the config, and loads the result in plain
transformers. Nothing of it depends on what drafted the description.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from ..architectures.binding import Binding
from ..architectures.config_edit import edit_config
from ..architectures.description import EXPERTS, GROUPS, LAYERS, NEURONS, ROWS, Description, registered
from ..architectures.model_class import parse_config, stored_state
from ..architectures.slicing import is_dropped, new_name, slice_tensor
from ..checkpoint.source import Source, source_of_config
from ..core.key_value_cache import cache_name, keeps_cache
from ..errors import RequestError, ShapeError
from ..report.plan import Plan
from ..surgery.units import retained_units
from ..surgery.zeroing import masked_state, unrouted
from .random_plan import random_plan
from .tiny_class import compute, random_model, token_ids

HEADS = "num_attention_heads"

DRAFTED = (LAYERS, GROUPS, HEADS, NEURONS, ROWS)
"""The dimensions that a draft has, by config key."""

CLAIMS = (LAYERS, GROUPS, HEADS, NEURONS, EXPERTS, ROWS)
"""The dimensions that can be proved here, by config key."""

TOLERANCE = 1e-5
"""Largest difference of two logits of equal models in float32, as a share of the largest logit."""

CACHE_TOLERANCE = 1e-4
"""The same with the cache: a state that is read in chunks and one that goes from token to token round differently."""

NOTHING_SMALLER = "no smaller value can be written to the config"
"""Why a dimension that a rule refuses to change, or that is 1, cannot be tried."""

_SEED = 3
_SPECIAL = 3
"""Rows of the vocabulary that stay, so that ids of special tokens are inside it."""

TOGETHER, CACHE = "all dimensions together", "generation with the cache"


@dataclass(frozen=True)
class Proof:
    """What became of one claim.

    Args:
        claim: The dimension's config key, or `TOGETHER`, or `CACHE`.
        difference: Largest difference of the logits, as a share of the largest; None if the cut cannot be loaded.
        effect: How far the cut is from the original in the same unit: a proof whose cut changes nothing is none.
        failure: Why the cut cannot be written or loaded, or None.
    """

    claim: str
    difference: float | None
    effect: float | None = None
    failure: str | None = None

    @property
    def holds(self) -> bool:
        """Whether the cut is the original with the removed units at zero, and not the original itself."""
        changes = self.effect is None or self.effect > TOLERANCE
        return self._equal and changes

    @property
    def _equal(self) -> bool:
        tolerance = CACHE_TOLERANCE if self.claim == CACHE else TOLERANCE
        return self.failure is None and self.difference is not None and self.difference <= tolerance

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {
            "claim": self.claim,
            "holds": self.holds,
            "difference": self.difference,
            "effect": self.effect,
            "failure": self.failure,
        }

    @property
    def words(self) -> str:
        """The outcome in words."""
        if self.failure is not None:
            return self.failure
        if self._equal and not self.holds:
            return "what is removed changes nothing, so that nothing is proved"
        return f"largest difference {self.difference:.1e} of the largest logit"


@dataclass(frozen=True)
class Subject:
    """A tiny model to prove a description on.

    Args:
        source: Its config, with the description bound to it.
        model: The random model.
    """

    source: Source
    model: Any

    @property
    def raw(self) -> Mapping[str, Any]:
        """Its config.json."""
        return self.source.raw_config

    @property
    def binding(self) -> Binding:
        """The description, bound to it."""
        return self.source.binding


def make_subject(description: Description, values: Mapping[str, Any]) -> Subject:
    """Return a tiny random model, with the description bound to it.

    Args:
        description: The description.
        values: Config values of a tiny model.

    Raises:
        ArchitectureError: The description does not account for every parameter.
        SourceError: The class cannot be built or cannot compute with these values.
    """
    with registered(description):
        source = source_of_config({**values, "model_type": description.model_type})
        source.binding  # noqa: B018  bound here and now, while this description is the registered one
    return Subject(source, random_model(values, description.model_type))


def prove(subject: Subject, claims: Sequence[str] | None = None) -> list[Proof]:
    """Prove every dimension that a description says can change, one at a time and together, and the cache.

    Args:
        subject: The tiny model.
        claims: The dimensions to prove, by config key; all that are not fixed when None.
    """
    binding = subject.binding
    dimensions = binding.description.dimensions
    open_ = [key for key in CLAIMS if key in binding.shape and not dimensions[key].fixed]
    if binding.sizes["heads"] == binding.sizes["kv"] and GROUPS in open_:
        open_ = [key for key in open_ if key != HEADS]  # a query head cannot go without its group
    chosen = open_ if claims is None else [key for key in open_ if key in claims]
    with registered(binding.description):  # a draft is not known yet
        found = [_prove_one(subject, key, _smaller(subject, (key,))) for key in chosen]
    if claims is None:
        found += prove_together(subject, [proof.claim for proof in found if proof.holds])
    return found


def _smaller(subject: Subject, keys: Sequence[str]) -> dict[str, int]:
    """Return a smaller shape that the config can express: about half of each dimension."""
    binding = subject.binding
    shape: dict[str, int] = {}
    for key in keys:
        whole = binding.shape[key]
        for value in sorted(range(1, whole), key=lambda value: abs(value - _wanted(key, whole))):
            if key == HEADS and value % shape.get(GROUPS, binding.sizes["kv"]):
                continue
            if key == ROWS and value < _SPECIAL:
                continue
            if binding.refusal({**shape, key: value}) is not None:
                continue
            if key == LAYERS and not _holds_layers(subject, {**shape, key: value}):
                continue
            shape[key] = value
            break
    return shape


def _holds_layers(subject: Subject, shape: Mapping[str, int]) -> bool:
    """Whether the config can hold the layers that are chosen of a depth."""
    try:
        random_plan(subject.source, shape, _SEED)
    except ShapeError:
        return False
    return True


def _wanted(key: str, whole: int) -> int:
    # An odd number of neurons, which no multiple that a class derives can hit by chance.
    wanted = {LAYERS: max(whole - 2, 1), NEURONS: whole // 2 | 1, EXPERTS: whole - whole // 4, ROWS: whole - 23}
    return wanted.get(key, whole // 2)


def prove_together(subject: Subject, keys: Sequence[str]) -> list[Proof]:
    """Prove several dimensions at once, and the cache of the cut.

    Args:
        subject: The tiny model.
        keys: Config keys of dimensions.
    """
    if not keys:
        return []
    found: list[Any] = []
    with registered(subject.binding.description):
        together = _prove_one(subject, TOGETHER, _smaller(subject, keys), found.append)
    if not found or not keeps_cache(found[0][0]):
        return [together]
    return [together, _prove_cache(*found[0])]


def _prove_one(subject: Subject, claim: str, shape: Mapping[str, int], on_cut: Any = None) -> Proof:
    if not shape:
        return Proof(claim, None, failure=NOTHING_SMALLER)
    try:
        plan = random_plan(subject.source, shape, _SEED)
        rows = _rows(subject, shape)
        cut = _load(subject, _cut(subject, plan, rows), _edited(subject, plan))
        masked = _load(subject, masked_state(subject.binding, plan, stored_state(subject.model)), subject.raw)
        ids, new_ids = _tokens(subject, rows)
        kept = torch.as_tensor(rows)
        with unrouted(masked, plan):
            expected = compute(masked, ids)[..., kept]
        found, original = compute(cut, new_ids), compute(subject.model, ids)[..., kept]
    except RequestError as error:
        return Proof(claim, None, failure=str(error))
    except Exception as error:  # whatever a modelling file does with a shape that it was not written for
        return Proof(claim, None, failure=_reason(error))
    if on_cut is not None:
        on_cut((cut, new_ids))
    scale = float(torch.maximum(expected.abs(), found.abs()).max())
    if not 0 < scale < float("inf"):
        return Proof(claim, None, failure="the logits are zero, NaN or infinite")
    difference = float((found - expected).abs().max()) / scale
    # Of the rows that stay, the logits are those of the original.
    effect = None if [*shape] == [ROWS] else float((original - found).abs().max()) / scale
    return Proof(claim, difference, effect)


def _edited(subject: Subject, plan: Plan) -> dict[str, Any]:
    return edit_config(subject.raw, subject.model.config, subject.binding, plan.new_shape, plan.layers)


def _reason(error: Exception) -> str:
    return " ".join(f"the class cannot compute with it: {type(error).__name__}: {error}".split())


def _prove_cache(cut: Any, ids: torch.Tensor) -> Proof:
    try:
        return Proof(CACHE, _cache_difference(cut, ids))
    except Exception as error:  # as above
        return Proof(CACHE, None, failure=_reason(error))


def _cache_difference(model: Any, ids: torch.Tensor) -> float:
    whole, name = compute(model, ids), cache_name(model)
    # As generation does it: a cache of layers of several kinds cannot always say how many tokens were read.
    positioned = "position_ids" in inspect.signature(model.forward).parameters
    parts, cache = [], None
    with torch.no_grad():
        for start, end in pairwise([0, *range(5, ids.shape[1] + 1)]):
            given: dict[str, Any] = {} if cache is None else {name: cache}
            if positioned:
                given["position_ids"] = torch.arange(start, end).expand(len(ids), -1)
            step = model(ids[:, start:end], use_cache=True, **given)
            parts.append(step.logits)
            cache = step[name]
    return float((torch.cat(parts, dim=1).float() - whole).abs().max() / whole.abs().max())


def _rows(subject: Subject, shape: Mapping[str, int]) -> list[int]:
    """Choose at random which rows of the vocabulary stay. The first do: they are those of special tokens."""
    before, after = subject.binding.sizes["vocab"], subject.binding.resized(shape)["vocab"]
    order = torch.randperm(before - _SPECIAL, generator=torch.Generator().manual_seed(_SEED)) + _SPECIAL
    return [*range(_SPECIAL), *sorted(order[: after - _SPECIAL].tolist())]


def _cut(subject: Subject, plan: Plan, rows: Sequence[int]) -> dict[str, torch.Tensor]:
    binding, state = subject.binding, stored_state(subject.model)
    position = {layer: i for i, layer in enumerate(plan.layers)}
    found = {}
    for bound in binding.tensors.values():
        if bound.layer is None:
            outer = {"vocab": rows, "layers": plan.layers}
            found[bound.name] = slice_tensor(state[bound.name], bound, binding.sizes, outer)
        elif bound.layer in position:
            retained = retained_units(binding, plan, position[bound.layer])
            if not is_dropped(bound, retained):
                name = new_name(bound, position[bound.layer], retained)
                found[name] = slice_tensor(state[bound.name], bound, binding.sizes, retained)
    return found


def _load(subject: Subject, state: Mapping[str, torch.Tensor], raw: Mapping[str, Any]) -> Any:
    """Load tensors by their names and in their layout on disk, as `from_pretrained` does from a folder."""
    model, info = type(subject.model).from_pretrained(
        None,
        config=parse_config(raw),
        state_dict={name: tensor.detach().clone().contiguous() for name, tensor in state.items()},
        dtype=torch.float32,
        output_loading_info=True,
    )
    wrong = [name for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[key]]
    if wrong:
        names = ", ".join(str(name) for name in wrong[:3])
        raise RequestError(f"the class expects other tensors than the cut has: {names}")
    return model.eval()


def _tokens(subject: Subject, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random tokens that the cut has, and their numbers there."""
    places = token_ids(subject.model) % len(rows)
    return torch.as_tensor(rows)[places], places
