"""Words of languages, their forms and scripts."""

from __future__ import annotations

import re

import pytest

from optimum_ishrink.errors import RequestError
from optimum_ishrink.vocabulary.languages import (
    RAREST,
    check_languages,
    foreign_words,
    languages_of,
    own_scripts,
    script,
    script_name,
    scripts,
    word_of,
    words,
    written_forms,
)


def test_languages_are_checked() -> None:
    assert check_languages(["EN", " de", "en"]) == ("en", "de")
    assert check_languages(["none"]) == ()
    with pytest.raises(RequestError, match="unknown language with word frequencies 'xx'.*; allowed: .*de, .*en, "):
        check_languages(["en", "xx"])
    with pytest.raises(RequestError, match=re.escape("vocab_languages cannot be 'none' and a language; leave one")):
        check_languages(["none", "en"])


def test_words_come_with_their_shares() -> None:
    found = words("en")
    shares = list(found.values())
    assert shares == sorted(shares, reverse=True)
    assert next(iter(found)) == "the" and 0.05 < found["the"] < 0.06
    assert shares[-1] >= RAREST and 0.9 < sum(shares) < 1
    assert not any(character.isdigit() for word in found for character in word)


def test_forms_share_what_their_word_has() -> None:
    texts, shares = written_forms("en")
    found = dict(zip(texts, shares, strict=True))
    assert len(texts) < 100_000
    assert sum(shares) == pytest.approx(sum(words("en").values()))
    forms = [" the", " The", "the", "The", " THE", "THE"]
    assert sum(found[form] for form in forms) == pytest.approx(words("en")["the"])
    assert all(found[form] < found[" the"] for form in forms[1:])
    rare = list(words("en"))[-1]
    assert found[f" {rare}"] == words("en")[rare] and rare not in found


def test_a_language_without_spaces_has_words_alone() -> None:
    texts, shares = written_forms("ja")
    assert texts == list(words("ja")) and shares == list(words("ja").values())


def test_scripts_are_counted_by_letter() -> None:
    assert script("a") == "LATIN" and script("я") == "CYRILLIC" and script("你") == "CJK"
    assert script("1") == script(" ") == ""
    assert scripts(["ab я", "1!", "c"]) == {"LATIN": 3, "CYRILLIC": 1}
    assert [script_name(name) for name in ("LATIN", "CJK")] == ["Latin", "CJK"]


def test_a_language_has_its_own_scripts() -> None:
    assert own_scripts("en") == {"LATIN"}
    assert "CYRILLIC" in own_scripts("ru") and "CYRILLIC" not in own_scripts("de")
    assert {"HIRAGANA", "KATAKANA", "CJK"} <= own_scripts("ja")


def test_what_is_too_short_or_no_word_is_of_no_language() -> None:
    assert word_of(" Und") == "und" and word_of(" is") == word_of("a1b") == word_of("...") == ""


def test_words_of_other_languages_are_known() -> None:
    wanted = frozenset(["und", "the", "zzqj", "pour", ""])
    assert {word: language for word, (language, _) in languages_of(wanted).items()} == {
        "und": "de",
        "the": "en",
        "pour": "fr",
    }
    assert foreign_words(wanted, ("en",)) == {"und": "de", "pour": "fr"}
    assert foreign_words(wanted, ("en", "de")) == {"pour": "fr"}
