"""A headless Chromium, tiny scripted models, and sites of the built page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.app.sites import serve, write_site

CHROMIUM = Path("/usr/bin/chromium")
PAGE = Path(__file__).parents[2] / "optimum_ishrink/app/page"
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
HTML = "<img src=x onerror=window.hacked=1>"
SMALL = (" The", " river", " is", " wide.", f" See {HTML}", " It", " flows", " east.")
BASE = (" The", " river", " is", " long", " and", " wide.", " It", " flows.")


def holds(page: Any, expression: str) -> bool:
    """Return whether an expression is true; not so while one document takes the place of another."""
    from playwright.sync_api import Error

    try:
        return bool(page.evaluate(expression))
    except Error as error:
        if "context was destroyed" not in str(error):
            raise
        return False


def until(page: Any, expression: str, seconds: float = 30) -> None:
    """Wait until an expression is true. Playwright's own way evaluates text in the page, which its policy forbids."""
    end = time.monotonic() + seconds
    while not holds(page, expression):
        assert time.monotonic() < end, f"not within {seconds} s: {expression}"
        page.wait_for_timeout(30)


@pytest.fixture(scope="session")
def page_folder() -> Path:
    """The built page."""
    if not (PAGE / "page.json").exists():
        pytest.skip("the page is not built: make app")
    return PAGE


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One Chromium for all tests."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS.split())
        yield started
        started.close()


@pytest.fixture(scope="session")
def tiny_ggufs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models of different scripts, and one that goes on and on."""
    pytest.importorskip("gguf")
    from tests.app.scripted import scripted_gguf

    folder = tmp_path_factory.mktemp("models")
    return {
        "shrunk": scripted_gguf(folder / "small.gguf", SMALL),
        "base": scripted_gguf(folder / "base.gguf", BASE),
        "endless": scripted_gguf(folder / "endless.gguf", (" on", " and"), ending=False, context=8192),
    }


@pytest.fixture(scope="session", params=["fast", "current"])
def runtime(request: pytest.FixtureRequest) -> str:
    """The build of llama.cpp that the page of `site` chooses."""
    return str(request.param)


@pytest.fixture(scope="session")
def site(
    page_folder: Path, tiny_ggufs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, runtime: str
) -> Path:
    """A site of the shrunk model and its base."""
    models = [(role, tiny_ggufs[role]) for role in ("shrunk", "base")]
    # What the list says is what the page chooses by.
    architecture = {"fast": "llama", "current": "unknown to the fast one"}[runtime]
    return write_site(page_folder, models, tmp_path_factory.mktemp("site"), architecture=architecture)


@pytest.fixture(scope="session")
def server(site: Path) -> Iterator[str]:
    """Its address, with the headers that threads need."""
    with serve(site) as address:
        yield address


@pytest.fixture(scope="session")
def plain_server(site: Path) -> Iterator[str]:
    """Its address on a plain host of static files."""
    with serve(site, isolated=False) as address:
        yield address


@pytest.fixture
def host() -> Iterator[Callable[[Path], str]]:
    """Serves a folder until the test has ended and its pages are closed, and returns the address."""
    with ExitStack() as servers:
        yield lambda folder: servers.enter_context(serve(folder))


@pytest.fixture
def visit(browser: Any, host: Callable[[Path], str]) -> Iterator[Callable[..., Any]]:
    """Opens a page in a fresh profile. Whatever the browser reports as an error fails the test.

    Pages are closed before the servers of `host`: a service worker may still be fetching.
    """
    contexts = []
    reported: list[str] = []

    def open_page(address: str, *, settings: str = '{"threads":1}', reports: bool = True, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **options})
        contexts.append(context)
        context.set_default_timeout(30_000)
        context.add_init_script(
            "document.addEventListener('securitypolicyviolation',"
            " (event) => console.error('policy', event.violatedDirective, event.blockedURI));"
            # Whatever this machine has: one thread unless the settings of a test say otherwise.
            "Object.defineProperty(navigator, 'hardwareConcurrency', { get: () => 4 });"
            "try { localStorage['ishrink settings /'] ??= '" + settings + "'; } catch { /* no storage */ }"
        )
        page = context.new_page()
        if reports:
            page.on("console", lambda message: message.type == "error" and reported.append(message.text))
            page.on("pageerror", lambda error: reported.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert reported == []
