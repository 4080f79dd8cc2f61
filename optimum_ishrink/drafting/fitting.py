"""What an axis counts, from its lengths at several sizes of its class. Pure arithmetic: no model, no names.

A length alone is ambiguous, since several numbers of a config are often equal or products of one another. How it moves
when one number moves is not: an axis that doubles with the number of heads and with the width of a head, and with
nothing else, counts heads times width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod

import numpy as np

_FACTORS, _TERMS, _LARGEST = 3, 3, 8
"""Most sizes in a product, most products in a sum, and the largest number of repetitions of one."""


@dataclass(frozen=True)
class Term:
    """A product of sizes, repeated some times along an axis: three times `heads*head_dim`, say.

    Args:
        count: How often it is repeated.
        sizes: The sizes; none for a number that does not move.
    """

    count: int
    sizes: tuple[str, ...]


def fit(lengths: Sequence[int], sizes: Sequence[Mapping[str, int]]) -> list[tuple[Term, ...]]:
    """Return the sums of products of sizes that give an axis' length everywhere, the simplest alone.

    Args:
        lengths: Length of the axis in each observation.
        sizes: Value of every size in each observation.

    Returns:
        All sums of the fewest parts that fit; several where the observations cannot tell them apart, none where no sum
        of at most three products does. Ascending by the order of the sizes.
    """
    if len(set(lengths)) == 1:
        return [(Term(lengths[0], ()),)]
    terms = _products(lengths, sizes)
    wanted = np.array(lengths, dtype=np.int64)
    for count in range(1, _TERMS + 1):
        found = list(_sums(wanted, terms, count))
        if found:
            fewest = min(map(_weight, found))
            return [each for each in found if _weight(each) == fewest]
    return []


def _weight(terms: tuple[Term, ...]) -> int:
    """Return how many products are repeated: a size of its own is likelier than a multiple of another."""
    return sum(term.count > 1 for term in terms if term.sizes)


def _products(lengths: Sequence[int], sizes: Sequence[Mapping[str, int]]) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """Return every product of sizes that is never longer than the axis. Of sizes that are always equal, the first."""
    vectors: dict[tuple[int, ...], str] = {}
    for name in sizes[0]:
        vectors.setdefault(tuple(each[name] for each in sizes), name)
    # A size that moved alone, and the axis with it not, is no factor.
    idle = {
        moved[0]
        for length, each in zip(lengths, sizes, strict=True)
        if length == lengths[0]
        and len(moved := [name for name in vectors.values() if each[name] != sizes[0][name]]) == 1
    }
    names = [name for name in vectors.values() if name not in idle]
    found: list[tuple[tuple[str, ...], np.ndarray]] = []
    for count in range(1, _FACTORS + 1):
        for chosen in combinations(names, count):
            vector = np.array([prod(each[name] for name in chosen) for each in sizes], dtype=np.int64)
            if (vector > np.array(lengths)).any() or len(set(vector.tolist())) == 1:
                continue
            found.append((chosen, vector))
    return found


def _sums(
    wanted: np.ndarray, products: Sequence[tuple[tuple[str, ...], np.ndarray]], count: int
) -> Iterator[tuple[Term, ...]]:
    """Yield the sums of some products, with a constant, that give the wanted lengths."""
    for chosen in combinations(products, count):
        matrix = np.stack([vector for _, vector in chosen] + [np.ones_like(wanted)], axis=1).astype(float)
        if np.linalg.matrix_rank(matrix) < count + 1:
            continue
        solution, *_ = np.linalg.lstsq(matrix, wanted.astype(float), rcond=None)
        whole = np.rint(solution).astype(np.int64)
        repeats, constant = whole[:-1], int(whole[-1])
        if (repeats < 1).any() or (repeats > _LARGEST).any() or not 0 <= constant <= _LARGEST:
            continue
        if (matrix.astype(np.int64) @ whole == wanted).all():
            terms = tuple(Term(int(n), names) for n, (names, _) in zip(repeats, chosen, strict=True))
            yield (*terms, Term(constant, ())) if constant else terms
