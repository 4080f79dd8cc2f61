"""What a language's words are, how frequent, and in which forms they are written: offline, from `wordfreq`."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from ..errors import RequestError, unknown_name

NONE = "none"
"""Stands for no language: the text alone decides."""

RAREST = 3e-7
"""Words rarer than this do not count: of English some 55,000 words are left, with 99 % of what the list has.

With more of them the choice is no better (see docs/experiments/vocabulary.md), and takes as much longer.
"""

_FORMS = ((" {}", 0.78), (" {^}", 0.12), ("{}", 0.04), ("{^}", 0.04), (" {^^}", 0.01), ("{^^}", 0.01))
"""Forms of a word, with the share of its occurrences that is written so: within a line, at its beginning, capitalised.

The list has words in lower case. The shares are those of English prose, rounded; German nouns are capitalised more.
"""

_FORMS_FROM = ((3e-5, len(_FORMS)), (3e-6, 2), (0.0, 1))
"""How many of the forms count for words from a share on: the rare forms of rare words would be most of the work."""

_UNSPACED = ("zh", "ja", "th", "lo", "km", "my")
"""Languages that are written without spaces between words."""

_OWN_SCRIPT = 0.01
"""A script counts as a language's own when it writes this share of its occurrences of letters."""


def check_languages(codes: Sequence[str]) -> tuple[str, ...]:
    """Return the languages to count, without `none`.

    Args:
        codes: Two-letter codes.

    Raises:
        RequestError: There is no list of a language's words; the message names the languages that there are.
    """
    wanted = tuple(dict.fromkeys(code.strip().lower() for code in codes))
    if NONE in wanted:
        if len(wanted) > 1:
            raise RequestError("vocab_languages cannot be 'none' and a language; leave one out")
        return ()
    import wordfreq

    known = wordfreq.available_languages("best")
    for code in wanted:
        if code not in known:
            raise RequestError(unknown_name("language with word frequencies", code, known))
    return wanted


@cache
def words(language: str) -> dict[str, float]:
    """Return a language's words with their shares of all its words, the most frequent first. Without numbers.

    Args:
        language: A code that `check_languages` accepts.
    """
    return {
        word: share
        for share, alike in _by_frequency(language, "best")
        if share >= RAREST
        for word in alike
        if word.isalpha() or not any(character.isdigit() for character in word)
    }


def _by_frequency(language: str, size: str) -> Iterator[tuple[float, list[str]]]:
    """Yield the shares of a language's list, descending, each with the words that have it."""
    import wordfreq

    for hundredths, alike in enumerate(wordfreq.get_frequency_list(language, wordlist=size)):
        if alike:
            yield wordfreq.cB_to_freq(-hundredths), alike


def written_forms(language: str) -> tuple[list[str], list[float]]:
    """Return the forms in which a language's words are written, and how often each occurs.

    Rare words count in their most frequent forms alone: the others would be most of the work and change nothing.

    Args:
        language: A code.

    Returns:
        Texts, most with a space before the word, and their shares of all words.
    """
    texts: list[str] = []
    shares: list[float] = []
    spaced = language not in _UNSPACED
    for word, share in words(language).items():
        rest = 1.0
        for form, part in _FORMS[1 : _forms(share)] if spaced else ():
            texts.append(form.replace("{^^}", word.upper()).replace("{^}", word.capitalize()).replace("{}", word))
            shares.append(share * part)
            rest -= part
        texts.append(f" {word}" if spaced else word)
        shares.append(share * rest)
    return texts, shares


def _forms(share: float) -> int:
    """Return in how many forms a word counts."""
    return next(count for least, count in _FORMS_FROM if share >= least)


_MORE_FREQUENT = 3
"""A word is of another language when that uses it so much more often."""


def word_of(text: str) -> str:
    """Return a token's text as it would stand in a list of words; "" for what is too short to be of one language.

    Args:
        text: The text.
    """
    word = text.strip().lower()
    return word if len(word) > 2 and word.isalpha() else ""


def languages_of(wanted: frozenset[str]) -> dict[str, tuple[str, float]]:
    """Return which language uses each word most, with the word's share of that language's words.

    Args:
        wanted: Words in lower case; one that no language has is left out.
    """
    import wordfreq

    best: dict[str, tuple[str, float]] = {}
    for language in sorted(wordfreq.available_languages("small")):
        for share, alike in _by_frequency(language, "small"):
            for word in wanted.intersection(alike):
                if share > best.get(word, ("", 0.0))[1]:
                    best[word] = (language, share)
    return best


def foreign_words(wanted: frozenset[str], languages: tuple[str, ...]) -> dict[str, str]:
    """Return the words that other languages use much more often, each with its language.

    Args:
        wanted: Words in lower case.
        languages: The codes that are not foreign.
    """
    own = [words(language) for language in languages]
    return {
        word: language
        for word, (language, share) in languages_of(wanted).items()
        if language not in languages and share > _MORE_FREQUENT * max((each.get(word, 0.0) for each in own), default=0)
    }


@cache
def script(character: str) -> str:
    """Return the script of a letter as its Unicode name begins (`LATIN`, `CJK`, `HIRAGANA`), and "" for others.

    Args:
        character: One character.
    """
    if not character.isalpha():
        return ""
    return unicodedata.name(character, "OTHER").split(" ")[0].split("-")[0]


def script_name(name: str) -> str:
    """Return a script as it is written in a sentence.

    Args:
        name: What `script` returned.
    """
    return name if name == "CJK" else name.capitalize()


def scripts(texts: Iterable[str]) -> Counter[str]:
    """Return how many letters of each script texts have.

    Args:
        texts: The texts.
    """
    characters = Counter("".join(texts))
    found: Counter[str] = Counter()
    for character, count in characters.items():
        if name := script(character):
            found[name] += count
    return found


@cache
def own_scripts(language: str) -> frozenset[str]:
    """Return the scripts that a language is written in.

    Args:
        language: A code.
    """
    found = scripts(words(language))
    total = sum(found.values())
    return frozenset(name for name, count in found.items() if count >= _OWN_SCRIPT * total)
