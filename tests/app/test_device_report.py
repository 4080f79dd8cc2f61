from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.app.device_report import read_device_report
from optimum_ishrink.errors import SourceError
from tests.helpers.device_reports import device_report, save_report

VALUES = [[1.0, 1.0]] * 12


def test_a_report_is_read(tmp_path: Path) -> None:
    found = read_device_report(save_report(tmp_path / "a.json"))
    assert found.label == "Pixel 9"
    assert (found.runtime.threads, found.settings.rounds, len(found.samples)) == (2, 12, 12)
    assert found.model("base") == found.models[0] and found.model("other") is None
    unnamed = save_report(tmp_path / "b.json", device__name=" ", device__memory_gb=None, device__mobile=None)
    assert read_device_report(unnamed).label == "Android, Chromium 150, 8 cores"
    unknown = save_report(
        tmp_path / "c.json", device__name="", device__platform="", device__browser="", device__cores=None
    )
    assert read_device_report(unknown).label == "a device without a name"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "other"}, "is not a report of a device; the page of `ishrink app` saves one after its button 'Meas"),
        ({"schema": 2}, "has schema 2, this version reads 1; upgrade optimum-ishrink"),
        ({"schema": None}, "has schema None"),
        ({"created": "yesterday"}, "created is 'yesterday', not a time such as"),
        ({"created": 3}, "created is 3, not a string"),
        ({"device__cores": "8"}, "device.cores is '8'"),
        ({"device__age": 3}, "unknown entry of device in the report of a device 'age'"),
        ({"device__name": "a\x1b[31m"}, "is no name"),
        ({"device__browser": "x" * 999}, "is no name"),
        ({"models__0__name": "a\nb"}, "is no name"),
        ({"runtime__package": "a\x1b[2J"}, "is no name"),
        ({"runtime__backend": "abacus"}, "its backend is 'abacus', not one of cpu, webgpu"),
        ({"device__memory_gb": 1e30}, r"memory_gb is 1e\+30, not a size"),
        ({"device__memory_gb": 0}, "memory_gb is 0, not a size"),
        ({"device__user_agent": "x" * 1001}, "is no line of text"),
        ({"notes": ["all is well\x1b[2K"]}, "is no line of text"),
        ({"runtime__threads": 0}, "its settings are not whole numbers of at least 1"),
        ({"settings__rounds": 0}, "its settings are not whole numbers of at least 1"),
        ({"settings__rounds": 10**6}, "its settings are not whole numbers of at least 1"),
        ({"settings__prompt_lengths": [64, 0]}, "its settings are not whole numbers of at least 1"),
        ({"models": []}, "its models are none, not one shrunk model and at most one base"),
        ({"models__0__role": "shrunk"}, "its models are shrunk, shrunk"),
        ({"models__0__role": "teacher"}, "its models are teacher, shrunk"),
        ({"models__0__bytes": 0}, "the base model has 0 bytes"),
        ({"models__1__sha256": "ab"}, "the shrunk model has 70000000 bytes and the SHA-256 'ab'"),
        ({"samples": []}, "it holds no figures; press 'Measure' and wait until it is done"),
        ({"samples__0__metric": "joy"}, "it has figures of joy of the base model, which are not known"),
        ({"samples__0__role": "teacher"}, "of the teacher model, which are not known"),
        ({"samples__0__setting": ", a\x00"}, "is no setting"),
        ({"samples__0__setting": "x" * 99}, "is no setting"),
        ({"samples__0__metric": "response_seconds", "samples__0__setting": ", prompt 64"}, "of the base model twice"),
        ({"settings__rounds": 0, "samples": []}, "it holds no figures"),
        ({"samples__1__values": [*VALUES, [1.0, 1.0]]}, "has 13 rounds of 2 turns"),
        ({"samples__0__values": VALUES[:3]}, "has 3 rounds of 2 turns, where 12 of one or two are expected"),
        ({"samples__0__values": [[1.0, 1.0, 1.0]] * 12}, "has 12 rounds of 3 turns"),
        ({"samples__0__values": [[1.0], *VALUES[1:]]}, "has 12 rounds of 1, 2 turns"),
        ({"samples__0__values": [[]] * 12}, "has 12 rounds of 0 turns"),
        ({"samples__0__values": []}, "has 0 rounds of no turns"),
        ({"samples__0__values": [[1.0, 0.0], *VALUES[1:]]}, "has a value that is not a number above 0"),
        ({"samples__0__values": [[1.0, -1], *VALUES[1:]]}, "has a value that is not a number above 0"),
        ({"samples__0__values": [[1.0, float("nan")], *VALUES[1:]]}, "has a value that is not a number above 0"),
        ({"samples__0__values": [[1.0, float("inf")], *VALUES[1:]]}, "has a value that is not a number above 0"),
        ({"samples__0__values": [["a", 1.0], *VALUES[1:]]}, r"samples\[0\].values\[0\]\[0\] is 'a', not a number"),
    ],
)
def test_reports_that_are_damaged(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message) as found:
        read_device_report(save_report(tmp_path / "a.json", **changes))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("text", ["[]", "3", "null"])
def test_files_of_another_kind(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SourceError, match="is not a report of a device"):
        read_device_report(tmp_path / "a.json")


def test_an_entry_that_is_missing(tmp_path: Path) -> None:
    report = device_report()
    del report["runtime"]["build"]
    with pytest.raises(SourceError, match=r"a\.json: this report of a device lacks runtime\.build"):
        read_device_report(save_report(tmp_path / "a.json", report))
