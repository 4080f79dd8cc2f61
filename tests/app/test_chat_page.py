"""The chat page in a browser, with models that always answer the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import HTML, until
from tests.app.scripted import scripted_gguf
from tests.app.sites import write_site

Visit = Callable[..., Any]
Host = Callable[[Path], str]

SMALL_TEXT = f"The river is wide. See {HTML} It flows east."
BASE_TEXT = "The river is long and wide. It flows."


def ask(page: Any, prompt: str = "What do you see?") -> None:
    page.wait_for_selector("#send:not([disabled])")
    page.fill("#prompt", prompt)
    page.keyboard.press("Enter")


def answered(page: Any, turns: int = 1) -> None:
    """Wait until every shown answer of this many turns stands."""
    page.wait_for_selector("#send:not([hidden])", state="visible")
    assert page.locator(".turn").count() == turns
    assert page.locator(".answer:not([data-state=done])").all_inner_texts() == []


@pytest.fixture
def endless(page_folder: Path, tiny_ggufs: dict[str, Path], tmp_path: Path, host: Host) -> str:
    """A site of one model that does not stop by itself."""
    return host(write_site(page_folder, [("shrunk", tiny_ggufs["endless"])], tmp_path))


def test_both_models_answer_in_turn(visit: Visit, server: str) -> None:
    page = visit(server)
    ask(page)
    answered(page)
    assert page.locator(".answer.shrunk .answer-text").inner_text() == SMALL_TEXT
    assert page.locator(".answer.base .answer-text").inner_text() == BASE_TEXT
    figures = page.locator(".answer.shrunk .figures").inner_text().replace("\u00a0", " ")
    assert "first token" in figures and "tokens/s" in figures and "9 tokens" in figures
    ask(page)
    answered(page, turns=2)
    stored = page.evaluate("Object.entries(localStorage).find(([key]) => key.startsWith('ishrink conversation'))[1]")
    assert [turn["first"] for turn in json.loads(stored)["turns"]] == ["shrunk", "base"]
    heard = page.locator("#announcer p").all_inner_texts()
    assert [text for text in heard if "answers" in text] == [
        "Shrunk answers:", "Base answers:", "Base answers:", "Shrunk answers:",
    ]  # fmt: skip
    assert "The river is wide." in heard


def test_model_output_and_prompts_stay_text(visit: Visit, server: str) -> None:
    page = visit(server)
    ask(page, f"{HTML} <b>bold</b>")
    answered(page)
    page.click("#marks")
    page.reload()
    assert HTML in page.locator(".answer.shrunk .answer-text").inner_text()
    assert HTML in page.locator(".prompt").inner_text()
    assert page.locator(".transcript img, .transcript b").count() == 0
    assert page.evaluate("window.hacked") is None


def test_differences_are_marked_by_words(visit: Visit, server: str) -> None:
    page = visit(server)
    ask(page)
    answered(page)
    assert page.locator("mark").count() == 0
    page.click("#marks")
    assert page.locator(".answer.base mark").all_inner_texts() == ["long and"]
    assert page.locator(".answer.shrunk mark").all_inner_texts() == [f"See {HTML}", "east"]
    assert page.locator("#marks").get_attribute("aria-pressed") == "true"
    assert "underline" in page.locator("mark").first.evaluate("(mark) => getComputedStyle(mark).textDecorationLine")


def test_an_answer_streams_and_stops_where_the_user_says(visit: Visit, endless: str) -> None:
    page = visit(endless, settings='{"threads":1,"maxNewTokens":5000}')
    ask(page)
    until(page, "document.querySelector('.answer-text')?.textContent.length > 20")
    assert page.locator(".answer").get_attribute("data-state") == "streaming"
    page.keyboard.press("Escape")
    answered(page)
    text = page.locator(".answer-text").inner_text()
    assert set(text.split()) == {"on", "and"}
    assert "stopped" in page.locator(".answer .figures").inner_text()
    ask(page, "Again")
    page.click("#stop")
    page.wait_for_selector("#send:not([hidden])")
    assert page.locator(".turn").count() == 2


def test_regenerating_swaps_the_order(visit: Visit, server: str) -> None:
    page = visit(server)
    ask(page)
    answered(page)
    page.click("text=Regenerate")
    answered(page)
    heard = page.locator("#announcer p").all_inner_texts()
    assert [text for text in heard if "answers" in text][2:] == ["Base answers:", "Shrunk answers:"]


def test_one_model_alone_can_be_asked(visit: Visit, server: str) -> None:
    page = visit(server)
    page.check("input[name=shown][value=base]")
    ask(page)
    answered(page)
    assert page.locator(".answer").count() == 1
    assert page.locator(".answer-text").inner_text() == BASE_TEXT
    assert page.locator("#models [data-state=idle]").count() == 1


def test_the_conversation_stays_and_can_be_exported_and_cleared(visit: Visit, server: str) -> None:
    page = visit(server)
    ask(page)
    answered(page)
    page.reload()
    assert page.locator(".answer.base .answer-text").inner_text() == BASE_TEXT
    page.click("#menu summary")
    with page.expect_download() as saved:
        page.click("#export")
    content = json.loads(Path(saved.value.path()).read_text())
    assert content["kind"] == "ishrink-conversation"
    assert content["turns"][0]["answers"]["base"]["text"] == BASE_TEXT
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#menu summary")
    page.click("#copy-markdown")
    page.wait_for_selector("text=Copied.")
    assert f"### Base (base)\n\n{BASE_TEXT}\n\n*first token" in page.evaluate("navigator.clipboard.readText()")
    page.click("#menu summary")
    page.click("#clear")
    page.reload()
    assert page.locator(".turn").count() == 0


def test_a_full_context_offers_room(visit: Visit, endless: str) -> None:
    page = visit(endless, settings='{"threads":1,"maxNewTokens":100,"contextTokens":512}')
    turn = 0
    while not page.locator("#chat-notice").is_visible():
        turn += 1
        ask(page, "word " * 30)
        page.wait_for_selector("#send:not([hidden])")
    assert turn > 1
    assert "does not fit into the 512 tokens" in page.locator("#chat-notice").inner_text()
    page.get_by_role("button", name="Leave out the oldest turns").click()
    until(page, "[...document.querySelectorAll('.answer')].every((one) => one.dataset.state === 'done')")
    answered(page, turns=turn)
    assert page.locator(".turn.dropped").count() >= 1


def test_settings_reach_the_model(visit: Visit, endless: str) -> None:
    page = visit(endless)
    page.click("#open-settings")
    assert "0.2 (from the model's generation config)" in page.locator("#temperature-hint").inner_text()
    page.fill("#max-new-tokens", "7")
    page.click("text=Save")
    ask(page)
    answered(page)
    figures = page.locator(".answer .figures").inner_text().replace("\u00a0", " ")
    assert figures.endswith("7 tokens · ended at the limit")


def test_a_model_without_a_template_continues_the_text(
    visit: Visit, host: Host, page_folder: Path, tmp_path: Path
) -> None:
    model = scripted_gguf(tmp_path / "bare.gguf", (" once", " more."), template=None)
    site = write_site(page_folder, [("shrunk", model)], tmp_path / "site", chat_template=False, template_sha256=None)
    page = visit(host(site))
    page.wait_for_selector("#model-notice:not([hidden])")
    assert "bare has no chat template" in page.locator("#model-notice").inner_text()
    ask(page)
    answered(page)
    assert page.locator(".answer-text").inner_text().strip() == "once more."


def test_different_templates_are_said(visit: Visit, host: Host, site: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(site, tmp_path / "site")
    content = json.loads((folder / "models.json").read_text())
    content["models"][1]["template_sha256"] = "1" * 64
    (folder / "models.json").write_text(json.dumps(content))
    page = visit(host(folder))
    page.wait_for_selector("#model-notice:not([hidden])")
    assert "different chat templates" in page.locator("#model-notice").inner_text()
