"""Several output folders in one page: what it is made of, the command that writes it, and what is refused."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from optimum_ishrink.cli.program import main
from optimum_ishrink.errors import OutputError, RequestError, SourceError
from optimum_ishrink.report.files import REPORT_FILE
from optimum_ishrink.report.page.overview import build_overview
from optimum_ishrink.report.page.pareto import plots
from optimum_ishrink.report.page.reading import read_reports
from optimum_ishrink.report.page.render import render_page, write_page
from tests.helpers.named_reports import kl, output, text


class Strict(HTMLParser):
    """Checks that every element is closed, and collects what the page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "b", "object"):
            self.foreign.append(tag)
        self.foreign += [f"{key}={value}" for key, value in attrs if key in ("src", "href", "onclick", "srcset")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_escaped_and_self_contained() -> None:
    evil = '<b onclick="x">&"\'</b><script>alert(1)</script>'
    measured = [
        output(evil, 900, kl(0.1), timed=(10, 12), cpu=evil),
        output("plain", 800, (text("kl_divergence", 0.2, length=evil),), base=evil),
    ]
    overview = build_overview(measured)
    page = render_page(overview, plots(overview), title=evil)
    parser = Strict()
    parser.feed(page)
    assert parser.open == [] and parser.foreign == []
    assert "url(" not in page and "@import" not in page and "http" not in page
    assert "prefers-color-scheme: dark" in page and "&lt;script&gt;" in page
    assert "not measured" in page and "0, by definition" in page
    assert page.count("<svg") == 2
    empty = build_overview([output("a", 1)])
    assert "there is nothing to plot" in render_page(empty, (), title="t")


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = []
    for name, value in (("one/small", 0.1), ("two/small", 0.2)):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        report = output(name, 900, kl(value), timed=(10, 12)).report
        (folder / REPORT_FILE).write_text(json.dumps(report.to_json()))
        made.append(folder)
    return made


def test_the_command_writes_the_page(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "page.html"
    assert main(["report", *map(str, folders), "--output", str(page), "--title", "Mine"]) == 0
    out = capsys.readouterr().out
    assert "Quality against size, Pareto-optimal: org/base, one/small" in out and f"Written to {page}" in out
    assert "<title>Mine</title>" in page.read_text()
    assert page.stat().st_mode & 0o044
    assert list(tmp_path.glob(".ishrink*")) == []

    assert main(["report", *map(str, folders), "--output", str(page)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["report", *map(str, folders), "--output", str(page), "--overwrite", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [model["label"] for model in found["models"]] == ["org/base", "one/small", "two/small"]
    assert found["columns"][0]["cells"]["two/small"]["value"] == 0.2
    assert found["pictures"][0]["points"][0]["is_base"]
    assert main(["report", str(folders[0])]) == 0
    assert "For a page with plots: --output" in capsys.readouterr().out


def test_facts_of_an_output_folder_of_shrink(llama_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "cut"
    flags = ["--importance", "l2-norm", "--layer-importance", "l2-norm", "--no-evaluate", "--no-benchmark"]
    shape = ["--intermediate-size", "16", "--compensation", "none"]
    assert main(["shrink", "--model", str(llama_folder), "--output", str(target), *flags, *shape, "--json"]) == 0
    (model,) = [each for each in build_overview(read_reports([target])).models if not each.is_base]
    assert re.match(r"intermediate_size \d+ to 16", model.facts["shape"])
    assert (model.facts["compensation"], model.facts["recovery"]) == ("none", "none")
    assert model.base is not None and model.params < 10**9


def test_a_file_with_json_output_is_read(folders: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text((folders[0] / REPORT_FILE).read_text())
    assert [each.label for each in read_reports([path, folders[0]])] == ["measured", "small"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not an output folder of shrink or recover: it has no ishrink_report.json"),
        ("{", "is not JSON"),
        ("[]", "not an iShrink report"),
        ('{"schema": 99}', "has schema 99"),
        (
            '{"schema": 1, "base": null, "shrunk": {"name": "x"}, "environment": {}}',
            "lacks shrunk.bytes",
        ),
        ('{"schema": 1, "base": null, "shrunk": 3, "environment": {}}', "is damaged"),
    ],
)
def test_an_unreadable_report_is_refused(
    tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture
) -> None:
    if content is not None:
        (tmp_path / REPORT_FILE).write_text(content)
    with pytest.raises(SourceError, match=message):
        read_reports([tmp_path])
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_missing_path_and_a_path_given_twice_are_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist; name output folders"):
        read_reports([tmp_path / "nowhere"])
    with pytest.raises(RequestError, match="is given twice"):
        read_reports([folders[0], folders[1], folders[0] / "."])


def test_a_page_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="is a folder; name a file"):
        write_page("x", tmp_path)
    with pytest.raises(OutputError, match="is not a folder; create it first"):
        write_page("x", tmp_path / "none" / "page.html")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)"):
        write_page("x", tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
