from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from optimum_ishrink.app.model_file import ModelFile, read_model_file
from optimum_ishrink.app.options import AppOptions
from optimum_ishrink.app.site import check_site, write_site
from optimum_ishrink.errors import OutputError, RequestError, VerificationError
from tests.helpers.app_site import PAGE_FILES, install_page, write_tiny


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ModelFile]:
    install_page(monkeypatch, tmp_path / "page", content_security_policy="default-src 'self'")
    shrunk, base = write_tiny(tmp_path / "small.gguf"), write_tiny(tmp_path / "large.gguf", seed=1)
    return {"base": read_model_file(base), "shrunk": read_model_file(shrunk)}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_site_of_two_models(models: dict[str, ModelFile], tmp_path: Path) -> None:
    site = write_site(models, tmp_path / "site", AppOptions())
    written = contents(tmp_path / "site")
    listed = json.loads(written["models.json"])
    assert (listed["schema"], listed["title"], listed["probes"]) == (1, "small beside large", None)
    assert [model["role"] for model in listed["models"]] == ["shrunk", "base"]
    for model in listed["models"]:
        file = models[model["role"]]
        assert b"".join(written[part["path"]] for part in model["parts"]) == file.path.read_bytes()
        assert (model["name"], model["file"], model["bytes"]) == (file.name, file.path.name, file.nbytes)
        assert model["quantization"] == "q8_0"
    assert set(PAGE_FILES) < set(written)
    assert "Content-Security-Policy: default-src 'self'\n" in written["_headers"].decode()
    assert "/models/*\n  Cache-Control: public, max-age=31536000, immutable\n" in written["_headers"].decode()
    space = yaml.safe_load(written["README.md"].decode().split("---")[1])
    assert space["sdk"] == "static" and space["title"] == "small beside large"
    assert space["custom_headers"]["cross-origin-embedder-policy"] == "require-corp"
    assert space["custom_headers"]["cross-origin-resource-policy"] == "cross-origin"
    assert site.nbytes == sum(map(len, written.values()))
    assert site.notes == ()
    assert str(tmp_path) not in written["models.json"].decode()
    assert site.to_json()["models"]["shrunk"]["bytes"] == models["shrunk"].nbytes


def test_the_same_request_gives_the_same_site(models: dict[str, ModelFile], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_site(models, tmp_path / name, AppOptions(title='A "title": ünd'))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert yaml.safe_load((tmp_path / "a" / "README.md").read_text().split("---")[1])["title"] == 'A "title": ünd'


def test_one_model_against_itself_is_written_once(models: dict[str, ModelFile], tmp_path: Path) -> None:
    site = write_site({"shrunk": models["shrunk"], "base": models["shrunk"]}, tmp_path / "site", AppOptions())
    assert len(list((tmp_path / "site" / "models").iterdir())) == 1
    assert "are the same file" in site.notes[0]


def test_models_with_different_templates(models: dict[str, ModelFile], tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other.gguf", tokenizer__chat_template="{{ other }}")
    site = write_site({**models, "base": read_model_file(other)}, tmp_path / "site", AppOptions())
    assert "different chat templates" in site.notes[0]


def test_probes(models: dict[str, ModelFile], tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "plan.json").write_text("{}")

    write_site(models, tmp_path / "site", AppOptions(), write_probes=write)
    assert json.loads((tmp_path / "site" / "models.json").read_text())["probes"] == "probes/plan.json"
    assert (tmp_path / "site" / "probes" / "plan.json").is_file()


def test_it_appears_whole_or_not_at_all(
    models: dict[str, ModelFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_site({"shrunk": models["shrunk"]}, tmp_path / "site", AppOptions())
    before, there = contents(tmp_path / "site"), sorted(tmp_path.iterdir())
    with pytest.raises(OutputError, match="is not empty; name another folder or pass --overwrite"):
        write_site(models, tmp_path / "site", AppOptions())

    def fail(*_: object) -> None:
        raise VerificationError("no")

    with monkeypatch.context() as patch:
        patch.setattr("optimum_ishrink.app.site.verify_parts", fail)
        for name in ("site", "new"):
            with pytest.raises(VerificationError):
                write_site(models, tmp_path / name, AppOptions(), overwrite=True)
    assert contents(tmp_path / "site") == before
    assert sorted(tmp_path.iterdir()) == there
    write_site(models, tmp_path / "site", AppOptions(), overwrite=True)
    assert contents(tmp_path / "site") != before


def test_too_little_room(models: dict[str, ModelFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(OutputError, match="the site takes 0 MB and .* has 0 MB free; name a folder on another disk"):
        write_site(models, tmp_path / "deep" / "site", AppOptions())
    assert not (tmp_path / "deep").exists()


def test_outputs_that_cannot_be(models: dict[str, ModelFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="holds the input"):
        write_site(models, tmp_path, AppOptions(), overwrite=True)
    with pytest.raises(OutputError, match="is not empty"):
        check_site(tmp_path, False)
    monkeypatch.setattr("optimum_ishrink.app.built_page.PAGE", tmp_path / "nowhere")
    with pytest.raises(RequestError, match="the page is not built"):
        check_site(tmp_path / "site", False)
