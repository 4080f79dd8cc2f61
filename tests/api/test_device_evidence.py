from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.api.device_evidence import add_device_reports
from optimum_ishrink.cli.program import main
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.errors import OutputError, RequestError, SourceError
from optimum_ishrink.report.report import Report
from tests.helpers.card_folder import make_folder, make_report
from tests.helpers.device_reports import device_report, save_report
from tests.helpers.refusals import refusal

WHERE = "browser on Pixel 9: q4_0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "small")


def speeds(folder: Path) -> dict[tuple[str, str], Any]:
    report = Report.from_json(read_json(folder / "ishrink_report.json"))
    assert report.base is not None
    assert {each.dataset for each in report.base.speed} == {each.dataset for each in report.shrunk.speed}
    return {(each.metric, each.dataset): each for each in report.shrunk.speed}


def test_the_command_adds_to_report_and_card(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Report.from_json(read_json(folder / "ishrink_report.json"))
    words = ["card", "--model", str(folder), "--device-report"]
    assert main([*words, str(save_report(tmp_path / "a.json"))]) == 0
    captured = capsys.readouterr()
    assert "Pixel 9 ran small-q4_0.gguf (70,000,000 bytes, q4_0) as the shrunk model" in captured.err
    assert "Pixel 9: memory was measured once" in captured.err
    assert f"Written to {folder / 'README.md'}" in captured.out
    found = speeds(folder)
    decode = found["decode_tokens_per_second", f"{WHERE}, prompt 64"]
    assert decode.versus_base.verdict == "faster"
    assert decode.environment.browser == "Chromium 150"
    assert "### Pixel 9" in (folder / "README.md").read_text()
    after = Report.from_json(read_json(folder / "ishrink_report.json"))
    assert after.shrunk.quality == before.shrunk.quality
    assert after.shrunk.speed[: len(before.shrunk.speed)] == before.shrunk.speed
    assert after.environment == before.environment


def test_a_model_that_is_timed_alone_has_no_earlier_base_beside_it(folder: Path, tmp_path: Path) -> None:
    add_device_reports(folder, [save_report(tmp_path / "a.json"), save_report(tmp_path / "b.json", device__name="P")])
    saved = device_report()
    shrunk = [each for each in saved["samples"] if each["role"] == "shrunk"]
    report = add_device_reports(folder, [save_report(tmp_path / "c.json", models=saved["models"][1:], samples=shrunk)])
    assert report.base is not None
    assert any(each.dataset.startswith(WHERE) for each in report.shrunk.speed)
    assert not any(each.dataset.startswith(WHERE) for each in report.base.speed)
    assert any(each.dataset.startswith("browser on P: q4_0") for each in report.base.speed)


def test_a_second_device_adds_and_the_same_one_replaces(folder: Path, tmp_path: Path) -> None:
    first, again = save_report(tmp_path / "a.json"), save_report(tmp_path / "b.json", faster=1.2)
    other = save_report(tmp_path / "c.json", device__name="Pixel 10")
    add_device_reports(folder, [first])
    count = len(speeds(folder))
    report = add_device_reports(folder, [again, other])
    found = speeds(folder)
    assert len(found) == count + 7
    assert found["decode_tokens_per_second", f"{WHERE}, prompt 64"].versus_base.ratio == pytest.approx(1.2, rel=0.02)
    assert report == Report.from_json(read_json(folder / "ishrink_report.json"))


def test_two_reports_of_one_device_are_refused(folder: Path, tmp_path: Path) -> None:
    paths = [save_report(tmp_path / name, device__name="") for name in ("a.json", "b.json")]
    with pytest.raises(RequestError, match="several reports are of Android, Chromium 150, 8 cores, and their figures"):
        add_device_reports(folder, paths)


def test_a_damaged_report_changes_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    good, bad = save_report(tmp_path / "a.json"), save_report(tmp_path / "b.json", schema=9)
    words = ["card", "--model", str(folder), "--device-report", str(good), "--device-report", str(bad)]
    assert "b.json has schema 9" in refusal(words, capsys)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files


def test_folders_that_cannot_be(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_report(tmp_path / "a.json")
    with pytest.raises(RequestError, match="name the report of a device that the page saved"):
        add_device_reports(folder, [])
    with pytest.raises(SourceError, match=r"ishrink_report\.json does not exist"):
        add_device_reports(tmp_path, [path])
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda *_: False)
        with pytest.raises(OutputError, match="no permission to write in .*small"):
            add_device_reports(folder, [path])
    (folder / "ishrink_plan.json").unlink()
    with pytest.raises(SourceError, match=r"ishrink_plan\.json does not exist; name the output folder of shrink"):
        add_device_reports(folder, [path])


def test_a_report_without_a_base_gets_one(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "alone", make_report(base=None, comparisons=()))
    report = add_device_reports(folder, [save_report(tmp_path / "a.json")])
    assert report.base is not None and (report.base.name, report.base.params) == ("large", 134_515_008)
