"""How the tokens of a larger vocabulary are carried to a smaller one."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from optimum_ishrink.text.token_map import NOWHERE, TokenMap, map_tokens
from tests.helpers.tiny import tiny_tokenizer
from tests.helpers.trimmed import KINDS, TEXTS, trim

texts = st.lists(st.one_of(st.text(max_size=30), st.sampled_from(TEXTS)), max_size=3).map("".join)


@cache
def pair(kind: str) -> tuple[Any, Any, TokenMap]:
    """A tokenizer, the same with half of its longer tokens, and how they correspond."""
    base = KINDS[kind]()
    small, rows = trim(base, lambda token: len(token) % 2 == 0)
    assert len(base) > len(rows) + 5
    found = map_tokens(base, small, len(base), len(rows))
    assert found is not None
    return base, small, found


def by_hand() -> TokenMap:
    """The base has a, b, ab, abb, and a row without a token; of these ab and abb become a, b and a, b, b."""
    return TokenMap(torch.tensor([0, 1, 0, 0, NOWHERE]), torch.tensor([1, 1, 2, 3, 0]), torch.tensor([1, 1]))


def test_a_case_worked_by_hand() -> None:
    tokens = by_hand()
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3, 7.0]).log()
    torch.testing.assert_close(tokens.carry(logits), torch.tensor([0.6, 0.4]).log())
    # "abbaab": abb|a|ab and a|b|b|a|a|b have read the same after abb, after the next a, and at the end.
    at_base, at_own = tokens.shared([3, 0, 2], [0, 1, 1, 0, 0, 1])
    assert (at_base.tolist(), at_own.tolist()) == ([0, 1, 2], [2, 3, 5])
    # a|bb would not be a part of ab|b: only the end is shared.
    other = TokenMap(torch.tensor([0]), torch.tensor([2, 1]), torch.tensor([1, 2]))
    assert [each.tolist() for each in other.shared([0, 1], [0, 1])] == [[1], [1]]
    assert [each.tolist() for each in other.shared([], [])] == [[], []]
    assert tokens.covers_alike([3, 0], [0, 1, 1, 0])
    assert not tokens.covers_alike([3, 0], [0, 1, 1])
    assert not tokens.keeps_all
    assert not tokens.is_identity


def test_rows_that_nothing_is_carried_to_have_no_probability() -> None:
    tokens = TokenMap(torch.tensor([2, NOWHERE, 0]), torch.tensor([1, 0, 1]), torch.tensor([1, 0, 1]))
    found = tokens.carry(torch.tensor([[0.2, 0.5, 0.6]]).log()).exp()
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.0, 0.25]]))
    assert tokens.keeps_all


def test_of_tokens_that_end_in_one_place_the_last_counts() -> None:
    tokens = TokenMap(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([1, 0]))
    assert [each.tolist() for each in tokens.shared([0, 1, 0], [0, 0])] == [[1, 2], [0, 1]]


@given(data=st.data())
def test_carried_probability_is_the_sum_of_what_is_carried(data: Any) -> None:
    rows = data.draw(st.integers(1, 6))
    carried = torch.tensor(data.draw(st.lists(st.integers(NOWHERE, rows - 1), min_size=1, max_size=12)))
    if (carried < 0).all():
        carried[0] = 0
    tokens = TokenMap(carried, torch.ones(len(carried)), torch.ones(rows))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    logits = torch.randn(2, 3, len(carried), generator=generator) * data.draw(st.floats(0.1, 60))
    p = logits.double().masked_fill(carried < 0, -torch.inf).softmax(-1)
    expected = torch.stack([p[..., carried == row].sum(-1) for row in range(rows)], -1)
    found = tokens.carry(logits)
    torch.testing.assert_close(found.double().exp(), expected, rtol=1e-4, atol=1e-7)
    assert found.logsumexp(-1).abs().max() < 1e-5
    # What is improbable does not vanish.
    filled = torch.isin(torch.arange(rows), carried)
    assert found[..., filled].isfinite().all()
    assert (found[..., ~filled] == -torch.inf).all()


def test_an_identity_gives_the_log_softmax() -> None:
    base = KINDS["byte-level"]()
    tokens = map_tokens(base, base, len(base) + 3, len(base) + 3)
    assert tokens is not None
    assert tokens.is_identity
    assert tokens.keeps_all
    logits = torch.randn(4, len(base) + 3)
    assert torch.equal(tokens.carry(logits), logits.log_softmax(-1))
    # Without the rows that have no token, they are left out of the base's distribution.
    fewer = map_tokens(base, base, len(base) + 3, len(base))
    assert fewer is not None
    assert fewer.carried[-3:].tolist() == [NOWHERE] * 3
    assert not fewer.is_identity
    assert fewer.keeps_all
    torch.testing.assert_close(fewer.carry(logits), logits[:, :-3].log_softmax(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_is_carried_to_its_first_part(kind: str) -> None:
    base, small, tokens = pair(kind)
    lost = base.get_vocab().keys() - small.get_vocab().keys()
    assert len(lost) > 5
    for token, row in base.get_vocab().items():
        target = small.convert_ids_to_tokens(int(tokens.carried[row]))
        if token not in lost:
            assert target == token
        else:
            parts = [part.value for part in small.backend_tokenizer.model.tokenize(token)]
            assert target == parts[0]
            sizes = [int(tokens.lengths[small.convert_tokens_to_ids(part)]) for part in parts]
            assert sum(sizes) == tokens.base_lengths[row]
    assert not tokens.keeps_all


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
def test_shared_positions_have_read_the_same_text(kind: str, text: str) -> None:
    base, small, tokens = pair(kind)
    base_ids, ids = (each(text, add_special_tokens=False)["input_ids"] for each in (base, small))
    assert tokens.covers_alike(base_ids, ids)
    at_base, at_own = tokens.shared(base_ids, ids)
    assert len(at_base) == len(at_own)
    if not ids:
        return
    assert (at_base[-1], at_own[-1]) == (len(base_ids) - 1, len(ids) - 1)
    for i, j in zip(at_base.tolist(), at_own.tolist(), strict=True):
        assert spelled(base, base_ids[: i + 1]) == spelled(small, ids[: j + 1])
    # None is missing: elsewhere the two have read different parts.
    read = {spelled(base, base_ids[: i + 1]) for i in range(len(base_ids))}
    assert len(read & {spelled(small, ids[: j + 1]) for j in range(len(ids))}) == len(at_base)


def spelled(tokenizer: Any, ids: list[int]) -> bytes:
    """The normalised text of some tokens, as bytes; of byte-level tokens, their characters."""
    found = b""
    for token in tokenizer.convert_ids_to_tokens(ids):
        found += bytes([int(token[3:5], 16)]) if token.startswith("<0x") and len(token) == 6 else token.encode()
    return found


def test_other_tokenizers_are_no_part_of_the_base() -> None:
    base = KINDS["byte-level"]()
    small, rows = trim(base, lambda token: False)
    assert map_tokens(small, base, len(rows), len(base)) is None  # it has more
    assert map_tokens(KINDS["byte-fallback"](), base, 420, len(base)) is None
    assert map_tokens(base, object(), len(base), 3) is None
    for change in ("normalizer", "pre_tokenizer"):
        other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(small.backend_tokenizer.to_str()))
        step = normalizers.Lowercase() if change == "normalizer" else pre_tokenizers.ByteLevel(add_prefix_space=True)
        setattr(other.backend_tokenizer, change, step)
        assert map_tokens(base, other, len(base), len(rows)) is None
    vocab = {"<pad>": 0, "a": 1}
    assert (
        map_tokens(
            tiny_tokenizer(), PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocab))), 300, 2
        )
        is None
    )


def test_tokens_without_rows_are_carried_nowhere() -> None:
    base = KINDS["byte-level"]()
    small, rows = trim(base, lambda token: False)
    tokens = map_tokens(base, small, len(base) - 2, len(rows) - 1)
    assert tokens is not None
    assert len(tokens.carried) == len(base) - 2
    assert int(tokens.carried.max()) == len(rows) - 2
    last = small.convert_ids_to_tokens(len(rows) - 1)
    assert tokens.carried[base.convert_tokens_to_ids(last)] == NOWHERE
    assert math.isclose(tokens.carry(torch.zeros(len(base) - 2)).exp().sum(), 1, rel_tol=1e-5)


def test_dropped_added_tokens_are_carried_as_text() -> None:
    base = KINDS["byte-level"]()
    base.add_tokens(["<unused0>"], special_tokens=True)
    small, rows = trim(KINDS["byte-level"](), lambda token: True)
    tokens = map_tokens(base, small, len(base), len(rows))
    assert tokens is not None
    row = base.convert_tokens_to_ids("<unused0>")
    assert small.convert_ids_to_tokens(int(tokens.carried[row])) == "<"
    text = "a<unused0>é"
    base_ids, ids = (each(text, add_special_tokens=False)["input_ids"] for each in (base, small))
    assert tokens.covers_alike(base_ids, ids)
    assert tokens.base_lengths[row] == 9
