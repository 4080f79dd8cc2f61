"""The codec: what a record holds survives JSON, and what is not such a record is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.core.json_codec import from_plain, rare_entry, to_plain
from optimum_ishrink.errors import SourceError


@dataclass(frozen=True)
class Leaf:
    name: str
    value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Tree:
    label: str | None = None
    version: str | float | None = None
    whole: bool
    count: int
    leaf: Leaf
    other: Leaf | None = None
    leaves: tuple[Leaf, ...] = ()
    rows: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    curve: tuple[tuple[int, float], ...] = ()
    merges: tuple[tuple[tuple[int, ...], ...], ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


NUMBERS = st.integers(-(2**53), 2**53)
FLOATS = st.floats(allow_nan=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBERS | FLOATS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
LEAVES = st.builds(Leaf, st.text(max_size=4), st.none() | FLOATS | NUMBERS)
TREES = st.builds(
    Tree,
    label=st.none() | st.text(max_size=4),
    version=st.none() | st.text(max_size=4) | FLOATS,
    whole=st.booleans(),
    count=NUMBERS,
    leaf=LEAVES,
    other=st.none() | LEAVES,
    leaves=st.lists(LEAVES, max_size=3).map(tuple),
    rows=st.dictionaries(st.text(max_size=4), st.lists(st.lists(NUMBERS).map(tuple), max_size=3).map(tuple)),
    changes=st.dictionaries(st.text(max_size=4), st.tuples(PLAIN, PLAIN), max_size=3),
    curve=st.lists(st.tuples(NUMBERS, FLOATS), max_size=3).map(tuple),
    merges=st.none() | st.just((((0, 1), (2,)), ())),
    settings=st.dictionaries(st.text(max_size=4), PLAIN, max_size=3),
)


@given(TREES)
def test_a_record_survives_json(tree: Tree) -> None:
    assert from_plain(Tree, json.loads(json.dumps(to_plain(tree))), kind="tree") == tree


def test_plain_values_have_no_tuples_and_no_records() -> None:
    tree = Tree(whole=True, count=1, leaf=Leaf("a"), settings={"pair": (1, (2,)), "leaf": Leaf("b", 2.0)})
    assert to_plain(tree)["settings"] == {"pair": [1, [2]], "leaf": {"name": "b", "value": 2.0}}
    assert list(to_plain(tree))[:3] == ["label", "version", "whole"]


WHOLE: dict[str, Any] = {"whole": True, "count": 1, "leaf": {"name": "a"}}


def test_entries_with_a_default_may_be_missing() -> None:
    assert from_plain(Tree, WHOLE, kind="tree") == Tree(whole=True, count=1, leaf=Leaf("a"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lable": "x"}, "unknown entry of the tree 'lable' .did you mean 'label'.*; allowed: changes, "),
        ({"leaf": {"nam": "a"}}, "unknown entry of leaf in the tree 'nam' .did you mean 'name'"),
        ({"leaves": [{"name": "a"}, {}]}, r"this tree lacks leaves\[1\].name"),
        ({"count": 1.5}, "this tree is damaged: count is 1.5, not an integer"),
        ({"count": True}, "count is True, not an integer"),
        ({"whole": 1}, "whole is 1, not true or false"),
        ({"label": 3}, "label is 3, not a string or null"),
        ({"version": []}, r"version is \[\], not a string or a number or null"),
        ({"leaf": 3}, "leaf is 3, not an object"),
        ({"other": "x"}, "other is 'x', not an object"),
        ({"leaves": "abc"}, "leaves is 'abc', not a list"),
        ({"rows": {"a": [[0], ["b"]]}}, r"rows.a\[1\]\[0\] is 'b', not an integer"),
        ({"rows": []}, r"rows is \[\], not an object"),
        ({"changes": {"a": [1]}}, r"changes.a is \[1\], not a list of 2"),
        ({"curve": [[1, None]]}, r"curve\[0\]\[1\] is None, not a number"),
        ({"merges": "x" * 99}, "merges is 'x{36}[.]{3}, not a list"),
    ],
)
def test_invalid_records_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        from_plain(Tree, {**WHOLE, **change}, kind="tree")


def test_missing_entries_are_named_together() -> None:
    with pytest.raises(SourceError, match="this tree lacks count, leaf, whole"):
        from_plain(Tree, {}, kind="tree")
    with pytest.raises(SourceError, match="this tree is damaged: it is 3, not an object"):
        from_plain(Tree, 3, kind="tree")


@dataclass(frozen=True)
class Unsupported:
    value: set[int]


def test_a_class_without_a_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="no JSON form for set"):
        from_plain(Unsupported, {"value": [1]}, kind="unsupported")


@dataclass(frozen=True)
class Seldom:
    name: str
    begins_with: str | None = rare_entry()


def test_an_entry_that_few_files_have_is_left_out_where_it_is_none() -> None:
    assert to_plain(Seldom("a")) == {"name": "a"}
    assert to_plain(Seldom("a", "<s>")) == {"name": "a", "begins_with": "<s>"}
    for each in (Seldom("a"), Seldom("a", "<s>")):
        assert from_plain(Seldom, to_plain(each), kind="note") == each
