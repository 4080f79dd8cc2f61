from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.architectures.layer_order import LayerOrder

KINDS = st.lists(st.sampled_from("sf"), min_size=1, max_size=8)


@given(data=st.data(), kinds=KINDS)
def test_the_choice_is_the_best_of_all_that_come_in_order(data: st.DataObject, kinds: list[str]) -> None:
    total = len(kinds)
    places = data.draw(st.lists(st.sampled_from("sf"), min_size=1, max_size=total))
    start = data.draw(st.integers(0, total))
    removable = range(start, data.draw(st.integers(start, total)))
    scores = data.draw(st.lists(st.integers(-4, 4).map(float), min_size=total, max_size=total))
    order = LayerOrder(tuple(kinds), tuple(places))
    protected = set(range(total)) - set(removable)
    possible = [
        chosen
        for chosen in combinations(range(total), len(places))
        if protected <= set(chosen) and [kinds[layer] for layer in chosen] == places
    ]
    found = order.choose(scores, removable)
    assert order.can_follow(range(total), removable) == bool(possible)
    if not possible:
        assert found is None
        return
    assert found in possible
    assert sum(scores[layer] for layer in found) == max(sum(scores[layer] for layer in each) for each in possible)
    assert order.can_follow(found, removable)


def test_among_equals_the_first_layers_are_removed() -> None:
    order = LayerOrder(tuple("sfsfsf"), tuple("sfsf"))
    assert order.choose([0.0] * 6, range(6)) == (2, 3, 4, 5)
    assert order.choose([0.0] * 6, range(1, 6)) == (0, 3, 4, 5)
