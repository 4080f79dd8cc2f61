from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimum_ishrink.app.model_file import read_model_file
from optimum_ishrink.app.options import AppOptions
from optimum_ishrink.app.served_files import served_files
from optimum_ishrink.app.site import write_site
from optimum_ishrink.errors import SourceError
from tests.helpers.app_site import PAGE_FILES, install_page, write_tiny


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install_page(monkeypatch, tmp_path / "page")
    write_site({"shrunk": read_model_file(write_tiny(tmp_path / "a.gguf"))}, tmp_path / "site", AppOptions())
    return tmp_path / "site"


def test_the_files_of_a_site(site: Path) -> None:
    found = served_files(site)
    part = json.loads((site / "models.json").read_text())["models"][0]["parts"][0]
    more = ("models.json", "page.json", "licences.txt", part["path"], "")
    assert set(found) == {f"/{name}" for name in (*PAGE_FILES, *more)}
    assert found[f"/{part['path']}"].tag == part["sha256"][:32]
    assert [name for name, file in found.items() if file.immutable] == [f"/{part['path']}"]
    assert found["/"].is_page and not found["/main.js"].is_page


@pytest.mark.parametrize("text", ["[]", "{}", '{"models": [{}]}', '{"models": [{"parts": [3]}]}'])
def test_a_list_that_is_damaged(text: str, site: Path) -> None:
    (site / "models.json").write_text(text)
    with pytest.raises(SourceError, match=r"models\.json is damaged; write the site again"):
        served_files(site)


def test_a_part_that_is_missing(site: Path) -> None:
    next((site / "models").rglob("part-000")).unlink()
    with pytest.raises(SourceError, match="site lacks models/.*/part-000; write the site again"):
        served_files(site)
