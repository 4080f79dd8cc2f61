"""The ways in which sections can lie along an axis. Lengths cannot tell them apart; the proof can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .fitting import Term


@dataclass(frozen=True)
class Layout:
    """One way in which an axis may be laid out.

    Args:
        text: The axis in the language of descriptions.
        sizes: Sizes that it needs beside those of the config, by name, as expressions.
    """

    text: str
    sizes: Mapping[str, str] = field(default_factory=dict)


def layouts(terms: Sequence[Term], sizes: Mapping[str, str]) -> list[Layout]:
    """Return the layouts of an axis that counts a sum of products, the usual one first.

    Args:
        terms: What the axis counts.
        sizes: Every size's expression over config keys.
    """
    if len(terms) == 1:
        (term,) = terms
        product = "*".join(term.sizes)
        if not term.sizes:
            return [Layout(str(term.count))]
        if term.count == 1:
            return [Layout(product)]
        first, *rest = term.sizes
        found = [Layout(_sections(terms))]  # one part after another
        if rest:
            found.append(Layout("*".join((first, str(term.count), *rest))))  # unit by unit
        return [*found, Layout(f"{product}*{term.count}")]  # interleaved
    found = [Layout(_sections(terms))]
    per_unit = _per_unit(terms, sizes)
    return [per_unit, *found] if per_unit else [*found, *_per_group(terms, sizes)]


def _sections(terms: Sequence[Term]) -> str:
    parts = [part for term in terms for part in _parts(term)]
    return parts[0] if len(parts) == 1 else f"[{'; '.join(parts)}]"


def _parts(term: Term) -> list[str]:
    return ["*".join(term.sizes)] * term.count if term.sizes else [str(term.count)]


def _per_unit(terms: Sequence[Term], sizes: Mapping[str, str]) -> Layout | None:
    """Return the layout where each head holds parts of several widths, as latent attention has them."""
    if not all(len(term.sizes) == 2 and term.sizes[0] == "heads" for term in terms):
        return None
    widths = [(term.count, term.sizes[1]) for term in terms]
    name = "_and_".join(width for _, width in widths)
    expression = " + ".join(f"{count} * ({sizes[width]})" if count > 1 else sizes[width] for count, width in widths)
    return Layout(f"heads*{name}", {name: expression})


def _per_group(terms: Sequence[Term], sizes: Mapping[str, str]) -> list[Layout]:
    """Return the layout where each KV group holds its query heads, then its key and its value."""
    if {(term.count, term.sizes) for term in terms} != {(1, ("heads", "head_dim")), (2, ("kv", "head_dim"))}:
        return []
    rows = {"group_rows": f"({sizes['heads']}) // ({sizes['kv']}) + 2"}
    return [Layout("kv*group_rows*head_dim", rows)]
