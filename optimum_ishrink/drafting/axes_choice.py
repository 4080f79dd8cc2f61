"""The axes of every tensor, in the language of descriptions, and what is left open for the proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..architectures.description import DIMENSIONS, name_pattern
from .fitting import Term
from .layouts import Layout, layouts
from .observing import Observed
from .sizes import Fits, Sizes, axis_fits
from .structure import Structure

Open = tuple[tuple[str, int, tuple[Layout, ...]], ...]
"""Axes that lie alike, such as those of a weight and its bias: each with its pattern, its index and its layouts."""

_ATTENTION = ("heads", "kv", "head_dim")


@dataclass(frozen=True)
class Axes:
    """The axes of all tensors.

    Args:
        tensors: Pattern of a tensor on disk to its axes.
        memory: The same of parameters that memory lays out otherwise.
        sizes: Every size's expression, with those that layouts need.
        open: Axes whose sections may lie in several ways, which lengths cannot tell apart.
        unknown: What could not be told, as sentences.
    """

    tensors: Mapping[str, tuple[str, ...]]
    memory: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, str]
    open: tuple[Open, ...] = ()
    unknown: tuple[str, ...] = ()

    def with_layout(self, group: Open, choice: int) -> Axes:
        """Return the axes with another layout of some axes that lie alike.

        Args:
            group: One of `open`.
            choice: Index of the layout.
        """
        tensors, sizes = dict(self.tensors), dict(self.sizes)
        for pattern, axis, found in group:
            texts = list(tensors[pattern])
            texts[axis] = found[choice].text
            tensors[pattern] = tuple(texts)
            sizes |= found[choice].sizes
        return replace(self, tensors=tensors, sizes=sizes)


def choose_axes(observed: Observed, sizes: Sizes, structure: Structure) -> Axes:
    """Return the axes of every tensor that the class stores, with any of its flags.

    Args:
        observed: The class at several sizes.
        sizes: The sizes.
        structure: What the running model showed.
    """
    fits = axis_fits(observed, sizes.expressions)
    shapes = {name_pattern(name): shape for name, shape in observed.tiny.built.stored.items()}
    for turned in observed.flags.values():
        fits |= {
            pattern: axes for pattern, axes in axis_fits(turned, sizes.expressions).items() if pattern not in fits
        }
        shapes |= {name_pattern(name): shape for name, shape in turned.tiny.built.stored.items()}
    tensors: dict[str, tuple[str, ...]] = {}
    needed, unknown = dict(sizes.expressions), list[str]()
    groups: dict[tuple[str, tuple[Term, ...]], list[tuple[str, int, tuple[Layout, ...]]]] = {}
    for pattern, axes in fits.items():
        texts: list[str] = []
        for axis, each in enumerate(axes):
            terms = _choose(each, pattern, axis, len(axes), structure, sizes.expressions)
            if terms is None:
                name = f"unknown_{len(unknown) + 1}"
                needed[name] = str(shapes[pattern][axis])
                unknown.append(
                    f"axis {axis} of {pattern}: its length follows no sum of products of the config's sizes; it is "
                    f"written as {name}, the length that it has in this config"
                )
                texts.append(name)
                continue
            found = layouts(terms, sizes.expressions)
            needed |= found[0].sizes
            texts.append(found[0].text)
            if len(found) > 1:
                place = (
                    pattern.rpartition(".")[0]
                    if pattern.endswith((".weight", ".bias"))
                    else pattern.removesuffix("_bias")
                )
                groups.setdefault((place, terms), []).append((pattern, axis, tuple(found)))
        tensors[pattern] = tuple(texts)
    memory = {
        pattern: tuple(
            "1"
            if (terms := _choose(each, pattern, axis, len(axes), structure, sizes.expressions)) is None
            else layouts(terms, sizes.expressions)[0].text
            for axis, each in enumerate(axes)
        )
        for pattern, axes in axis_fits(observed, sizes.expressions, memory=True).items()
        if "*" in pattern and any(_counts_units(each) for each in axes)
    }
    return Axes(tensors, memory, needed, tuple(map(tuple, groups.values())), tuple(unknown))


def unproved_orders(axes: Axes) -> list[str]:
    """Return, as sentences, the axes whose sections may come in another order: no dimension cuts them.

    Args:
        axes: The axes of all tensors.
    """
    units = {"heads", "kv", "ffn", "vocab"}
    return [
        f"the order of the sections along axis {axis} of {pattern}, which no dimension cuts: written as {text}"
        for pattern, texts in axes.tensors.items()
        for axis, text in enumerate(texts)
        if len(sections := set(text.strip("[]").split("; "))) > 1
        and not any(units & {*section.split("*")} for section in sections)
    ]


def _counts_units(fits: Fits) -> bool:
    return any(size in DIMENSIONS.values() for terms in fits for term in terms for size in term.sizes)


def _choose(
    fits: Fits, pattern: str, axis: int, axes: int, structure: Structure, expressions: Mapping[str, str]
) -> tuple[Term, ...] | None:
    """Return what an axis counts, where lengths leave several answers by what the running model showed."""
    if not fits:
        return None
    if len(fits) == 1:
        return fits[0]
    counts_heads = _counts_heads(pattern, axis, axes, structure)
    return max(fits, key=lambda terms: _score(terms, counts_heads=counts_heads, expressions=expressions))


def _score(terms: Sequence[Term], *, counts_heads: bool, expressions: Mapping[str, str]) -> tuple[bool, bool, int]:
    names = {size for term in terms for size in term.sizes}
    heads = bool(names & set(_ATTENTION))
    return heads == counts_heads, "ffn" in names, -sum(len(term.sizes) for term in terms)


def _counts_heads(pattern: str, axis: int, axes: int, structure: Structure) -> bool:
    """Whether an axis counts heads: of attention's inputs where they write, of its output where it reads."""
    weight = f"{pattern.rpartition('.')[0]}.weight"  # a flag may add a bias that the running model did not have
    if weight in structure.inputs:
        return axes == 1 or axis == (1 if pattern in structure.transposed else 0)
    if weight in structure.outputs:
        return axes == 2 and axis == (0 if pattern in structure.transposed else 1)
    return pattern in structure.attention  # a norm of queries or keys
