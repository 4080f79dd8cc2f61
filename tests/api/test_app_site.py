"""Sites of checkpoints, which are exported first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink import IShrinker
from optimum_ishrink.api.app_site import make_app
from optimum_ishrink.app.options import AppOptions
from optimum_ishrink.app.server import SiteServer
from optimum_ishrink.checkpoint.source import Source, open_source
from optimum_ishrink.edge.options import ExportOptions
from optimum_ishrink.errors import RequestError
from tests.helpers.app_site import install_page, write_tiny
from tests.helpers.card_folder import make_folder
from tests.helpers.tiny import save_tiny, tiny_config

EXPORTED: list[tuple[str, str, bool]] = []


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A built page, and exports that are tiny files whatever the checkpoint is."""

    def export(source: Source, options: ExportOptions, output: Path) -> None:
        EXPORTED.append((source.folder.name, output.name, options.verify))
        write_tiny(output, seed=len(EXPORTED))

    EXPORTED.clear()
    install_page(monkeypatch, tmp_path / "page")
    monkeypatch.setattr("optimum_ishrink.api.app_site.export", export)
    return tmp_path


def listed(site: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((site / "models.json").read_text())["models"]
    return found


def test_a_checkpoint_is_exported_first(llama_folder: Path, place: Path) -> None:
    (folder := save_tiny(place / "tiny", tiny_config("llama")))
    (folder / "generation_config.json").write_text('{"temperature": 0.3, "do_sample": true}')
    site = IShrinker.from_pretrained(folder).app(place / "site", quantization="Q4_0", verify=False)
    assert EXPORTED == [("tiny", "tiny-q4_0.gguf", False)]
    assert listed(place / "site")[0]["generation"] == {"temperature": 0.3, "do_sample": True}
    assert listed(place / "site")[0]["file"] == "tiny-q4_0.gguf"
    assert site.folder == place / "site"


def test_both_are_exported_alike(llama_folder: Path, place: Path) -> None:
    make_app(llama_folder, open_source(llama_folder), place / "a", AppOptions())
    assert [name.rsplit("-")[-1] for _, name, _ in EXPORTED] == ["q8_0.gguf"]  # once: they are the same
    assert [each["role"] for each in listed(place / "a")] == ["shrunk", "base"]
    EXPORTED.clear()
    file = write_tiny(place / "small.gguf", general__file_type=2)
    make_app(file, llama_folder, place / "b", AppOptions())
    assert [name.rsplit("-")[-1] for _, name, _ in EXPORTED] == ["q4_0.gguf"]


def test_the_base_of_a_shrunk_model_is_named_and_not_guessed(
    llama_folder: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(place / "small")
    for path in llama_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    make_app(folder, None, place / "a", AppOptions())
    assert "with --base org/base it is shown beside its base" in capsys.readouterr().err
    (folder / "ishrink_report.json").unlink()
    make_app(folder, None, place / "b", AppOptions())
    assert "with --base base it is shown beside its base" in capsys.readouterr().err
    make_app(llama_folder, None, place / "c", AppOptions())
    assert "--base" not in capsys.readouterr().err


def test_a_quantisation_that_is_none(llama_folder: Path, place: Path) -> None:
    for name in ("q9", "mixed", "int8"):
        with pytest.raises(RequestError, match=f"unknown quantization '{name}'"):
            make_app(llama_folder, None, place / "a", AppOptions(quantization=name))


def test_probes_are_those_of_the_base(llama_folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "optimum_ishrink.api.app_site.write_profile_probes",
        lambda session, config, options, folder: asked.append((session.base_name, folder.name)),
    )
    other = save_tiny(place / "other", tiny_config("llama"))
    make_app(other, llama_folder, place / "a", AppOptions(probes=True))
    make_app(other, write_tiny(place / "x.gguf"), place / "b", AppOptions(probes=True))
    assert asked == [(llama_folder.name, "probes"), ("other", "probes")]
    assert json.loads((place / "a" / "models.json").read_text())["probes"] == "probes/plan.json"


def test_a_site_is_served(
    llama_folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_app(llama_folder, None, place / "a", AppOptions())
    monkeypatch.setattr(SiteServer, "serve_forever", lambda self: None)
    site.serve()
    assert "On this machine:" in capsys.readouterr().err
    with pytest.raises(RequestError, match="unknown option 'prot'"):
        site.serve(prot=3)
