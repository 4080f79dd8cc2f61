"""Windows of a text for a base and a model with fewer tokens, and what is measured on them."""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from optimum_ishrink.errors import DataError, NotFiniteError
from optimum_ishrink.evaluation.comparison import compare_text
from optimum_ishrink.evaluation.passages import text_windows
from optimum_ishrink.evaluation.shared_windows import SharedWindow, shared_windows
from optimum_ishrink.evaluation.text_quality import (
    WindowFigures,
    figure_measurements,
    same_tokens,
    shared_figures,
    window_figures,
)
from optimum_ishrink.evaluation.text_statistics import shared_statistics
from optimum_ishrink.text.token_map import TokenMap, map_tokens
from tests.helpers.tiny import tiny_config, tiny_model
from tests.helpers.trimmed import KINDS, TEXTS, byte_level_tokenizer, trim


@cache
def pair(kind: str, begins: bool = False) -> tuple[Any, Any, TokenMap, list[int]]:
    """A tokenizer, the same with half of its longer tokens, how they correspond, and the rows that stay."""
    base = KINDS[kind]()
    if begins:
        start = [("<s>", base.convert_tokens_to_ids("<s>"))]
        base.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=start)
    small, rows = trim(base, lambda token: len(token) % 2 == 0)
    found = map_tokens(base, small, len(base), len(rows))
    assert found is not None
    return base, small, found, rows


def models_of(rows: list[int], total: int) -> tuple[Any, Any]:
    """A base, and a model that has some rows of it and is else the same."""
    base = tiny_model(tiny_config("llama", vocab_size=total))
    small = tiny_model(tiny_config("llama", vocab_size=len(rows)), seed=1)
    small.model.layers, small.model.norm = base.model.layers, base.model.norm
    with torch.no_grad():
        small.model.embed_tokens.weight.copy_(base.model.embed_tokens.weight[rows])
        small.lm_head.weight.copy_(base.lm_head.weight[rows])
    return base, small


@pytest.mark.parametrize("begins", [False, True], ids=["plain", "bos"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_read_and_predict_the_same_text(kind: str, begins: bool) -> None:
    base, small, tokens, _ = pair(kind, begins)
    found = shared_windows(TEXTS, base, small, tokens, 24, 9, seed=1, label="words")
    ordinary = text_windows(TEXTS, base, 24, 9, seed=1, label="words")
    assert found is not None
    assert ordinary.passages is not None
    equal = 0
    for window, ids, passage in zip(found, ordinary.ids, ordinary.passages, strict=True):
        parts = [
            (window.base_ids[: window.base_context], window.ids[: window.context]),
            (window.base_ids[window.base_context :], window.ids[window.context :]),
            *((window.base_ids[: i + 1], window.ids[: j + 1]) for i, j in zip(window.base_at, window.at, strict=True)),
        ]
        for old, new in parts:
            assert base.decode(old) == small.decode(new)
        assert window.base_at[0] == window.base_context - 1
        assert window.at[0] == window.context - 1
        assert window.at[-1] < len(window.ids) - 1
        if begins:
            assert (window.base_context, window.context) == (1, 1)
            assert small.convert_ids_to_tokens(int(window.ids[0])) == "<s>"
        if torch.equal(window.base_ids, ids):
            assert window.bytes == passage.bytes
            equal += 1
    assert equal >= 6  # a window differs only where the smaller tokenizer has a token across its end
    assert any(not window.all_shared for window in found)


@given(documents=st.lists(st.one_of(st.text(max_size=20), st.sampled_from(TEXTS)), min_size=1, max_size=8))
@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_windows_of_any_documents(kind: str, documents: list[str]) -> None:
    base, small, tokens, _ = pair(kind)
    try:
        ordinary = text_windows(documents, base, 12, 1, seed=0, label="words")
        found = shared_windows(documents, base, small, tokens, 12, 1, seed=0, label="words")
    except DataError:
        return
    assert found is not None
    (window,) = found
    same = shared_windows(documents, base, base, map_tokens(base, base, 500, 500), 12, 1, seed=0, label="words")
    assert same is not None
    assert torch.equal(same[0].ids, ordinary.ids[0])
    assert same[0].all_shared
    assert same[0].bytes == (ordinary.passages or ())[0].bytes
    assert window.bytes <= same[0].bytes
    ends = [(ids == each.eos_token_id).sum() for ids, each in ((window.base_ids, base), (window.ids, small))]
    assert ends[0] == ends[1]


def test_a_context_of_text_where_only_one_begins_with_a_token() -> None:
    base, _, _, _ = pair("byte-level", True)
    small, rows = trim(KINDS["byte-level"](), lambda token: len(token) % 2 == 0)
    tokens = map_tokens(base, small, len(base), len(rows))
    assert tokens is not None
    (window,) = shared_windows(TEXTS, base, small, tokens, 24, 1, seed=1, label="words") or ()
    assert base.convert_ids_to_tokens(int(window.base_ids[0])) == "<s>"
    assert window.base_context >= 2
    context = base.decode(window.base_ids[1 : window.base_context])
    assert context == small.decode(window.ids[: window.context]) != ""


def test_a_window_ends_where_the_model_has_no_more_positions() -> None:
    base, small, tokens, _ = pair("byte-level")
    long = shared_windows(TEXTS, base, small, tokens, 24, 3, seed=1, label="words") or ()
    assert any(len(window.ids) > 25 for window in long)
    short = shared_windows(TEXTS, base, small, tokens, 24, 3, seed=1, label="words", limits=(24, 25)) or ()
    for before, after in zip(long, short, strict=True):
        assert len(after.ids) <= 25
        assert torch.equal(after.ids, before.ids[: len(after.ids)])
        assert torch.equal(after.base_ids, before.base_ids[: len(after.base_ids)])
        assert base.decode(after.base_ids) == small.decode(after.ids)
    with pytest.raises(DataError, match="too few boundaries between tokens in common in a window of words"):
        shared_windows(TEXTS, base, small, tokens, 24, 3, seed=1, label="words", limits=(24, 1))


def test_text_that_one_has_no_token_for() -> None:
    vocab = {"<unk>": 0, "a": 1, "é": 2, "b": 3}
    base = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab, [], unk_token="<unk>")))
    del vocab["é"], vocab["b"]
    small = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab, [], unk_token="<unk>")))
    tokens = map_tokens(base, small, 4, 2)
    assert tokens is not None
    assert shared_windows(["aéaaab"], base, small, tokens, 4, 1, seed=0, label="words") is None
    (window,) = shared_windows(["aaaxaa"], base, small, tokens, 6, 1, seed=0, label="words") or ()
    assert window.all_shared  # unknown to both


