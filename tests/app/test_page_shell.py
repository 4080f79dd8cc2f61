"""What all pages share: offline use, threads, small screens, labels, the policy, and failures that say what to do."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import until
from tests.app.sites import write_site
from tests.app.test_chat_page import BASE_TEXT, SMALL_TEXT, answered, ask

Visit = Callable[..., Any]
Host = Callable[[Path], str]

PAGES = ("index.html", "suggest.html")


def test_works_without_a_network_after_the_first_load(visit: Visit, server: str) -> None:
    page = visit(server)
    ask(page)
    answered(page)
    page.wait_for_selector("html[data-offline=ready]", state="attached")
    page.context.set_offline(True)
    page.reload()
    ask(page)
    answered(page, turns=2)
    assert page.locator(".answer.base .answer-text").last.inner_text() == BASE_TEXT
    page.goto(f"{server}suggest.html")
    page.wait_for_selector("[data-state=ready]")


def test_a_plain_host_has_one_thread_and_says_so(visit: Visit, plain_server: str) -> None:
    page = visit(plain_server, settings="{}")
    notice = page.locator("#thread-notice")
    assert "One thread only" in notice.inner_text() and "ishrink app --serve" in notice.inner_text()
    ask(page)
    answered(page)
    assert page.locator(".answer.shrunk .answer-text").inner_text() == SMALL_TEXT
    assert "1 thread" in page.locator("#models").inner_text()
    page.click("text=Load the page again to use more")
    until(page, "crossOriginIsolated")
    assert not notice.is_visible()


def test_threads_are_used_where_the_server_allows_them(visit: Visit, server: str) -> None:
    page = visit(server, settings="{}")
    page.click("#load")
    page.wait_for_selector("#models [data-state=ready]")
    assert "2 threads" in page.locator("#models").inner_text()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_browser_without_jspi_runs_the_other_build(visit: Visit, server: str, threads: int, runtime: str) -> None:
    page = visit("about:blank", settings=f'{{"threads":{threads}}}')
    page.context.add_init_script("delete WebAssembly.Suspending")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(server)))
    page.goto(server)
    ask(page)
    answered(page)
    assert page.locator(".answer.shrunk .answer-text").inner_text() == SMALL_TEXT
    assert ("wasm/compat/wllama.js" in asked) == (runtime == "current")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(visit: Visit, server: str, name: str, scheme: str) -> None:
    page = visit(server + name, viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True)
    if name == "index.html":
        ask(page, "word" * 40)
        answered(page)
    else:
        page.click("#load")
        page.wait_for_selector("[data-state=ready]")
        page.fill("#text", "We see ")
        page.wait_for_selector("#latency:not([hidden])")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    small = page.evaluate(
        "[...document.querySelectorAll('button, nav a, .segmented label, select')]"
        ".filter((one) => one.offsetParent && one.getBoundingClientRect().height < 38).map((one) => one.outerHTML)"
    )
    assert small == []


@pytest.mark.parametrize("name", PAGES)
def test_every_control_has_a_name(visit: Visit, server: str, name: str) -> None:
    page = visit(server + name)
    nameless = page.evaluate(
        """[...document.querySelectorAll('input, textarea, select, button, summary, dialog, fieldset')].filter((one) =>
             !one.labels?.length && !one.ariaLabel && !one.getAttribute('aria-labelledby')
             && !one.querySelector('legend') && !one.textContent.trim()).map((one) => one.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("main").count() == page.locator("h1").count() == 1
    assert page.locator("nav [aria-current=page]").count() == 1
    assert page.get_attribute("html", "lang") == "en"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_nothing_from_elsewhere(visit: Visit, server: str, name: str, page_folder: Path) -> None:
    page = visit("about:blank")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server + name)
    page.click("#load")
    page.wait_for_selector("[data-state=ready]")
    assert asked and all(url.startswith((server, f"blob:{server}")) for url in asked)
    text = (page_folder / name).read_text()
    assert "default-src 'none'" in text and "unsafe-inline" not in text and "'unsafe-eval'" not in text
    assert " style=" not in text and "onclick" not in text


@pytest.mark.parametrize("name", ["index.html", "measure.html"])
def test_no_control_is_offered_before_it_is_heard(visit: Visit, server: str, name: str) -> None:
    page = visit("about:blank")
    held: list[Any] = []
    page.route("**/models.json", lambda route: held.append(route))
    page.goto(server + name)
    while not held:
        page.wait_for_timeout(30)
    usable = page.evaluate(
        """[...document.querySelectorAll('button, summary')].filter((one) => one.checkVisibility() && !one.disabled)
             .map((one) => one.id || one.ariaLabel || one.textContent)"""
    )
    assert usable == {"index.html": [], "measure.html": ["Settings"]}[name]  # it opens by itself
    held.pop().continue_()
    page.click({"index.html": "#open-settings", "measure.html": "#measure"}[name])
    if name == "index.html":
        assert "from the model's generation config" in page.locator("#temperature-hint").inner_text()
    else:
        until(page, "document.documentElement.dataset.measured === 'running'")
        page.click("#stop")


