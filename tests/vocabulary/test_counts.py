"""How often each token is expected."""

from __future__ import annotations

from collections import Counter
from itertools import repeat

import numpy as np
import pytest
import torch

from optimum_ishrink.vocabulary import counts, languages
from optimum_ishrink.vocabulary.counts import count_documents, count_ids, count_language, expected_counts, prior
from tests.helpers.trained_vocabulary import ROWS, trained_tokenizer

TEXTS = ["The import statement", "class of the object", "The"]


def test_documents_are_counted() -> None:
    tokenizer = trained_tokenizer()
    found = count_documents(TEXTS, tokenizer.backend_tokenizer, ROWS)
    expected = Counter(token for text in TEXTS for token in tokenizer(text, add_special_tokens=False)["input_ids"])
    assert {token: int(found[token]) for token in np.flatnonzero(found)} == expected
    assert found.shape == (ROWS,)


def test_ids_beyond_the_rows_do_not_count() -> None:
    assert count_documents(["import"], trained_tokenizer().backend_tokenizer, 3).tolist() == [0, 0, 0]


def test_an_endless_text_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "MOST_CHARACTERS", 10_000)
    found = count_documents(repeat("the"), trained_tokenizer().backend_tokenizer, ROWS)
    assert 0 < found.sum() <= 10_000


def test_windows_are_counted() -> None:
    assert count_ids(torch.tensor([[0, 2], [2, 2]]), 4).tolist() == [1, 0, 3, 0]


def test_words_count_by_their_frequencies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(languages, "words", lambda language: {"the": 0.4, "import": 1e-6})
    tokenizer = trained_tokenizer()
    found = count_language("en", tokenizer.backend_tokenizer, ROWS)
    (the,) = tokenizer(" the", add_special_tokens=False)["input_ids"]
    assert found.argmax() == the
    assert found[the] == pytest.approx(0.4 * 0.78)
    lengths = {
        form: len(tokenizer(form, add_special_tokens=False)["input_ids"]) for form in languages.written_forms("en")[0]
    }
    shares = dict(zip(*languages.written_forms("en"), strict=True))
    assert found.sum() == pytest.approx(sum(shares[form] * lengths[form] for form in shares))


def test_the_prior_falls_with_the_place() -> None:
    found = prior(["a", "b", "c", None], [], 5)
    assert found[0] > found[1] > found[2] > 0
    assert found[3] == found[4] == 0  # no text of its own, and no token


def test_the_prior_knows_scripts_and_words_of_other_languages() -> None:
    texts = [" the", " und", " Привет", " zzq", "的", "12"]
    rows = len(texts)
    plain, english = prior(texts, [], rows), prior(texts, ["en"], rows)
    assert np.allclose(english / plain, [1, 0.2, 0, 1, 0, 1])
    assert np.allclose(prior(texts, ["en", "ru"], rows) / plain, [1, 0.2, 1, 1, 0, 1])


def test_what_is_expected_is_a_mixture() -> None:
    text, language, place = np.array([1.5, 0.5, 0]), np.array([0, 0, 2.0]), np.array([1.0, 1, 2])
    found = expected_counts([text], [language], place)
    assert np.allclose(found, [0.25 + 0.15, 0.15, 0.15 + 0.3])  # half a count is taken from each token of a text
    assert np.allclose(expected_counts([], [language], place), np.array([0.15, 0.15, 0.45]) / 0.75)
    assert np.allclose(expected_counts([text, np.zeros(3)], [], np.zeros(3)), [1, 0, 0])
    assert expected_counts([], [], np.zeros(3)).tolist() == [0, 0, 0]