def test_one_of_two_has_no_token_for_the_end_of_a_text() -> None:
    base, small, tokens, _ = pair("byte-level")
    ending, silent = small.backend_tokenizer.to_str(), base.backend_tokenizer.to_str()
    mute = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(ending))
    (window,) = shared_windows(["ab", "", "cd"], base, mute, tokens, 7, 1, seed=0, label="words") or ()
    assert (window.base_ids == base.eos_token_id).sum() == 3
    assert len(window.ids) == 4
    pairs = list(zip(window.base_at.tolist(), window.at.tolist(), strict=True))
    assert len({j for _, j in pairs}) == len(pairs)
    mute = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(silent))
    (window,) = shared_windows(["ab", "", "cd"], mute, small, tokens, 4, 1, seed=0, label="words") or ()
    assert len(set(window.base_at.tolist())) == len(window.at)


class Fixed(torch.nn.Module):
    """A model with given logits, by position."""

    device = torch.device("cpu")

    def __init__(self, probabilities: list[list[float]]) -> None:
        super().__init__()
        self.logits = torch.tensor(probabilities).log()

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.logits[: input_ids.shape[1]][None])


def test_a_case_worked_by_hand() -> None:
    """The base has a, b and ab; the model a and b. The text is "aabb": a|ab|b for the base and a|a|b|b for the model.

    The first a is context. Both predict after it, and after "aab": there the base's ab goes to a, so 0.2, 0.3, 0.5 are
    carried to 0.7, 0.3, and 0.1, 0.8, 0.1 to 0.2, 0.8. Within "ab" only the model predicts, a b with 0.5.
    """
    tokens = TokenMap(torch.tensor([0, 1, 0]), torch.tensor([1, 1, 2]), torch.tensor([1, 1]))
    window = SharedWindow(
        torch.tensor([0, 2, 1]), 1, torch.tensor([0, 0, 1, 1]), 1, torch.tensor([0, 1]), torch.tensor([0, 2]), 3
    )
    base = Fixed([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1], [1, 1, 1]])
    model = Fixed([[0.4, 0.6], [0.5, 0.5], [0.25, 0.75], [1, 1]])
    kl = [
        0.7 * math.log(0.7 / 0.4) + 0.3 * math.log(0.3 / 0.6),
        0.2 * math.log(0.2 / 0.25) + 0.8 * math.log(0.8 / 0.75),
    ]
    found = shared_statistics(model, base, window, tokens)
    assert found["kl"].tolist() == pytest.approx(kl, rel=1e-5)
    assert found["agree"].tolist() == [0, 1]  # ab, carried to a, against b; then b against b
    assert found["base_nll"].tolist() == pytest.approx([-math.log(0.5), -math.log(0.8)])
    assert sorted(found["nll"].tolist()) == pytest.approx(sorted(-math.log(p) for p in (0.4, 0.5, 0.75)))
    old, new = shared_figures(model, base, [window], tokens, "words")
    assert new.divergence == pytest.approx([sum(kl) / 2], rel=1e-5)
    assert (new.agreement, new.shared, new.tokens, old.tokens, new.bytes) == ((0.5,), (2,), (3,), (2,), (3,))
    how = {"per_token": False, "counts_tokens": True}
    before, after = (
        {each.metric: each for each in figure_measurements(figures, "words", {"seed": 0}, **how)}
        for figures in (old, new)
    )
    assert list(before) == ["bits_per_byte", "tokens_per_byte"]
    assert list(after) == ["bits_per_byte", "tokens_per_byte", "kl_divergence", "top1_agreement"]
    assert before["bits_per_byte"].value == pytest.approx(-math.log2(0.5 * 0.8) / 3)
    assert after["bits_per_byte"].value == pytest.approx(-math.log2(0.4 * 0.5 * 0.75) / 3)
    assert (before["tokens_per_byte"].value, after["tokens_per_byte"].value) == (2 / 3, 1)
    assert after["kl_divergence"].settings == {"seed": 0, "tokens": 3, "carried": True, "shared": 2 / 3}
    assert after["bits_per_byte"].settings == {"seed": 0, "tokens": 3, "bytes": 3}


