"""Drafting a description: what a class stores is observed at several sizes, put in words, and proved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ..architectures.description import DIMENSIONS, GROUPS, NEURONS, Description, registered
from ..architectures.model_class import bind_config
from ..errors import IShrinkError
from .assembling import assemble, find_rules, fixed_dimensions, flag_rules
from .axes_choice import Axes, Open, choose_axes, unproved_orders
from .heads_layout import shows_heads
from .observing import Observed, observe
from .proof import HEADS, Proof, make_subject, prove, prove_together
from .sizes import find_sizes
from .structure import Structure, read_structure
from .tiny_class import check_class, random_model
from .tiny_values import make_tiny

_PLACE = Path("the draft")
"""Where a description lies that no file holds, for messages."""


@dataclass(frozen=True)
class Draft:
    """A drafted description.

    Args:
        data: The description, as the JSON object of its file.
        proofs: What was proved of it on a tiny random model, dimension by dimension and together.
        unknown: What could not be told or does not hold, as sentences.
        notes: What the proof leaves out, as sentences.
    """

    data: Mapping[str, Any]
    proofs: tuple[Proof, ...]
    unknown: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def model_type(self) -> str:
        """The architecture."""
        return str(self.data["model_type"])

    @property
    def description(self) -> Description:
        """The description."""
        return Description.from_json(_PLACE, self.data)

    def to_json(self) -> dict[str, Any]:
        """Return the draft as a JSON object; its file holds `description` alone."""
        return {
            "description": dict(self.data),
            "proofs": [proof.to_json() for proof in self.proofs],
            "unknown": list(self.unknown),
            "notes": list(self.notes),
        }


def draft_description(raw: Mapping[str, Any]) -> Draft:
    """Draft the description of a config's architecture. No weights are read.

    The class is built on the meta device at a tiny size, then with one config key after another changed, so that the
    way in which its axes move says what they count. A dimension whose cut on a tiny random model is not the original
    with the removed units at zero is written as fixed or inexact, with what was measured.

    Args:
        raw: The contents of config.json.

    Returns:
        The draft.

    Raises:
        ArchitectureError: transformers holds no causal class for it, it needs remote code, or it combines models.
        SourceError: The class refuses the config, or cannot be made tiny; the message names the key.
    """
    model_type = check_class(raw)
    tiny = make_tiny(raw)
    observed = observe(tiny, raw)
    model = random_model(tiny.values, model_type)
    structure = read_structure(model)
    sizes = find_sizes(observed, structure)
    axes = choose_axes(observed, sizes, structure)
    unknown = list(axes.unknown)
    axes = _lay_out_heads(model, axes, structure, observed, unknown)
    fixed = fixed_dimensions(tiny, axes, sizes)
    rules = find_rules(tiny, sizes, heads=HEADS not in fixed) + flag_rules(observed, sizes)

    def described(some: Axes, reasons: Mapping[str, str]) -> dict[str, Any]:
        return {**assemble(tiny, some, sizes, structure, reasons), "rules": rules}

    def proofs_of(data: Mapping[str, Any], claims: Sequence[str] | None = None) -> list[Proof]:
        return prove(make_subject(Description.from_json(_PLACE, data), tiny.values), claims)

    axes = _lay_out_neurons(axes, lambda some: proofs_of(described(some, fixed), (NEURONS,)))
    data = described(axes, fixed)
    proofs = proofs_of(data)
    for proof in proofs:
        if not proof.holds and proof.claim in data["dimensions"]:
            data["dimensions"][proof.claim] = _not_proved(proof, data["dimensions"][proof.claim], axes)
        if not proof.holds:
            unknown.append(f"{proof.claim} does not hold: {proof.words}")
    if "fixed" in data["dimensions"][HEADS]:  # a rule for heads that cannot change says nothing
        data["rules"] = [rule for rule in rules if tiny.keys["heads"] not in rule["require"]]
    unknown += _with_flags(observed, data)
    return Draft(
        _at_full_size(data, raw, axes, unknown), tuple(proofs), tuple(unknown), (*tiny.notes, *unproved_orders(axes))
    )


def _not_proved(proof: Proof, claimed: Mapping[str, Any], axes: Axes) -> dict[str, Any]:
    """Return a dimension whose cut is not the original with the removed units at zero."""
    unit = DIMENSIONS[proof.claim]
    units = ("heads", "kv") if proof.claim in (GROUPS, HEADS) else (unit,)
    norms = sorted(
        pattern.split("*.", 1)[-1]
        for pattern, texts in axes.tensors.items()
        if "norm" in pattern and len(texts) == 1 and {*texts[0].split("*")} & {*units}
    )
    if proof.failure is None and norms:
        return {
            **claimed,
            "inexact": f"{' and '.join(norms)} span{'s' if len(norms) == 1 else ''} all of them, so what a norm "
            f"divides by changes with their number ({proof.words} on a tiny random model)",
        }
    return {"fixed": f"not proved: {proof.words}"}


def _lay_out_heads(model: Any, axes: Axes, structure: Structure, observed: Observed, unknown: list[str]) -> Axes:
    """Choose the layout of projections that are fused over heads, by what the running model shows."""
    (sizes,) = observed.sizes({k: v for k, v in axes.sizes.items() if k != "layers"})[:1]
    for group in axes.open:
        if not any("heads" in layout.text or "kv" in layout.text for layout in group[0][2]):
            continue
        names = {name for name, _ in model.named_parameters()}
        parent = group[0][0].rpartition(".")[0].rpartition(".")[0]
        outputs = [p for p in structure.outputs if p.endswith(".weight") and p.startswith(f"{parent}.")]
        layer = _first_layer(group[0][0], model)
        if not outputs or layer is None:
            continue
        output = outputs[0].replace("*", layer).removesuffix(".weight")
        for choice in range(len(group[0][2])):
            some = axes.with_layout(group, choice)
            values = {**sizes, **_values(some, observed)}
            parts = {
                name: (axis, found[choice].text)
                for pattern, axis, found in group
                if (name := pattern.replace("*", layer)) in names  # a flag may add a bias, which is alike
            }
            if shows_heads(model, parts, output, values):
                axes = some
                break
        else:
            unknown.append(
                f"axis {group[0][1]} of {group[0][0]}: which rows belong to which head; written as "
                f"{group[0][2][0].text}, which the running model does not confirm"
            )
    return axes


def _values(axes: Axes, observed: Observed) -> dict[str, int]:
    return observed.sizes({k: v for k, v in axes.sizes.items() if k != "layers"})[0]


def _first_layer(pattern: str, model: Any) -> str | None:
    names = {name for name, _ in model.named_parameters()}
    return next((str(i) for i in range(64) if pattern.replace("*", str(i)) in names), None)


def _lay_out_neurons(axes: Axes, prove_neurons: Any) -> Axes:
    """Choose the layout of projections that are fused over neurons: the first with which the cut is proved."""
    groups: list[Open] = [
        group for group in axes.open if any("ffn" in layout.text.split("*")[0] for layout in group[0][2])
    ]
    groups = [group for group in groups if "_ffn" not in group[0][2][0].text]
    if not groups:
        return axes
    for choices in product(*(range(len(group[0][2])) for group in groups)):
        some = axes
        for group, choice in zip(groups, choices, strict=True):
            some = some.with_layout(group, choice)
        if all(proof.holds for proof in prove_neurons(some)):
            return some
    return axes


def _with_flags(observed: Observed, data: Mapping[str, Any]) -> list[str]:
    """Prove the description with each flag that adds tensors, and with the head tied or untied."""
    found = []
    tied = "tie_word_embeddings"
    turned = {key: other.tiny.values for key, other in observed.flags.items()}
    if isinstance(observed.tiny.values.get(tied), bool):
        turned[tied] = {**observed.tiny.values, tied: not observed.tiny.values[tied]}
    exact = [key for key, entry in data["dimensions"].items() if "writes" in entry and "inexact" not in entry]
    for key, values in turned.items():
        try:
            subject = make_subject(Description.from_json(_PLACE, data), values)
        except IShrinkError as error:
            found.append(f"with {key}={values[key]} nothing is proved: {error}")
            continue
        proofs = prove_together(subject, exact)
        if not all(proof.holds for proof in proofs):
            proofs = prove(subject, exact) + proofs
        found += [
            f"with {key}={values[key]}, {proof.claim} does not hold: {proof.words}"
            for proof in proofs
            if not proof.holds
        ]
    return found


def _at_full_size(data: dict[str, Any], raw: Mapping[str, Any], axes: Axes, unknown: list[str]) -> dict[str, Any]:
    """Check the description against the model that was asked for, with lengths that were not told from there."""
    try:
        with registered(Description.from_json(_PLACE, data)):
            bind_config({key: value for key, value in raw.items() if key != "quantization_config"})
    except Exception as error:  # the drafter could make the class tiny, but this config may be beyond it
        unknown.append(f"at its full size {error}")
    return data
