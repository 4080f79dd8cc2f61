"""The order in which tokens go."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.vocabulary.choice import RemovalOrder, order_removals, removable
from optimum_ishrink.vocabulary.splits import Splits


@st.composite
def vocabularies(draw: st.DrawFn) -> tuple[Splits, np.ndarray, list[int]]:
    """Parts of tokens, how often each is expected, and some that stay."""
    leaves = draw(st.integers(2, 6))
    left, right, sizes = [-1] * leaves, [-1] * leaves, [1] * leaves
    for _ in range(draw(st.integers(0, 14))):
        a, b = (draw(st.integers(0, len(left) - 1)) for _ in range(2))
        left.append(a)
        right.append(b)
        sizes.append(sizes[a] + sizes[b])
    count = len(left)
    pieces = [draw(st.sampled_from([1, 1, 3])) if part < 0 else 1 for part in left]
    splits = Splits(
        *(np.array(values, dtype=np.int64) for values in (left, right, sizes, pieces)),
        np.ones(count, dtype=bool),
        needs_parts=True,
    )
    counts = np.array(draw(st.lists(st.integers(0, 50), min_size=count, max_size=count)), dtype=np.float64)
    named = draw(st.lists(st.integers(0, count - 1), max_size=4))
    return splits, counts, splits.close(named).tolist()


@given(vocabularies(), st.integers(0, 5))
def test_what_stays_is_complete_and_costs_what_its_pieces_cost(
    vocabulary: tuple[Splits, np.ndarray, list[int]], padding: int
) -> None:
    splits, counts, required = vocabulary
    ids = len(counts)
    tokens = np.arange(ids + padding) < ids
    rows = np.concatenate([counts, np.zeros(padding)])
    found = order_removals(rows, splits, required, tokens)
    assert sorted(found.order.tolist()) == np.flatnonzero(removable(splits, required, tokens)).tolist()
    expected = counts / max(counts.sum(), 1)
    before: set[int] = set(range(ids + padding))
    for size in range(ids + padding, ids - len(found.order) - 1, -1):
        kept = found.rows(size)
        assert {*required} <= {*kept} <= before
        before = {*kept}
        if size > ids:
            last = range(2 * ids + padding - size, ids + padding)
            assert kept == (*range(ids), *last)  # rows without a token go first; the last of them stay longest
            continue
        assert splits.close(kept).tolist() == list(kept)
        mask = np.zeros(ids, dtype=bool)
        mask[list(kept)] = True
        more = float((expected * (splits.pieces(mask) - 1)).sum())
        assert np.isclose(found.extra[ids - size], more)


@given(vocabularies())
def test_each_removal_costs_at_least_as_much_as_the_one_before(
    vocabulary: tuple[Splits, np.ndarray, list[int]],
) -> None:
    """A token's parts can go only after it, and by then its own occurrences are among theirs."""
    splits, counts, required = vocabulary
    found = order_removals(counts, splits, required, np.ones(len(counts), dtype=bool))
    assert (np.diff(np.diff(found.extra)) >= -1e-9).all()


def parts(*pairs: tuple[int, int]) -> Splits:
    left, right = (np.array([pair[i] for pair in pairs], dtype=np.int64) for i in (0, 1))
    ones = np.ones(len(pairs), dtype=np.int64)
    return Splits(left, right, np.where(left < 0, 1, 2), ones, ones > 0, needs_parts=True)


def test_the_cheapest_goes_first_and_of_equals_the_last() -> None:
    splits = parts((-1, -1), (-1, -1), (0, 1), (1, 0), (0, 0), (1, 1))
    found = order_removals(np.array([5.0, 5, 2, 1, 1, 3]), splits, [], np.ones(6, dtype=bool))
    assert found.order.tolist() == [4, 3, 2, 5]
    assert np.allclose(found.extra, np.array([0, 1, 2, 4, 7]) / 17)


def test_a_token_that_no_text_makes_can_go() -> None:
    splits = parts((-1, -1), (-1, -1))
    splits.reachable[1] = False
    found = order_removals(np.array([1.0, 0]), splits, [], np.ones(2, dtype=bool))
    assert found.order.tolist() == [1]
    assert found.extra.tolist() == [0, 0]


def test_holes_in_the_ids_are_filled_first() -> None:
    tokens = np.array([True, False, True, False])
    order = RemovalOrder(np.array([2]), np.zeros(2), tokens)
    assert [order.rows(size) for size in (1, 2, 3, 4)] == [(0,), (0, 2), (0, 2, 3), (0, 1, 2, 3)]
    assert order.num_tokens == 2


def test_without_any_count_the_last_go_first() -> None:
    splits = parts((-1, -1), (-1, -1), (0, 1), (1, 0))
    found = order_removals(np.zeros(4), splits, [], np.ones(4, dtype=bool))
    assert found.order.tolist() == [3, 2]
    assert found.extra.tolist() == [0, 0, 0]