def test_a_page_opened_as_a_file_says_how_to_serve_it(visit: Visit, page_folder: Path) -> None:
    page = visit((page_folder / "index.html").as_uri(), reports=False)
    page.wait_for_selector("text=ishrink app --model MODEL --serve", state="visible")


def test_a_truncated_part_is_explained(visit: Visit, host: Host, site: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(site, tmp_path / "site")
    part = next(folder.glob("models/*/part-000"))
    part.write_bytes(part.read_bytes()[:1000])
    page = visit(host(folder))
    page.click("#load")
    message = page.wait_for_selector("[data-state=failed] .failure-text").inner_text()
    assert "is damaged: part-000 has 1 kB instead of 66 kB. Copy the whole site again" in message


def test_a_changed_part_is_explained(visit: Visit, host: Host, site: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(site, tmp_path / "site")
    part = next(folder.glob("models/*/part-001"))
    part.write_bytes(bytes(len(part.read_bytes())))
    page = visit(host(folder))
    page.click("#load")
    message = page.wait_for_selector("[data-state=failed] .failure-text").inner_text()
    assert "the checksum of part-001 is another" in message


def _unknown_type(content: bytes) -> bytes:
    place = content.index(b"token_embd.weight") + len(b"token_embd.weight")
    place += 4 + 8 * struct.unpack("<I", content[place : place + 4])[0]
    return content[:place] + struct.pack("<I", 250) + content[place + 4 :]


def _unknown_architecture(content: bytes) -> bytes:
    return content.replace(struct.pack("<Q", 5) + b"llama", struct.pack("<Q", 5) + b"lxama", 1)


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda content: content[:-5000], "The model's file is cut short"),
        (_unknown_type, "tensors of a type that the runtime does not know"),
        (_unknown_architecture, "does not know the architecture lxama"),
        (lambda content: b"hello" * 1000, "not a GGUF file"),
    ],
    ids=["short", "type", "architecture", "other"],
)
def test_a_file_that_the_runtime_cannot_read_is_explained(
    visit: Visit,
    host: Host,
    page_folder: Path,
    tiny_ggufs: dict[str, Path],
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    said: str,
) -> None:
    model = tmp_path / "damaged.gguf"
    model.write_bytes(damage(tiny_ggufs["shrunk"].read_bytes()))
    page = visit(host(write_site(page_folder, [("shrunk", model)], tmp_path / "site")))
    page.click("#load")
    assert said in page.wait_for_selector("[data-state=failed] .failure-text").inner_text()


def test_too_little_memory_is_said_before_anything_is_fetched(
    visit: Visit, host: Host, site: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(site, tmp_path / "site")
    content = json.loads((folder / "models.json").read_text())
    content["models"][0]["kv_cache_bytes_per_token"] = 1 << 24
    (folder / "models.json").write_text(json.dumps(content))
    page = visit(host(folder))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.check("input[name=shown][value=shrunk]")
    page.click("#load")
    message = page.wait_for_selector("[data-state=failed] .failure-text").inner_text()
    assert "The model needs about 8.66 GB of memory" in message
    assert not any("/models/" in url for url in asked)


def test_a_site_without_models_says_how_to_make_one(visit: Visit, host: Host, page_folder: Path) -> None:
    page = visit(host(page_folder), reports=False)
    page.wait_for_selector("#page-failure:not([hidden])")
    assert "ishrink app --model MODEL --output FOLDER" in page.locator("#page-failure").inner_text()


def test_page_json_lists_every_file(page_folder: Path) -> None:
    import hashlib

    page = json.loads((page_folder / "page.json").read_text())
    listed = {file["path"]: file for file in page["files"]}
    there = {path.relative_to(page_folder).as_posix() for path in page_folder.rglob("*") if path.is_file()}
    assert {*listed} == there - {"page.json"}
    for name, file in listed.items():
        assert hashlib.sha256((page_folder / name).read_bytes()).hexdigest() == file["sha256"]
    kept = page["kept_bytes"]
    assert kept["fast"] < 4_000_000 < kept["current"] < 12_000_000
    assert "llama.cpp" in (page_folder / "licences.txt").read_text()
