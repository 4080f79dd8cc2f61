"""The page that suggests the next words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.app.conftest import until

Visit = Callable[..., Any]


def test_words_are_suggested_and_taken(visit: Visit, server: str) -> None:
    page = visit(f"{server}suggest.html")
    page.click("#load")
    page.wait_for_selector("[data-state=ready]")
    page.fill("#text", "We see. ")
    page.wait_for_selector("#suggestions button:not([disabled])")
    assert page.locator("#suggestions .word").first.inner_text() == "The"
    assert page.locator("#suggestions .figures").first.inner_text().endswith(" ms")
    page.press("#text", "Tab")
    assert page.input_value("#text") == "We see. The "
    until(page, "document.querySelector('#suggestions .word').textContent === 'river'")
    page.locator("#suggestions button").first.click()
    assert page.input_value("#text") == "We see. The river "
    until(page, "document.querySelector('#suggestions .word').textContent === 'is'")
    page.press("#text", "Escape")
    assert page.locator("#suggestions button:not([disabled])").count() == 0
    rows = page.locator("#latency-rows tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == ["last", "median", "90th percentile", "within 50 ms"]
    assert rows[3].endswith("of 3")
    assert "runs of the model" in page.locator("#verdict").inner_text()


def test_the_other_model_suggests_when_chosen(visit: Visit, server: str) -> None:
    page = visit(f"{server}suggest.html")
    page.check("input[value=base]")
    page.click("#load")
    page.wait_for_selector("[data-state=ready]")
    page.fill("#text", "The river is")
    page.wait_for_selector("#suggestions button:not([disabled])")
    assert "base" in page.locator("#models").inner_text()
