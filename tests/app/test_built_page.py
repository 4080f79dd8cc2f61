from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.app.built_page import CONTENT_SECURITY_POLICY, find_page, security_policy
from optimum_ishrink.errors import RequestError, SourceError
from tests.helpers.app_site import PAGE_FILES, install_page


def test_it_is_copied_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = install_page(monkeypatch, tmp_path / "page")
    (tmp_path / "site").mkdir()
    page = find_page()
    page.copy(tmp_path / "site")
    copied = {p.relative_to(tmp_path / "site").as_posix() for p in (tmp_path / "site").rglob("*") if p.is_file()}
    assert copied == {*PAGE_FILES, "page.json", "licences.txt"}
    assert page.nbytes == sum((folder / name).stat().st_size for name in copied)


def test_a_page_that_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimum_ishrink.app.built_page.PAGE", tmp_path)
    with pytest.raises(RequestError, match="the page is not built: run make app in a clone, or install the wheel"):
        find_page()


@pytest.mark.parametrize(
    "facts",
    [
        [],
        {"version": "0"},
        {"version": "0", "files": [{"path": "a"}]},
        {"version": "0", "files": [{"path": "../a", "sha256": ""}]},
        {"version": "0", "files": [{"path": "/etc/a", "sha256": ""}]},
        {"version": "0", "files": [{"path": "", "sha256": ""}]},
        {"version": "0", "files": [{"path": 3, "sha256": ""}]},
    ],
)
def test_facts_that_are_none(facts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = install_page(monkeypatch, tmp_path / "page")
    (folder / "page.json").write_text(json.dumps(facts))
    with pytest.raises(SourceError, match=r"page\.json of the built page is damaged: run make app again"):
        find_page()


def test_files_that_are_not_those_that_were_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = install_page(monkeypatch, tmp_path / "page")
    (folder / "main.js").write_text("other")
    with pytest.raises(SourceError, match=r"main\.js of the built page is not the file that was built"):
        find_page().copy(tmp_path / "a")
    (folder / "main.js").unlink()
    with pytest.raises(SourceError, match=r"the built page lacks main\.js: run make app again"):
        find_page().copy(tmp_path / "b")


def test_the_policy() -> None:
    assert security_policy({"content_security_policy": "default-src 'self'"}) == "default-src 'self'"
    for facts in ({}, [], {"content_security_policy": 3}, {"content_security_policy": "a\r\nSet-Cookie: b"}):
        assert security_policy(facts) == CONTENT_SECURITY_POLICY
