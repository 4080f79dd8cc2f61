"""Which sizes a class has: a name for each count, and the expression over config keys that gives it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..architectures.description import INDEX, name_pattern
from ..errors import SourceError
from .fitting import Term, fit
from .observing import Observed, lengths
from .structure import Structure
from .tiny_class import build
from .tiny_values import Tiny

Fits = list[tuple[Term, ...]]
"""What an axis may count: several where lengths cannot tell."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a class.

    Args:
        expressions: Name of a size to its expression over config keys, in the order in which products name them.
        width_key: The config key of the MLP's width; None where no single key holds it.
    """

    expressions: Mapping[str, str]
    width_key: str | None


def axis_fits(observed: Observed, expressions: Mapping[str, str], *, memory: bool = False) -> dict[str, list[Fits]]:
    """Return what the axes of every tensor may count, by the tensor's pattern. An empty list says: not found.

    Args:
        observed: The class at several sizes.
        expressions: The sizes.
        memory: Whether to read the tensors that memory lays out otherwise than the disk.
    """
    sizes = observed.sizes({name: text for name, text in expressions.items() if name != "layers"})
    shapes = observed.built[0].memory if memory else observed.built[0].stored
    found: dict[str, list[Fits]] = {}
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], Fits] = {}
    for name, shape in shapes.items():
        pattern = name_pattern(name)
        axes: list[Fits] = []
        for axis in range(len(shape)):
            values, places = lengths(observed, name, axis, memory=memory)
            key = (tuple(values), tuple(places))
            if key not in known:
                known[key] = fit(values, [sizes[i] for i in places])
            axes.append(known[key])
        # Tensors of one pattern that count different things have no common entry.
        before = found.get(pattern)
        found[pattern] = axes if before is None else list(map(_common, before, axes))
    return found


def _common(one: Fits, other: Fits) -> Fits:
    return one if one == other else [terms for terms in one if terms in other]


def find_sizes(observed: Observed, structure: Structure) -> Sizes:
    """Return the sizes of a class.

    Args:
        observed: The class at several sizes.
        structure: What the running model showed.
    """
    tiny = observed.tiny
    standard = _standard(tiny)
    fits = axis_fits(observed, {**standard, **{key: key for key in tiny.size_keys}})
    experts = _experts_key(observed, fits)
    width = _width_key(tiny, fits, structure, experts)
    names = {key: key for key in tiny.size_keys}
    if experts is not None:
        names[experts] = "experts"
    for key in tiny.size_keys:
        if key in (experts, width):
            continue
        users = [pattern for pattern, axes in fits.items() if any(_mentions(each, key) for each in axes)]
        if users and all("shared" in pattern for pattern in users):
            names[key] = "shared_ffn"
        elif users and all(INDEX.search(pattern.replace("*", "0")) is None for pattern in users):
            names[key] = "positions" if re.search(r"pos", " ".join((key, *users))) else key
        elif re.search(r"intermediate|ffn|inner", key) and "shared_ffn" not in names.values():
            names[key] = "dense_ffn"
    if len(set(names.values())) < len(names):
        names = {key: name if list(names.values()).count(name) == 1 else key for key, name in names.items()}
    expressions = dict(standard)
    if width is not None:
        names[width] = "ffn"
        expressions["ffn"] = _width_expression(observed, width, fits)
    else:
        expressions["ffn"] = _derived_width(tiny, fits, structure) or tiny.keys["hidden"]
    if experts is not None:
        expressions["experts"] = experts
    expressions |= {name: key for key, name in names.items() if name not in ("ffn", "experts")}
    return Sizes(expressions, width)


def _standard(tiny: Tiny) -> dict[str, str]:
    keys = tiny.keys
    found = {role: keys[role] for role in ("layers", "hidden", "vocab", "heads")}
    found["kv"] = f"{keys['kv']} or {keys['heads']}" if "kv" in keys else keys["heads"]
    derived = f"{keys['hidden']} // {keys['heads']}"
    found["head_dim"] = f"{keys['head_dim']} or {derived}" if "head_dim" in keys else derived
    return found


def _mentions(fits: Fits, size: str) -> bool:
    return any(size in term.sizes for terms in fits for term in terms)


def _experts_key(observed: Observed, fits: Mapping[str, Sequence[Fits]]) -> str | None:
    """Return the key that counts experts: it makes more tensors of an index, or it is the first of three axes."""
    tiny = observed.tiny
    for key in tiny.size_keys:
        stacked = any(len(axes) > 2 and _mentions(axes[0], key) for p, axes in fits.items() if "expert" in p + key)
        if stacked or any(
            built.stored.keys() != tiny.built.stored.keys()
            and {name_pattern(name) for name in built.stored} == {name_pattern(name) for name in tiny.built.stored}
            for values, built in zip(observed.values, observed.built, strict=True)
            if all(values.get(other) == tiny.values.get(other) for other in values if other != key)
        ):
            return key
    return None


def _widths(
    fits: Mapping[str, Sequence[Fits]], structure: Structure
) -> Iterator[tuple[str, tuple[Term, ...], Sequence[Fits]]]:
    """Yield the tensors of MLPs that lie between the residual stream and something else, with what that is."""
    stream = (Term(1, ("hidden",)),)
    for pattern, axes in fits.items():
        if "*" not in pattern or pattern in structure.attention or not 2 <= len(axes) <= 3:
            continue
        inner = axes[-2:]
        for one, other in (inner, inner[::-1]):
            if stream in one and other and stream not in other and len(other[0]) == 1:
                yield pattern, other[0], axes


def _width_key(
    tiny: Tiny, fits: Mapping[str, Sequence[Fits]], structure: Structure, experts: str | None
) -> str | None:
    """Return the key of the width of the MLP's neurons, those of the experts where there are some."""
    scores: dict[str, tuple[int, int]] = {}
    for pattern, terms, axes in _widths(fits, structure):
        sizes = terms[0].sizes
        if len(sizes) == 1 and sizes[0] in tiny.size_keys and sizes[0] != experts:
            is_expert = len(axes) == 3 or re.search(r"experts?\.\*", pattern) is not None
            before = scores.get(sizes[0], (0, 0))
            scores[sizes[0]] = (max(before[0], int(is_expert)), before[1] + int("shared" not in pattern))
    return max(scores, key=lambda key: scores[key]) if scores else None


def _width_expression(observed: Observed, key: str, fits: Mapping[str, Sequence[Fits]]) -> str:
    """Return the expression of a width, with what the class takes where the config leaves it unset."""
    tiny = observed.tiny
    try:
        unset = build({**tiny.values, key: None}, tiny.model_type).stored
    except SourceError:
        return key
    hidden = int(tiny.values[tiny.keys["hidden"]])
    for name in unset:
        axes = fits[name_pattern(name)]
        for axis, each in enumerate(axes):
            if each == [(Term(1, (key,)),)] and unset[name][axis] % hidden == 0:
                return f"{key} or {unset[name][axis] // hidden} * {tiny.keys['hidden']}"
    return key


def _derived_width(tiny: Tiny, fits: Mapping[str, Sequence[Fits]], structure: Structure) -> str | None:
    """Return the expression of a width that no key of its own holds, such as four times the residual stream."""
    hidden = tiny.keys["hidden"]
    for _, terms, _ in _widths(fits, structure):
        (term,) = terms
        if term.sizes == ("hidden",) and term.count > 1:
            return f"{term.count} * {hidden}"
        if len(term.sizes) == 2 and "hidden" in term.sizes and term.count == 1:
            other = next(size for size in term.sizes if size != "hidden")
            return f"{other} * {hidden}"
    return None
