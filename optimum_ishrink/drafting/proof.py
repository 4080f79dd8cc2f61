"""The proof of a description: on a tiny random model, the cut equals the original with the removed units at zero.

It does what a cut does, with the same functions for slicing and for the config, and loads the result in plain
transformers. Nothing of it depends on what drafted the description.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..architectures.binding import Binding
from ..architectures.config_edit import edit_config
from ..architectures.description import DIMENSIONS, GROUPS, LAYERS, NEURONS, ROWS, Description, registered
from ..architectures.model_class import bind_config, parse_config, stored_state
from ..architectures.slicing import Keep, slice_tensor, zero_removed
from ..core.key_value_cache import cache_name
from ..errors import RequestError
from .tiny_class import compute, random_model, token_ids

HEADS = "num_attention_heads"

CLAIMS = (LAYERS, GROUPS, HEADS, NEURONS, ROWS)
"""The dimensions that can be proved here, by config key."""

TOLERANCE = 1e-5
"""Largest difference of two logits of equal models in float32, as a share of the largest logit."""

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
        changes = self.effect is None or self.effect > TOLERANCE or self.claim == ROWS
        return self.failure is None and self.difference is not None and self.difference <= TOLERANCE and changes

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
        if self.difference is not None and self.difference <= TOLERANCE and not self.holds:
            return "what is removed changes nothing, so that nothing is proved"
        return f"largest difference {self.difference:.1e} of the largest logit"


@dataclass(frozen=True)
class Subject:
    """A tiny model to prove a description on.

    Args:
        binding: The description, bound to it.
        values: Its config values.
        model: The random model.
    """

    binding: Binding
    values: Mapping[str, Any]
    model: Any

    @property
    def raw(self) -> dict[str, Any]:
        """Its config.json."""
        return {**self.values, "model_type": self.binding.description.model_type}


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
        _, binding = bind_config({**values, "model_type": description.model_type})
    return Subject(binding, values, random_model(values, description.model_type))


def prove(subject: Subject, claims: Sequence[str] | None = None) -> list[Proof]:
    """Prove every dimension that a description says can change, one at a time and together, and the cache.

    Args:
        subject: The tiny model.
        claims: The dimensions to prove, by config key; all that are not fixed when None.
    """
    binding = subject.binding
    dimensions = binding.description.dimensions
    open_ = [key for key in DIMENSIONS if key in dimensions and not dimensions[key].fixed and key in CLAIMS]
    if binding.sizes["heads"] == binding.sizes["kv"] and GROUPS in open_:
        open_ = [key for key in open_ if key != HEADS]  # a query head cannot go without its group
    chosen = open_ if claims is None else [key for key in open_ if key in claims]
    found = [_prove_one(subject, key, _smaller(binding, (key,))) for key in chosen]
    if claims is None:
        found += prove_together(subject, [proof.claim for proof in found if proof.holds])
    return found


def _smaller(binding: Binding, keys: Sequence[str]) -> dict[str, int]:
    """Return a smaller shape that the config can express: about half of each dimension."""
    shape: dict[str, int] = {}
    for key in keys:
        whole = binding.shape[key]
        for value in sorted(range(1, whole), key=lambda value: abs(value - _wanted(key, whole))):
            if key == HEADS and value % shape.get(GROUPS, binding.sizes["kv"]):
                continue
            if binding.refusal({**shape, key: value}) is None:
                shape[key] = value
                break
    return shape


def _wanted(key: str, whole: int) -> int:
    # An odd number of neurons, which no multiple that a class derives can hit by chance.
    return {LAYERS: max(whole - 2, 1), NEURONS: whole // 2 | 1, ROWS: whole - 23}.get(key, whole // 2)


def prove_together(subject: Subject, keys: Sequence[str]) -> list[Proof]:
    """Prove several dimensions at once, and the cache of the cut.

    Args:
        subject: The tiny model.
        keys: Config keys of dimensions.
    """
    if not keys:
        return []
    found: list[Any] = []
    together = _prove_one(subject, TOGETHER, _smaller(subject.binding, keys), found.append)
    return [together] if not found else [together, _prove_cache(*found[0])]


def _prove_one(subject: Subject, claim: str, shape: Mapping[str, int], on_cut: Any = None) -> Proof:
    if not shape:
        return Proof(claim, None, failure="no smaller value can be written to the config")
    try:
        layers, keeps, rows = _choose(subject.binding, shape)
        with registered(subject.binding.description):
            cut = _load(subject, _cut(subject, layers, keeps, rows), _edited(subject, shape, layers))
        masked = _load(subject, _masked(subject, layers, keeps), subject.raw)
        ids, new_ids = _tokens(subject, rows)
        kept = torch.as_tensor(rows)
        found, expected, original = (
            compute(cut, new_ids),
            compute(masked, ids)[..., kept],
            compute(subject.model, ids)[..., kept],
        )
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
    return Proof(claim, difference, float((original - found).abs().max()) / scale)


def _reason(error: Exception) -> str:
    return " ".join(f"the class cannot compute with it: {type(error).__name__}: {error}".split())


def _prove_cache(cut: Any, ids: torch.Tensor) -> Proof:
    try:
        return Proof(CACHE, _cache_difference(cut, ids))
    except Exception as error:  # as above
        return Proof(CACHE, None, failure=_reason(error))


def _cache_difference(model: Any, ids: torch.Tensor) -> float:
    whole = compute(model, ids)
    with torch.no_grad():
        step, name = model(ids[:, :5], use_cache=True), cache_name(model)
        parts = [step.logits]
        for i in range(5, ids.shape[1]):
            step = model(ids[:, i : i + 1], use_cache=True, **{name: step[name]})
            parts.append(step.logits)
    return float((torch.cat(parts, dim=1).float() - whole).abs().max() / whole.abs().max())


def _choose(binding: Binding, shape: Mapping[str, int]) -> tuple[list[int], list[dict[str, list[int]]], list[int]]:
    """Choose at random what stays: the layers, the units of each, and the rows of the vocabulary."""
    generator = torch.Generator().manual_seed(3)

    def some(of: int, count: int) -> list[int]:
        return sorted(torch.randperm(of, generator=generator)[:count].tolist())

    sizes, new = binding.sizes, binding.resized(shape)
    layers = some(sizes["layers"], new["layers"])
    keeps: list[dict[str, list[int]]] = []
    for _ in layers:
        keep: dict[str, list[int]] = {}
        if new["kv"] != sizes["kv"]:
            keep["kv"] = some(sizes["kv"], new["kv"])
        if new["heads"] != sizes["heads"]:
            group = sizes["heads"] // sizes["kv"]
            groups = keep.get("kv", range(sizes["kv"]))
            keep["heads"] = [kv * group + i for kv in groups for i in some(group, new["heads"] // new["kv"])]
        if new["ffn"] != sizes["ffn"]:
            experts = range((sizes.get("experts") or 1) + (sizes.get("shared") or 0))
            keep["ffn"] = [expert * sizes["ffn"] + i for expert in experts for i in some(sizes["ffn"], new["ffn"])]
        keeps.append(keep)
    # The first rows stay: they are those of special tokens, which the config names.
    rows = [0, 1, 2, *(3 + i for i in some(sizes["vocab"] - 3, new["vocab"] - 3))] if "vocab" in sizes else []
    return layers, keeps, rows


def _edited(subject: Subject, shape: Mapping[str, int], layers: Sequence[int]) -> dict[str, Any]:
    return edit_config(subject.raw, subject.model.config, subject.binding, shape, layers)


def _cut(
    subject: Subject, layers: Sequence[int], keeps: Sequence[Keep], rows: Sequence[int]
) -> dict[str, torch.Tensor]:
    binding, found = subject.binding, {}
    position = {layer: i for i, layer in enumerate(layers)}
    outer: Keep = {"vocab": rows} if len(rows) != binding.sizes["vocab"] else {}
    for name, tensor in stored_state(subject.model).items():
        bound = binding.tensors[name]
        if bound.layer is None:
            found[name] = slice_tensor(tensor, bound, binding.sizes, outer)
        elif bound.layer in position:
            place = position[bound.layer]
            found[bound.in_layer(place)] = slice_tensor(tensor, bound, binding.sizes, keeps[place])
    return found


def _masked(subject: Subject, layers: Sequence[int], keeps: Sequence[Keep]) -> dict[str, torch.Tensor]:
    binding, found = subject.binding, {}
    position = {layer: i for i, layer in enumerate(layers)}
    for name, tensor in stored_state(subject.model).items():
        bound = binding.tensors[name]
        if bound.layer is None:
            found[name] = tensor
        elif bound.layer not in position:
            found[name] = torch.zeros_like(tensor)
        else:
            found[name] = zero_removed(tensor, bound, binding.sizes, keeps[position[bound.layer]])
    return found


def _load(subject: Subject, state: Mapping[str, torch.Tensor], raw: Mapping[str, Any]) -> Any:
    """Load tensors by their names and in their layout on disk, as `from_pretrained` does from a folder."""
    with registered(subject.binding.description):
        config = parse_config(raw)
    model, info = type(subject.model).from_pretrained(
        None,
        config=config,
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
