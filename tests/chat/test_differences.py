from __future__ import annotations

from optimum_ishrink.chat.differences import compare_words


def test_words_of_one_text_alone_are_marked() -> None:
    found = compare_words("The sky is very blue.", "The sea is blue. Always.")
    assert found.parts == (
        ("same", "The"),
        ("removed", "sky"),
        ("added", "sea"),
        ("same", "is"),
        ("removed", "very"),
        ("same", "blue."),
        ("added", "Always."),
    )
    assert (found.common, found.words, found.same) == (3, 5, False)


def test_white_space_is_no_difference_but_lines_are() -> None:
    assert compare_words("a  b\n", " a b").same
    assert compare_words("", "").same
    found = compare_words("a b", "a\nb")
    assert found.parts == (("same", "a"), ("added", "\n"), ("same", "b"))
    assert (found.common, found.words) == (2, 2)
    assert compare_words("one\n\ntwo three", "one\n\ntwo three").parts == (("same", "one\n\ntwo three"),)


def test_one_text_is_empty() -> None:
    assert compare_words("a b", "").parts == (("removed", "a b"),)
    assert compare_words("", "a b").parts == (("added", "a b"),)
