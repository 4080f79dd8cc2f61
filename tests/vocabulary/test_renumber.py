from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.errors import ShapeError
from optimum_ishrink.vocabulary.renumber import config_ids, renumber_ids

ROWS = [0, 1, 2, 10, 20, 30]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"bos_token_id": 10, "eos_token_id": [2, 20]}, {"bos_token_id": 3, "eos_token_id": [2, 4]}),
        ({"pad_token_id": None, "sep_token_id": -1}, {"pad_token_id": None, "sep_token_id": -1}),
        ({"image_token_index": 30, "audio_token_id": 20}, {"image_token_index": 5, "audio_token_id": 4}),
        ({"forced_decoder_ids": [[1, 20], [20, None]]}, {"forced_decoder_ids": [[1, 4], [20, None]]}),
        ({"force_words_ids": [[[10, 20], [30]]]}, {"force_words_ids": [[[3, 4], [5]]]}),
        ({"lang_to_id": {"<|en|>": 20}}, {"lang_to_id": {"<|en|>": 4}}),
        (
            {"text_config": {"eos_token_id": 20, "a": 9}},
            {"text_config": {"eos_token_id": 4, "a": 9}},
        ),
        ({"vocab_size": 30, "num_hidden_layers": 20, "use_cache": True}, None),
        ({"rope_parameters": {"rope_theta": 10}, "layer_types": ["a"]}, None),
        ({"suppress_tokens": [], "bad_words_ids": None}, None),
        ({"eos_token_id": True, "pad_token_id": "<pad>"}, None),
    ],
)
def test_ids_are_renumbered_and_nothing_else(before: dict[str, Any], after: dict[str, Any] | None) -> None:
    assert renumber_ids(before, ROWS) == (before if after is None else after, [])


@pytest.mark.parametrize(
    ("before", "after", "notes"),
    [
        (
            {"suppress_tokens": [-1, 7, 10], "begin_suppress_tokens": [7]},
            {"suppress_tokens": [-1, 3]},
            [
                "suppress_tokens lost 1 of 3 entries, whose tokens were removed",
                "begin_suppress_tokens lost 1 of 1 entries, whose tokens were removed",
            ],
        ),
        (
            {"bad_words_ids": [[10, 20], [10, 7]]},
            {"bad_words_ids": [[3, 4]]},
            ["bad_words_ids lost 1 of 2 entries, whose tokens were removed"],
        ),
        (
            {"text_config": {"sequence_bias": [[[10], -2.0], [[7], 1.0]]}},
            {"text_config": {"sequence_bias": [[[3], -2.0]]}},
            ["sequence_bias lost 1 of 2 entries, whose tokens were removed"],
        ),
    ],
)
def test_what_is_said_of_removed_tokens_alone_is_left_out(
    before: dict[str, Any], after: dict[str, Any], notes: list[str]
) -> None:
    assert renumber_ids(before, ROWS) == (after, notes)


@pytest.mark.parametrize(
    "values",
    [
        {"eos_token_id": [2, 7]},
        {"text_config": {"bos_token_id": 7}},
        {"forced_decoder_ids": [[1, 7]]},
        {"force_words_ids": [[7]]},
        {"lang_to_id": {"<|en|>": 7}},
    ],
)
def test_a_token_that_a_config_needs_may_not_go(values: dict[str, Any]) -> None:
    with pytest.raises(ShapeError, match="names token 7, which would be removed; let it stay"):
        renumber_ids(values, ROWS)
    assert {7} <= set().union(*config_ids(values).values())


def test_a_config_needs_what_it_names_but_not_what_it_suppresses() -> None:
    values = {
        "eos_token_id": [1, 2],
        "pad_token_id": -1,
        "suppress_tokens": [5],
        "sequence_bias": {"x_token_id": 4},
        "text_config": {"eos_token_id": 3, "audio_config": {"audio_token_index": 8}},
    }
    assert config_ids(values) == {"eos_token_id": {1, 2, 3}, "audio_token_index": {8}}


@given(rows=st.sets(st.integers(0, 50), min_size=1), data=st.data())
def test_the_rows_lead_back(rows: set[int], data: st.DataObject) -> None:
    order = sorted(rows)
    ids = data.draw(st.lists(st.sampled_from(order)))
    found, notes = renumber_ids({"eos_token_id": ids, "suppress_tokens": [*ids, *range(51)]}, order)
    assert [order[i] for i in found["eos_token_id"]] == ids
    assert [order[i] for i in found["suppress_tokens"]] == [*ids, *order]
    assert bool(notes) == (len(order) < 51)