@pytest.mark.parametrize("padding", [(0, 0), (3, 0), (3, 2)])
@pytest.mark.parametrize("order", ["same", "renumbered"])
def test_where_nothing_was_removed_the_figures_are_the_ordinary_ones(order: str, padding: tuple[int, int]) -> None:
    tokenizer = byte_level_tokenizer()
    count = len(tokenizer)
    rows = (
        torch.arange(count) if order == "same" else torch.randperm(count, generator=torch.Generator().manual_seed(0))
    )
    other = byte_level_tokenizer()
    if order != "same":
        other = renumbered(tokenizer, rows)
    base, plain = (tiny_model(tiny_config("llama", vocab_size=count), seed=seed) for seed in (0, 1))
    windows = text_windows(TEXTS, tokenizer, 24, 6, seed=0, label="words")
    old, new = window_figures(plain, base, windows, "words")
    # The same two models; rows without a token are so improbable as they are after training.
    padded = with_rows(base, torch.arange(count), padding[0])
    model = with_rows(plain, rows, padding[1])
    tokens = map_tokens(tokenizer, other, count + padding[0], count + padding[1])
    assert tokens is not None
    shared = shared_windows(TEXTS, tokenizer, other, tokens, 24, 6, seed=0, label="words")
    assert shared is not None
    assert same_tokens(shared, tokens)
    found_old, found = shared_figures(model, padded, shared, tokens, "words")
    for ours, theirs in ((found_old, old), (found, new)):
        assert (ours.tokens, ours.bytes, ours.agreement) == (theirs.tokens, theirs.bytes, theirs.agreement)
        assert ours.nll == pytest.approx(theirs.nll, rel=1e-5)
        assert ours.shared is None
    assert found.divergence == pytest.approx(new.divergence, rel=1e-4)
    _, itself = shared_figures(with_rows(base, rows, padding[1]), padded, shared, tokens, "words")
    assert itself.divergence == pytest.approx([0.0] * 6, abs=1e-6)
    assert itself.agreement == (1.0,) * 6
    if tokens.is_identity:
        _, exact = shared_figures(padded, padded, shared, tokens, "words")
        assert exact.divergence == (0.0,) * 6


def renumbered(tokenizer: Any, rows: torch.Tensor) -> Any:
    """The tokenizer with other ids: token `rows[i]` gets i."""
    import json

    data = json.loads(tokenizer.backend_tokenizer.to_str())
    new = {int(row): i for i, row in enumerate(rows)}
    data["model"]["vocab"] = {token: new[row] for token, row in data["model"]["vocab"].items()}
    for each in data["added_tokens"]:
        each["id"] = new[each["id"]]
    data["added_tokens"].sort(key=lambda each: each["id"])
    names = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)), **names)


