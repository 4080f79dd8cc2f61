"""JSON files hold no NaN and no infinity."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.core.json_files import without_non_finite, write_json

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


def refuse(word: str) -> Any:
    raise AssertionError(word)


@given(VALUES)
def test_every_value_becomes_valid_json(value: Any) -> None:
    text = json.dumps(without_non_finite(value), allow_nan=False)
    json.loads(text, parse_constant=refuse)


def test_files_hold_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [math.nan, 1.5], "b": {"c": math.inf}, "d": (1, 2)})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {"a": [None, 1.5], "b": {"c": None}, "d": [1, 2]}
