from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread

from optimum_ishrink.app.device_figures import device_evidence
from optimum_ishrink.app.device_report import read_device_report
from optimum_ishrink.card.build import build_card
from optimum_ishrink.card.devices import device_parts, draw_device, without_devices
from optimum_ishrink.report.merge import merge_reports
from optimum_ishrink.report.report import Report
from tests.helpers.card_folder import make_folder, make_report
from tests.helpers.device_reports import device_report, save_report
from tests.helpers.drawing import with_pictures


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """A model's report with the figures of two devices, of which the second ran the model alone."""
    known = make_report()
    first = read_device_report(save_report(tmp_path / "a.json"))
    found = device_report(device__name="手机", device__cores=None)
    shrunk = [each for each in found["samples"] if each["role"] == "shrunk"]
    found |= {"models": found["models"][1:], "samples": shrunk}
    second = read_device_report(save_report(tmp_path / "b.json", found))
    for each in (first, second):
        known = merge_reports(known, device_evidence(each, known, 9))
    return known


def test_each_device_has_a_part(report: Report) -> None:
    first, second = device_parts(report)
    assert (first.environment.cpu, second.environment.cpu) == ("Pixel 9", "手机")
    assert first.report.base is not None and second.report.base is None
    assert len(first.compared) == 5 and not second.compared
    assert first.figure == "device-pixel-9-q4-0-cpu"
    assert second.figure.startswith("device-q4-0-cpu-")
    assert without_devices(report) == make_report()
    assert device_parts(make_report()) == []


def test_the_card_shows_them(report: Report, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "small", report)
    with with_pictures():
        build_card(folder)
    card = (folder / "README.md").read_text()
    section = card[card.index("## On devices") : card.index("## What was removed")]
    assert "### Pixel 9" in section and "### 手机" in section
    assert "![Speed ratios in the browser of this device](figures/device-pixel-9-q4-0-cpu.png)" in section
    assert "99% interval" in section and "faster" in section and "whole response, ms" in section
    assert "Chromium 150 by llama.cpp b12211-7d7f028 (2 threads, 8 logical cores, cpu, q4_0, Android); base" in section
    assert "(2 threads, cpu, q4_0, Android).\n" in section
    assert "No figure in this card was measured with either" not in card
    assert "browser on" not in card[card.index("All measurements") : card.index("## On devices")]
    assert imread(folder / "figures" / "device-pixel-9-q4-0-cpu.png").shape[1] > 500


def test_every_verdict_has_a_colour(tmp_path: Path) -> None:
    for faster in (1.0, 0.5):
        known = make_report()
        found = read_device_report(save_report(tmp_path / "a.json", faster=faster))
        (part,) = device_parts(merge_reports(known, device_evidence(found, known, 9)))
        assert part.setting == "browser on Pixel 9: q4_0"
        verdicts = {each.versus_base.verdict for each in part.compared if each.versus_base is not None}
        assert verdicts == {"no difference" if faster == 1 else "slower", "too few rounds to tell"}
        with with_pictures():
            draw_device(part, tmp_path / f"{faster}.png")
        assert (tmp_path / f"{faster}.png").is_file()
