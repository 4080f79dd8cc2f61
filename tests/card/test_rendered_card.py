"""The card as a reader sees it: rendered to a page as wide as the Hub's, in a real browser, in light and dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from matplotlib.image import imread

from optimum_ishrink.card.build import build_card
from tests.helpers.card_folder import make_folder
from tests.helpers.drawing import with_pictures
from tests.helpers.tiny import in_full

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTH = 860
"""CSS pixels: about the column that the Hub gives a card on a laptop."""

# Pictures and code as the Hub's own style has them: pictures shrink to the column, code and tables scroll in it.
STYLE = """
body {{ font: 16px/1.6 sans-serif; margin: 0; background: {page}; color: {ink}; }}
main {{ width: {width}px; margin: 24px auto; }}
img {{ max-width: 100%; }}
pre {{ overflow-x: auto; padding: 12px; background: {panel}; font-size: 13px; }}
table {{ display: block; overflow-x: auto; border-collapse: collapse; font-size: 13px; }}
td, th {{ border: 1px solid {line}; padding: 4px 8px; text-align: left; }}
blockquote {{ border-left: 3px solid {line}; margin: 0; padding-left: 12px; }}
a {{ color: {link}; }}
"""
THEMES = {
    "light": {"page": "#ffffff", "ink": "#1f2937", "panel": "#f3f4f6", "line": "#d1d5db", "link": "#2563eb"},
    "dark": {"page": "#0b0f19", "ink": "#d1d5db", "panel": "#111827", "line": "#374151", "link": "#93c5fd"},
}
# What the page turned out as: written into it, so that it can be read back.
LOOK = """
<script>
addEventListener("load", () => {
  const main = document.querySelector("main"), edge = main.getBoundingClientRect().right;
  const all = [...main.querySelectorAll("*")].filter(each => !each.parentElement.closest("pre, table"));
  const found = {
    pictures: [...document.images].map(each => [each.getAttribute("src"), each.complete && each.naturalWidth]),
    over: all.filter(each => each.getBoundingClientRect().right > edge + 1).map(each => each.tagName),
    sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    scrolling: [...main.querySelectorAll("table")].map(each => each.scrollWidth > each.clientWidth + 1),
    scripts: main.querySelectorAll("script").length,
    tables: main.querySelectorAll("table").length,
    folded: main.querySelectorAll("details").length,
    first: main.querySelector("table").getBoundingClientRect().bottom,
  };
  const note = document.createElement("pre");
  note.id = "look"; note.hidden = true; note.textContent = JSON.stringify(found);
  document.body.append(note);
});
</script>
"""


def page(folder: Path, theme: str, *, unfolded: bool) -> Path:
    """Write the card as a page beside its pictures.

    Args:
        folder: A folder with a card.
        theme: `light` or `dark`.
        unfolded: Open what is folded.
    """
    body = MarkdownIt("gfm-like", {"linkify": False}).render(ModelCard.load(folder / "README.md").text)
    if unfolded:
        body = body.replace("<details>", "<details open>")
    style = STYLE.format(width=WIDTH, **THEMES[theme])
    path = folder / f"{theme}-{'open' if unfolded else 'folded'}.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><style>{style}</style><main>{body}</main>{LOOK}")
    return path


def browse(path: Path, profile: Path, *arguments: str) -> str:
    """Open a page in the browser without a window, and return what it prints."""
    assert BROWSER is not None
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",  # containers rarely allow one, and the page is our own
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        f"--user-data-dir={profile}",
        *arguments,
        path.resolve().as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_folder(tmp_path_factory.mktemp("page") / "small")
    with with_pictures():
        build_card(made)
    return made


def test_the_page_has_every_part(folder: Path) -> None:
    text = page(folder, "light", unfolded=False).read_text().split("<main>")[1].split("</main>")[0]
    assert text.count("<table>") == 6
    assert text.count("<details>") == text.count("</details>") == 4
    assert len(re.findall(r'<img src="figures/\w+\.png" alt="[^"]+"', text)) == 4
    text = re.sub(r"<pre>.*?</pre>", "", text, flags=re.DOTALL)
    for markdown in ("**S", "**Q", "**N", "| ---", "```", "![", "<script>", "{{", "{%"):
        assert markdown not in text, markdown


@pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on the PATH to look at the page with")
@pytest.mark.parametrize("theme", in_full(THEMES, "light"))
def test_the_page_can_be_read(theme: str, folder: Path, tmp_path: Path) -> None:
    folded, unfolded = (page(folder, theme, unfolded=each) for each in (False, True))
    dump = browse(unfolded, tmp_path / "profile", "--window-size=1000,900", "--dump-dom", "--virtual-time-budget=5000")
    written = re.search(r'<pre id="look"[^>]*>(.*?)</pre>', dump, re.DOTALL)
    assert written, dump[-500:]
    look = json.loads(written[1])
    assert [name for name, _ in look["pictures"]] == [
        f"figures/{each}.png" for each in ("quality", "speed", "removed", "importance")
    ]
    assert all(width and width >= WIDTH for _, width in look["pictures"])  # sharp at this width
    assert look["over"] == []
    assert look["sideways"] == 0
    assert look["scrolling"] == [False] * 6
    assert (look["scripts"], look["tables"], look["folded"]) == (0, 6, 4)
    assert look["first"] < 800  # size, quality and speed are on the first screen of a laptop
    for path in (folded, unfolded):
        shot = tmp_path / f"{path.stem}.png"
        browse(path, tmp_path / "profile", "--window-size=1000,3200", f"--screenshot={shot}")
        picture = imread(shot)[..., :3]
        wanted = [int(THEMES[theme]["page"][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert picture[2, 2].tolist() == pytest.approx(wanted, abs=0.01)
        assert picture.std() > 0.05