def with_rows(model: Any, rows: torch.Tensor, padding: int) -> Any:
    """A copy of the model with these rows of embedding and head, and rows after them that are never predicted."""

    class Padded(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            logits = model(input_ids=rows[input_ids], use_cache=False).logits[..., rows]
            return SimpleNamespace(logits=torch.nn.functional.pad(logits, (0, padding), value=-40.0))

    return Padded()


def test_a_head_with_fewer_rows_diverges_by_the_mass_that_moves() -> None:
    """Where the text has no removed token, hidden states are equal, and the divergence has a closed form."""
    base_tokenizer, tokenizer, tokens, rows = pair("byte-level")
    base, model = models_of(rows, len(base_tokenizer))
    removed = [row for row in range(len(base_tokenizer)) if row not in rows]
    text = "QXJ-KWV+PYB=" * 12
    windows = shared_windows([text], base_tokenizer, tokenizer, tokens, 24, 5, seed=0, label="words") or ()
    _, figures = shared_figures(model, base, windows, tokens, "words")
    assert figures.divergence is not None
    for window, divergence in zip(windows, figures.divergence, strict=True):
        assert [rows[i] for i in window.ids.tolist()] == window.base_ids.tolist()
        with torch.no_grad():
            p = base(window.base_ids[None]).logits[0, :-1].double().softmax(-1)
        kept = p[:, rows]
        moved = torch.zeros_like(kept)
        for row in removed:
            first = tokenizer.backend_tokenizer.model.tokenize(base_tokenizer.convert_ids_to_tokens(row))[0].id
            moved[:, first] += p[:, row]
        expected = (kept + moved) * ((kept + moved).log() - (kept / kept.sum(-1, keepdim=True)).log())
        assert divergence == pytest.approx(expected.sum(-1).mean().item(), rel=1e-4)
        assert divergence > 0.01


@pytest.mark.parametrize("begins", [False, True], ids=["plain", "bos"])
@pytest.mark.parametrize("kind", KINDS)
def test_figures_agree_with_a_direct_computation(kind: str, begins: bool) -> None:
    base_tokenizer, tokenizer, tokens, rows = pair(kind, begins)
    base, model = models_of(rows, len(base_tokenizer))
    windows = shared_windows(TEXTS, base_tokenizer, tokenizer, tokens, 24, 3, seed=0, label="words") or ()
    old, new = shared_figures(model, base, windows, tokens, "words")
    for number, window in enumerate(windows):
        with torch.no_grad():
            p, q = (
                each(ids[None]).logits[0].double().log_softmax(-1)
                for each, ids in ((base, window.base_ids), (model, window.ids))
            )
        for figures, log_p, ids, context in (
            (old, p, window.base_ids, window.base_context),
            (new, q, window.ids, window.context),
        ):
            nll = -sum(log_p[i - 1, ids[i]].item() for i in range(context, len(ids)))
            assert figures.nll[number] == pytest.approx(nll, rel=1e-5)
            assert figures.tokens[number] == len(ids) - context
        values, same = [], []
        shared = set(zip(window.base_at.tolist(), window.at.tolist(), strict=True))
        for i in range(window.base_context, len(window.base_ids)):
            for j in range(window.context, len(window.ids)):
                if (i - 1, j - 1) in shared and (
                    base_tokenizer.decode(window.base_ids[:i]) == tokenizer.decode(window.ids[:j])
                ):
                    moved = torch.zeros(len(rows), dtype=torch.float64)
                    moved.index_add_(0, tokens.carried, p[i - 1].exp())
                    values.append(float((moved * (moved.log() - q[j - 1])).nansum()))
                    same.append(int(tokens.carried[p[i - 1].argmax()] == q[j - 1].argmax()))
        assert len(values) == len(window.at) == (new.shared or ())[number]
        assert (new.divergence or ())[number] == pytest.approx(sum(values) / len(values), rel=1e-4)
        assert (new.agreement or ())[number] == pytest.approx(sum(same) / len(same))


def test_tokens_per_byte_are_compared_in_pairs() -> None:
    size = (10,) * 12
    base, small = (WindowFigures((10.0,) * 12, (count,) * 12, size) for count in (4, 5))
    found = {each.metric: each for each in compare_text(base, small, "words", per_token=False, counts_tokens=True)}
    assert set(found) == {"bits_per_byte", "tokens_per_byte"}
    compared = found["tokens_per_byte"]
    assert (compared.ratio, compared.ratio_low, compared.ratio_high) == pytest.approx((1.25, 1.25, 1.25))
    assert compared.difference == pytest.approx(0.1)
    assert (compared.verdict, compared.higher_is_better) == ("worse", False)
    assert [each.metric for each in compare_text(base, small, "words", per_token=False)] == ["bits_per_byte"]


@pytest.mark.parametrize("damaged", ["new", "old"])
def test_a_loss_that_is_no_number_names_model_and_text(damaged: str) -> None:
    base_tokenizer, tokenizer, tokens, rows = pair("byte-level")
    base, model = models_of(rows, len(base_tokenizer))
    with torch.no_grad():
        (model if damaged == "new" else base).lm_head.weight[5] = math.nan
    windows = shared_windows(TEXTS, base_tokenizer, tokenizer, tokens, 24, 1, seed=0, label="words") or ()
    with pytest.raises(NotFiniteError, match=f"{damaged} gives NaN on words.txt, first in lm_head"):
        shared_figures(model, base, windows, tokens, "words.txt", ("new", "old"))
